"""Where in the user's program we are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import FrameType

_HERE = Path(__file__)
_LIBRARY = tuple(
    f"{folder}/"
    for root in {_HERE.parent.parent, _HERE.resolve().parent.parent}
    for folder in (root / "transforms", root / "ppl", root / "kernels")
) + tuple(
    f"{Path(spec.origin or '').parent}/"
    for spec in map(importlib.util.find_spec, ("jax", "numpyro"))
    if spec is not None
)
_PLUMBING = ("equinox", "contextlib.py", "functools.py", "<frozen", "<string>", "jaxtyping")


def is_user_file(name: str) -> bool:
    """True for a file that is neither varax's, nor JAX's, nor plumbing between them."""
    return not name.startswith(_LIBRARY) and not any(part in name for part in _PLUMBING)


def user_line() -> str:
    """`file:line (function)` of the innermost frame that is neither varax nor JAX."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_user_file(name):
            return f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "unknown line"
