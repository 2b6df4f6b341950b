"""One order for the fields of NumPyro's distributions in every process.

As a pytree, a NumPyro distribution has its fields in the order of a set of strings, which differs
from process to process with Python's string hashes. So would the operands of every random choice,
the text of every compiled program, what a persistent compilation cache finds, and possibly, in the
last bit, what a resumed run computes. Importing this module makes the order alphabetical.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numpyro.distributions import Distribution


def _in_order(fields: Callable[[Any], tuple[str, ...]]) -> Any:
    @functools.lru_cache(maxsize=1024)
    def ordered(cls: type) -> tuple[str, ...]:
        return tuple(sorted(fields(cls)))

    return classmethod(lambda cls: ordered(cls))


for _name in ("gather_pytree_data_fields", "gather_pytree_aux_fields"):
    setattr(Distribution, _name, _in_order(getattr(Distribution, _name).__func__))
