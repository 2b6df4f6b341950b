"""What a call compiled, kept for the next call with the same measure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import jax.numpy as jnp

from ..measure import Measure

T = TypeVar("T")


def reuse(m: Measure, settings: Hashable, make: Callable[[], T]) -> T:
    """`make()`, or what it gave at the last call with equal settings and precision.

    It lives as long as the measure, on which it hangs.
    """
    known = m.__dict__.setdefault("_compiled", {})
    at = (settings, jnp.result_type(float))
    if at not in known:
        known[at] = make()
    return known[at]
