"""How every implementation of every operation is checked: one rule, over a shared list of cases.

    error(fast) <= 2 * error(plain form in the same dtype) + tiny,   against float64

for the values and for the derivative along a random cotangent. In float32 the plain form's error
contains that of rounding the operands; so that the rule means the same in float64, its operands
are moved by one rounding there. The error of one or two numbers is a matter of luck: where a case
has results that small, its operands are drawn several times and the greatest errors compared.
`CASES` of kernel_cases_*.py hold what is tried; a test module parametrizes over them and over
`implementations_of`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from varax import kernels
from varax.kernels.frame.operation import OPERATIONS

TINY = 16  # times the dtype's resolution, times the size of the exact result


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A call of a public function.

    Attributes:
        name: shown by pytest.
        operation: the name of the operation behind it.
        function: `(*arrays) -> array or pytree`; everything static is closed over.
        arrays: `(rng) -> tuple` of float64 (or integer) NumPy arrays.
        axes: an `in_axes` of `jax.vmap`, for calls with a mapped axis; or None.
        draws: how often its arrays are drawn; if more than once, all are of floats.
    """

    name: str
    operation: str
    function: Callable[..., Any]
    arrays: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    axes: Any = None
    draws: int = 1

    def __str__(self) -> str:
        return f"{self.operation}-{self.name}"


def implementations_of(operation: str) -> list[str]:
    """All that run here but the plain form."""
    here = jax.default_backend()
    found = [i for i in OPERATIONS[operation].implementations if i.name != "xla"]
    return [i.name for i in found if not i.platforms or here in i.platforms]


def evaluated(
    case: Case, implementation: str, dtype: Any, *, nudged: bool = False
) -> tuple[list[Any], list[Any]]:
    """Values, and derivatives in the floating operands along a fixed random cotangent.

    Each array has an axis in front, of the draws.
    """
    rng = _rng(case)
    draws = [case.arrays(rng) for _ in range(case.draws)]
    if nudged:
        rng = np.random.default_rng(2)
        size = float(jnp.finfo(dtype).eps)
        draws = [
            [a * (1 + size * rng.choice([-1, 1], np.shape(a))) if _floats(a) else a for a in given]
            for given in draws
        ]
    assert case.draws == 1 or all(map(_floats, draws[0]))
    call, found = _compiled(case, implementation), []
    with kernels.using(**{case.operation: implementation}):
        for given in draws:
            out, pull = jax.vjp(call, *(jnp.asarray(a, dtype) for a in given if _floats(a)))
            rng = np.random.default_rng(1)
            along = jax.tree.map(lambda x, rng=rng: _cotangent(x, rng), out)
            found.append((jax.tree.leaves(out), jax.tree.leaves(pull(along))))
    values, derivatives = zip(*found, strict=True)
    return _stacked(values), _stacked(derivatives)


@functools.lru_cache(maxsize=4)
def _compiled(case: Case, implementation: str) -> Callable[..., Any]:
    """The case as a function of its floating arrays: one program for all evaluations."""
    del implementation  # `kernels.using` chooses it when the program is traced
    arrays = case.arrays(_rng(case))
    fixed = {i: jnp.asarray(a) for i, a in enumerate(arrays) if not _floats(a)}
    f = case.function if case.axes is None else jax.vmap(case.function, case.axes)

    def of_moving(*at: Any) -> Any:
        rest = iter(at)
        return f(*(fixed[i] if i in fixed else next(rest) for i in range(len(arrays))))

    return jax.jit(of_moving)


def _rng(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def _floats(a: Any) -> bool:
    return np.issubdtype(np.asarray(a).dtype, np.floating)


def _cotangent(x: Any, rng: np.random.Generator) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.asarray(rng.standard_normal(x.shape), x.dtype)
    return np.zeros(x.shape, jax.dtypes.float0)


def _stacked(draws: Any) -> list[np.ndarray]:
    return [np.stack([np.asarray(x, np.float64) for x in xs]) for xs in zip(*draws, strict=True)]


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
