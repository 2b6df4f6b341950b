"""What each kind of operation does to the causes of `taint.py`.

Continuous operations hand on the union of their operands' causes, kinks (`abs`, `max`, `sort`)
included: where a function has one, its derivative is only missing on a null set. Operations that
are constant between jumps (comparisons, `floor`, indices, conversions to integers) forget what is
smooth and leave an origin. A select hands on where its predicate jumps, unless its other side is
infinite: then that is an edge, harmless in sums, and a jump again in what could make it finite
(`exp`). Functions with a derivative of their own (`custom_jvp`) and `stop_gradient` are the user's
word.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ..kernels.frame.primitives import OWNERS as KERNELS
from . import _jax
from .continuity import COMPARISONS, boundary, is_continuous
from .site import eqn_has_sites, site_p
from .smooth import assume_smooth_p
from .taint import NONE, Origin, Region, Rule, Rules, Value
from .trusted import is_library


def union(values: Sequence[Value]) -> Value:
    """All causes of several values."""
    smooth = jump = edge = 0
    for x in values:
        smooth, jump, edge = smooth | x.smooth, jump | x.jump, edge | x.edge
    return Value(smooth, jump, edge)


@functools.lru_cache(maxsize=256)
def _is_float_dtype(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def is_float(v: Any) -> bool:
    """Whether a variable is of floating point, which is what a derivative passes through."""
    return _is_float_dtype(v.aval.dtype)


def _cast(value: Value, v: Any) -> Value:
    """The value of a variable that is computed continuously: what is no float has no path."""
    return value if is_float(v) else Value(0, value.rough)


def continuous(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """An operation without jumps, except in outputs that are no floats (`top_k`'s indices)."""
    every = union(values)
    if eqn.primitive in KERNELS and KERNELS[eqn.primitive][0].jumps(dict(eqn.params["statics"])):
        origin = region.origin(eqn, every.smooth)
        return [Value(every.smooth, every.rough | origin) for _ in eqn.outvars]
    if eqn.primitive.name not in LINEAR or (eqn.primitive.name == "div" and values[1].edge):
        every = Value(every.smooth, every.rough)
    return [
        every if is_float(v) else Value(0, every.rough | region.origin(eqn, every.smooth))
        for v in eqn.outvars
    ]


def otherwise(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """An operation without a rule: taken as continuous, with a look at any regions inside it."""
    outs = continuous(region, eqn, values)
    for sub in _jax.subjaxprs(eqn):
        outs = _hidden(region, eqn, sub, union(values), outs)
    return outs


def _hidden(region: Region, eqn: Any, sub: Any, every: Value, outs: list[Value]) -> list[Value]:
    """A region whose inputs and outputs we cannot match: each input has all causes."""
    inputs = _jax.input_vars(_jax.opened(sub)[0])
    inner = union(region.call(eqn, sub, [_cast(every, v) for v in inputs]))
    return [_cast(union([inner, out]), v) for v, out in zip(eqn.outvars, outs, strict=True)]


# ---- operations that jump


def compare(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """A comparison; with itself or with infinity it asks whether a value is finite."""
    smooth, jump, edge = union(values)
    a, b = eqn.invars
    if not (a is b or region.is_infinite(a) or region.is_infinite(b)):
        jump |= region.origin(eqn, smooth)
    return [Value(0, jump | edge)]


def is_finite(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """True for finite values, so it sees edges alone."""
    return [Value(0, values[0].rough)]


def step(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """Constant between jumps: floor, ceil, round, sign."""
    return [Value(0, values[0].rough | region.origin(eqn, values[0].smooth))]


def wrap(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """Smooth between jumps: remainder, angle."""
    smooth, jump, edge = union(values)
    return [Value(smooth, jump | edge | region.origin(eqn, smooth))]


def sort(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """Sorted values are continuous; what is permuted along with them jumps."""
    keys = union(values[: eqn.params["num_keys"]])
    moved = keys.rough | (region.origin(eqn, keys.smooth) if len(values) > 1 else 0)
    first, *rest = values
    outs = [Value(first.smooth, first.rough), *(Value(x.smooth, x.rough | moved) for x in rest)]
    return [_cast(out, v) for out, v in zip(outs, eqn.outvars, strict=True)]


def select(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """A choice by a predicate; where all cases but one are infinite, its jumps are edges."""
    which, *cases = values
    smooth, jump, edge = union(cases)
    if which.rough and sum(not region.is_infinite(a) for a in eqn.invars[1:]) <= 1:
        edge |= which.rough
    else:
        jump |= which.rough
    out = _cast(Value(smooth, jump, edge), eqn.outvars[0])
    return [_settled(region, eqn, which, out)]


def _settled(region: Region, eqn: _jax.JaxprEqn, which: Value, out: Value) -> Value:
    """The result of a select without the comparisons at which it is continuous, as numbers show."""
    (v,) = eqn.outvars
    ends = [_boundary(region, origin) for _, origin in region.taint.of(which.jump)]
    ends = [end for end in ends if end and is_float(v) and is_continuous(region, end, v)]
    if not ends:
        return out
    same = [bit for bit, o in region.taint.of(out.jump) if _boundary(region, o) in ends]
    return Value(out.smooth, out.jump & ~sum(same), out.edge)


def _boundary(region: Region, origin: Any) -> Any:
    """Where a comparison of this region changes."""
    here = isinstance(origin, Origin) and len(origin.eqns) == 1
    return boundary(region, origin.eqns[0]) if here else None


def declared(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """stop_gradient and assume_smooth: nothing follows the path any further."""
    return [NONE]


# ---- random choices


def site(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """A pathwise draw follows its own path and its parameters'.

    Any other draw is a constant: its law depends smoothly on its parameters, but where those jump
    its weight does too, and that matters whatever becomes of the draw.
    """
    this = eqn.params["site"]
    given = union(values)
    if this.kind == "record":
        return [given]
    if this.kind == "draw" and region.taint.pathwise(this):
        behind = 0 if region.taint.direct else given.smooth
        return [Value(region.taint.site(this) | behind, given.rough)]
    region.matters |= given.rough
    return [NONE]


# ---- regions


def inline(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """jit, closed_call, checkpoint."""
    inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    outs = region.call(eqn, inner, values, eqn.invars)
    if eqn.params.get("name") == "_where" and len(outs) == 1:
        return [_settled(region, eqn, values[0], outs[0])]
    return outs


def custom_jvp(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """Its floats are trusted, unless it draws; its integers and masks are looked into.

    A solver's loop counts its stages, for example, and what branches on the count does not jump
    with the values (diffrax's Runge-Kutta steps).
    """
    looked = inline(region, eqn, values)
    if eqn_has_sites(eqn):
        return looked
    trusted = continuous(region, eqn, values)
    return [t if is_float(v) else x for t, x, v in zip(trusted, looked, eqn.outvars, strict=True)]


def custom_vjp(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """The user's is looked into; a library's is trusted in the same way."""
    trust = custom_jvp if is_library(eqn.params["call_jaxpr"]) else inline
    return trust(region, eqn, values)


def scan(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """The least fixed point of the carry."""
    n_consts, n_carry = _jax.scan_counts(eqn)
    consts, carry = values[:n_consts], values[n_consts : n_consts + n_carry]
    while True:
        args = [*consts, *carry, *values[n_consts + n_carry :]]
        outs = region.call(eqn, eqn.params["jaxpr"], args)
        last, carry = carry, [union(pair) for pair in zip(carry, outs[:n_carry], strict=True)]
        if carry == last:
            return [*carry, *outs[n_carry:]]


def while_loop(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """The same; and where the predicate jumps, so does the number of steps."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    in_cond, in_body = values[:n_cond], values[n_cond : n_cond + n_body]
    last, carry = None, values[n_cond + n_body :]
    while carry != last:
        outs = region.call(eqn, eqn.params["body_jaxpr"], [*in_body, *carry])
        last, carry = carry, [union(pair) for pair in zip(carry, outs, strict=True)]
    (going,) = region.call(eqn, eqn.params["cond_jaxpr"], [*in_cond, *carry])
    return [Value(x.smooth, x.jump | going.rough, x.edge) for x in carry]


def cond(region: Region, eqn: _jax.JaxprEqn, values: list[Value]) -> list[Value]:
    """cond and switch: the branches' causes, and where the predicate jumps."""
    index, *values = values
    branches = [region.call(eqn, b, values, eqn.invars[1:]) for b in eqn.params["branches"]]
    outs = [union(outs) for outs in zip(*branches, strict=True)]
    return [Value(x.smooth, x.jump | index.rough, x.edge) for x in outs]


# An infinity among the operands is one among the results.
LINEAR = {
    *("add", "add_any", "sub", "neg", "mul", "div", "reduce_sum", "cumsum", "dot_general"),
    *("convert_element_type", "copy", "broadcast_in_dim", "reshape", "squeeze", "transpose"),
    *("concatenate", "split", "pad", "rev", "slice", "dynamic_slice", "dynamic_update_slice"),
    "gather",
}

_TABLE: dict[str, Rule] = {
    **dict.fromkeys(COMPARISONS, compare),
    **dict.fromkeys(("floor", "ceil", "round", "sign"), step),
    **dict.fromkeys(("rem", "atan2"), wrap),
    "is_finite": is_finite,
    "sort": sort,
    "select_n": select,
    **dict.fromkeys(("stop_gradient", assume_smooth_p.name), declared),
    site_p.name: site,
    **dict.fromkeys((p.name for p in (_jax.jit_p, _jax.closed_call_p, _jax.remat_p)), inline),
    _jax.custom_jvp_call_p.name: custom_jvp,
    _jax.custom_vjp_call_p.name: custom_vjp,
    _jax.scan_p.name: scan,
    _jax.while_p.name: while_loop,
    _jax.cond_p.name: cond,
}

RULES = Rules(_TABLE, otherwise)
