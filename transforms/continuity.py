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

import numpy as np
from scipy import special

from . import _jax
from .site import site_p

if TYPE_CHECKING:
    from .taint import Region

STEP, DRAWS, TOLERANCE = 1e-5, 3, 1e-5


class _UnknownError(Exception):
    """An operation that is not entry by entry."""


class _UndecidedError(Exception):
    """An integer or a truth value of unknown origin: it has no generic value."""


def is_continuous(region: Region, comparison: _jax.JaxprEqn, out: Any) -> bool:
    """Whether a variable is continuous where a comparison of the same region changes."""
    found = _boundary(region, comparison)
    if found is None or out.aval.shape != found[0].aval.shape:
        return False
    x, points = found
    return all(_agree(region, x, k, out, draw) for k in points for draw in range(DRAWS))


def _boundary(region: Region, eqn: _jax.JaxprEqn) -> tuple[Any, list[float]] | None:
    """The variable that is compared with a constant, and its values where that changes."""
    literals = [v for v in eqn.invars if type(v) is _jax.Literal]
    if len(literals) != 1 or np.ndim(literals[0].val) != 0 or len(eqn.invars) != 2:
        return None
    k = float(literals[0].val)
    (x,) = (v for v in eqn.invars if v is not literals[0])
    maker = region.producer(x)
    if eqn.primitive.name in ("eq", "ne", "eq_to") and (maker is None or maker.primitive != site_p):
        return None  # only a draw itself is surely never equal to a number
    if maker is not None and maker.primitive.name == "abs":
        return maker.invars[0], [k, -k]
    return x, [k]


def _agree(region: Region, x: Any, k: float, out: Any, draw: int) -> bool:
    """Whether the limits of `out` at x = k agree."""
    step = STEP * (1 + abs(k))
    values = {x: k + step * np.array([-2.0, -1.0, 1.0, 2.0])}
    generic = np.random.default_rng(draw)
    try:
        with np.errstate(all="ignore"):
            a, b, c, d = np.broadcast_to(_value(region, out, values, x, generic), 4).astype(float)
    except (_UnknownError, _UndecidedError):
        return False
    return abs((2 * b - a) - (2 * c - d)) <= TOLERANCE * (1 + abs(b))  # False for NaN


def _value(region: Region, atom: Any, values: dict[Any, Any], x: Any, generic: Any) -> Any:
    """An atom at the points; a generic number where it is not computed entry by entry from x."""
    if type(atom) is _jax.Literal:
        return _scalar(atom)
    if atom not in values:
        eqn = region.producer(atom)
        try:
            if eqn is None or atom.aval.shape not in ((), x.aval.shape):
                raise _UnknownError
            args = [_value(region, v, values, x, generic) for v in eqn.invars]
            values.update(zip(eqn.outvars, _apply(eqn, args), strict=True))
        except _UnknownError:
            if np.dtype(atom.aval.dtype).kind in "biu":
                raise _UndecidedError from None
            values[atom] = generic.normal() * math.e
    return values[atom]


def _scalar(literal: Any) -> Any:
    if np.ndim(literal.val) != 0:
        raise _UnknownError
    return literal.val


def _apply(eqn: _jax.JaxprEqn, args: list[Any]) -> list[Any]:
    """An equation's results for numbers in the place of arrays."""
    name, params = eqn.primitive.name, eqn.params
    if eqn.primitive in (_jax.jit_p, _jax.custom_jvp_call_p):
        return _evaluate(params.get("jaxpr") or params["call_jaxpr"], args)
    if name == "integer_pow":
        return [np.power(np.asarray(args[0], float), params["y"])]
    if name == "convert_element_type":
        return [np.asarray(args[0]).astype(_kind(params["new_dtype"], args[0]))]
    if name not in _OPERATIONS:
        raise _UnknownError
    return [_OPERATIONS[name](*args)]


def _kind(dtype: Any, x: Any) -> Any:
    """float64 for every float, so that rounding is no jump; integers and booleans as they are."""
    inexact = not np.issubdtype(dtype, np.integer) and np.dtype(dtype) != bool
    return float if inexact else dtype


def _evaluate(jaxpr: Any, args: list[Any]) -> list[Any]:
    jaxpr, consts = _jax.opened(jaxpr)
    if any(np.ndim(c) for c in consts):
        raise _UnknownError
    env = dict(zip(_jax.input_vars(jaxpr), [*consts, *args], strict=True))

    def read(v: Any) -> Any:
        return _scalar(v) if type(v) is _jax.Literal else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _apply(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _select(which: Any, *cases: Any) -> Any:
    which = np.asarray(which).astype(int)
    return np.choose(which, np.broadcast_arrays(which, *cases)[1:])


def _same(x: Any, *_: Any) -> Any:
    return x


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{"exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1},
    **{"abs": np.abs, "sqrt": np.sqrt, "cbrt": np.cbrt, "square": np.square, "sign": np.sign},
    **{"sin": np.sin, "cos": np.cos, "tan": np.tan, "floor": np.floor, "ceil": np.ceil},
    **{"sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh},
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power},
    **{"neg": np.negative, "max": np.maximum, "min": np.minimum, "is_finite": np.isfinite},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal, "and": np.logical_and, "or": np.logical_or},
    **{"asinh": np.arcsinh, "atan": np.arctan, "not": np.logical_not, "select_n": _select},
    **{"erf": special.erf, "erfc": special.erfc, "lgamma": special.gammaln},
    **{"logistic": special.expit, "rsqrt": lambda x: 1 / np.sqrt(x)},
    **{"clamp": lambda low, x, high: np.clip(x, low, high)},
    **dict.fromkeys(("copy", "stop_gradient", "broadcast_in_dim", "reshape", "squeeze"), _same),
}
