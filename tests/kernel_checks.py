"""How every implementation of every operation is checked: one rule, over a shared list of cases.

    error(fast) <= 2 * error(plain form in the same dtype) + tiny,   against float64

for the values and for the derivative along a random cotangent. In float32 the plain form's error
contains that of rounding the operands; so that the rule means the same in float64, its operands
are moved by one rounding there. `CASES` of kernel_cases_*.py hold
what is tried; a test module parametrizes over them and over `implementations_of`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from varax import kernels
from varax.kernels.frame.operation import OPERATIONS

TINY = 16  # times the dtype's resolution, times the size of the exact result


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of a public function.

    Attributes:
        name: shown by pytest.
        operation: the name of the operation behind it.
        function: `(*arrays) -> array or pytree`; everything static is closed over.
        arrays: `(rng) -> tuple` of float64 (or integer) NumPy arrays.
        axes: an `in_axes` of `jax.vmap`, for calls with a mapped axis; or None.
    """

    name: str
    operation: str
    function: Callable[..., Any]
    arrays: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    axes: Any = None

    def __str__(self) -> str:
        return f"{self.operation}-{self.name}"


def implementations_of(operation: str) -> list[str]:
    """All but the plain form."""
    return [i.name for i in OPERATIONS[operation].implementations if i.name != "xla"]


def evaluated(
    case: Case, implementation: str, dtype: Any, *, nudged: bool = False
) -> tuple[list[Any], list[Any]]:
    """Values, and derivatives in the floating operands along a fixed random cotangent."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    given = case.arrays(rng)
    if nudged:
        rng = np.random.default_rng(2)
        size = float(jnp.finfo(dtype).eps)
        given = [
            a * (1 + size * rng.choice([-1, 1], np.shape(a)))
            if np.issubdtype(np.asarray(a).dtype, np.floating)
            else a
            for a in given
        ]
    arrays = [
        jnp.asarray(a, dtype if np.issubdtype(np.asarray(a).dtype, np.floating) else None)
        for a in given
    ]
    moving = [i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.inexact)]
    f = case.function if case.axes is None else jax.vmap(case.function, case.axes)

    def of_moving(*at: Any) -> Any:
        new = dict(zip(moving, at, strict=True))
        return f(*(new.get(i, a) for i, a in enumerate(arrays)))

    with kernels.using(**{case.operation: implementation}):
        out, pull = jax.vjp(jax.jit(of_moving), *(arrays[i] for i in moving))
        rng = np.random.default_rng(1)
        along = jax.tree.map(
            lambda x: (
                jnp.asarray(rng.standard_normal(x.shape), x.dtype)
                if jnp.issubdtype(x.dtype, jnp.inexact)
                else np.zeros(x.shape, jax.dtypes.float0)
            ),
            out,
        )
        back = pull(along)
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(out)], [
        np.asarray(x, np.float64) for x in jax.tree.leaves(back)
    ]


def check(case: Case, implementation: str, dtype: Any) -> None:
    """The rule above; float64 must be enabled."""
    exact = evaluated(case, "xla", jnp.float64)
    plain = evaluated(case, "xla", dtype, nudged=dtype == jnp.float64)
    fast = evaluated(case, implementation, dtype)
    resolution = float(jnp.finfo(dtype).eps)
    for what, truth, slow, quick in zip(("value", "derivative"), exact, plain, fast, strict=True):
        for i, (t, s, q) in enumerate(zip(truth, slow, quick, strict=True)):
            assert t.shape == q.shape
            finite = np.isfinite(t) & np.isfinite(s)
            assert (np.isfinite(q) == np.isfinite(s)).all() or not finite.all(), f"{what} {i}"
            if not finite.any():
                continue
            allowed = 2 * abs(s - t)[finite].max() + TINY * resolution * abs(t)[finite].max()
            error = abs(q - t)[finite].max()
            assert error <= allowed, f"{what} {i}: error {error:.3g}, allowed {allowed:.3g}"
