"""A user's own branch that is continuous, settled by numbers: `where(x > 0, x, a * x)`.

The condition compares a variable x, or its absolute value, with a constant k. What the select
gives is evaluated, as a function of one number x, on both sides of k. Whatever it needs besides
operations entry by entry on x is given generic values, several times over: where the sides agree
for those they agree for all. So an agreement by chance needs a coincidence in the fifth digit, and
everything that is not understood stays refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from . import _jax
from .site import site_p

if TYPE_CHECKING:
    from .taint import Region

Boundary = tuple[Any, tuple[float, ...]]  # a variable and its values there
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "lt_to", "le_to", "eq_to")
STEP, DRAWS, TOLERANCE, DEPTH = 1e-5, 3, 1e-5, 16


class _UnknownError(Exception):
    """An operation that is not entry by entry."""


class _UndecidedError(Exception):
    """An integer or a truth value of unknown origin: it has no generic value."""


def is_continuous(region: Region, boundary: Boundary, out: Any) -> bool:
    """Whether a variable is continuous at a boundary."""
    x, points = boundary
    tries = ((k, draw) for k in points for draw in range(DRAWS))
    return out.aval.shape == x.aval.shape and all(_agree(region, x, *t, out) for t in tries)


def boundary(region: Region, eqn: _jax.JaxprEqn) -> Boundary | None:
    """Where a comparison of the region changes; None if that is not understood."""
    if eqn.primitive.name not in COMPARISONS:
        return None
    literals = [v for v in eqn.invars if type(v) is _jax.Literal and np.ndim(v.val) == 0]
    if len(literals) != 1:
        return None
    k, (x,) = float(literals[0].val), [v for v in eqn.invars if v is not literals[0]]
    maker = region.producer(x)
    if eqn.primitive.name in ("eq", "ne", "eq_to") and (maker is None or maker.primitive != site_p):
        return None  # only a draw itself is surely never equal to a number
    if maker is not None and maker.primitive.name == "abs":
        return maker.invars[0], (k, -k)
    return x, (k,)


def _agree(region: Region, x: Any, k: float, draw: int, out: Any) -> bool:
    """Whether the limits of `out` at x = k agree."""
    step = STEP * (1 + abs(k))
    limits = _Limits(region, x, k + step * np.array([-2.0, -1.0, 1.0, 2.0]), draw)
    with np.errstate(all="ignore"):
        try:
            a, b, c, d = np.broadcast_to(limits.value(out, DEPTH), 4).astype(float)
        except (_UnknownError, _UndecidedError):
            return False
        return bool(abs((2 * b - a) - (2 * c - d)) <= TOLERANCE * (1 + abs(b)))  # not if NaN


class _Limits:
    """Values at several points of one variable."""

    def __init__(self, region: Region, x: Any, points: np.ndarray, draw: int):
        self.region, self.x = region, x
        self.values: dict[Any, Any] = {x: points}
        self.generic = np.random.default_rng(draw)

    def value(self, atom: Any, depth: int) -> Any:
        """An atom's; a generic number where it is not computed entry by entry, or far away."""
        if type(atom) is _jax.Literal:
            return _number(atom.val)
        if atom not in self.values:
            try:
                eqn = self.region.producer(atom)
                if eqn is None or not depth or atom.aval.shape not in ((), self.x.aval.shape):
                    raise _UnknownError
                args = [self.value(v, depth - 1) for v in eqn.invars]
                self.values.update(zip(eqn.outvars, _apply(eqn, args), strict=True))
            except _UnknownError:
                if not jnp.issubdtype(atom.aval.dtype, jnp.inexact):
                    raise _UndecidedError from None
                self.values[atom] = self.generic.normal() * math.e
        return self.values[atom]


def _number(x: Any) -> Any:
    if np.ndim(x) != 0:
        raise _UnknownError
    return x


def _apply(eqn: _jax.JaxprEqn, args: list[Any]) -> list[Any]:
    """An equation's results for numbers in the place of arrays."""
    name, params = eqn.primitive.name, eqn.params
    if eqn.primitive in (_jax.jit_p, _jax.custom_jvp_call_p):
        return _evaluate(params.get("jaxpr") or params["call_jaxpr"], args)
    if name == "integer_pow":
        return [np.power(np.asarray(args[0], float), params["y"])]
    if name == "convert_element_type":
        floats = jnp.issubdtype(params["new_dtype"], jnp.inexact)  # in float64: rounding is no jump
        return [np.asarray(args[0]).astype(float if floats else params["new_dtype"])]
    if name not in _OPERATIONS:
        raise _UnknownError
    return [_OPERATIONS[name](*args)]


def _evaluate(jaxpr: Any, args: list[Any]) -> list[Any]:
    jaxpr, consts = _jax.opened(jaxpr)
    env = dict(zip(_jax.input_vars(jaxpr), [*map(_number, consts), *args], strict=True))

    def read(v: Any) -> Any:
        return _number(v.val) if type(v) is _jax.Literal else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _apply(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _select(which: Any, *cases: Any) -> Any:
    which = np.asarray(which).astype(int)
    return np.choose(which, np.broadcast_arrays(which, *cases)[1:])


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{"exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1},
    **{"abs": np.abs, "sqrt": np.sqrt, "cbrt": np.cbrt, "square": np.square, "sign": np.sign},
    **{"sin": np.sin, "cos": np.cos, "tan": np.tan, "floor": np.floor, "ceil": np.ceil},
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power},
    **{"neg": np.negative, "max": np.maximum, "min": np.minimum, "is_finite": np.isfinite},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or},
    **{"tanh": np.tanh, "atan": np.arctan, "not": np.invert, "select_n": _select},
    **{"erf": special.erf, "erfc": special.erfc, "lgamma": special.gammaln},
    **{"logistic": special.expit, "clamp": lambda low, x, high: np.clip(x, low, high)},
    **dict.fromkeys(("copy", "broadcast_in_dim", "reshape", "squeeze"), lambda x, *_: x),
}
