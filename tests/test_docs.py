"""Every page's Python runs from top to bottom, as a reader would paste it.

Pages with figures of their own to check are run by the tests of their topic (`ELSEWHERE`).
"""

import re
from pathlib import Path

import jax
import pytest

DOCS = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
ELSEWHERE = {"engines.md", "estimators.md", "families.md", "fitting.md", "objectives.md"}
PAGES = {page.name: BLOCK.findall(page.read_text()) for page in DOCS}


LONG = {"diagnosis.md", "guides.md", "reparameterization.md"}  # whole fits; in make test-all
RUN_HERE = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name, code in PAGES.items()
    if code and name not in ELSEWHERE
]


@pytest.mark.parametrize("page", RUN_HERE)
def test_a_page_runs(page, capsys):
    names = {"__name__": "page"}
    with jax.enable_x64(jax.config.jax_enable_x64):
        for block in PAGES[page]:
            exec(compile(block, page, "exec"), names)
