"""docs/engines.md runs from top to bottom, and what it says of the posteriors holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_document_runs():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/engines.md").read_text(), re.DOTALL)
    assert len(code) == 8
    scope: dict = {}
    for block in code:
        exec(compile(block, "docs/engines.md", "exec"), scope)
    assert scope["n"].addresses == {"mu": (), "tau": (), "theta": (8,)}
    assert abs(float(scope["draws"]["mu"].mean()) - 4.4) < 0.5
    assert scope["weights"]["w"].shape == (2,) and scope["result"].params["w"][0] > 1.0
    assert scope["choices"]["z"].shape == (200, 8) and (scope["choices"]["tau"] > 0).all()
    assert scope["theta"].shape == (4, 200)
    assert abs(float(scope["theta"].mean()) - scope["x"].mean()) < 0.05
