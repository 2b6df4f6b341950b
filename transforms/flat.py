"""A program as one list of equations: what credit assignment and enumeration work on.

Three things are rewritten on the way. Calls (jit) that draw, or that end in a sum, are entered. A
scan that adds up a cost in its carry hands back the costs of its steps instead, and their sum is an
equation after it: each step's cost can then meet the choices of earlier steps alone. A scan in
which a choice has several values is unrolled, since every step has its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from . import _jax
from .edit import Edit
from .errors import CapabilityError
from .interpreter import evaluate
from .linear import LINEAR
from .plan import Plan
from .site import ONE_EQUATION, eqn_has_sites, site_p

ENDS = LINEAR | {"scan", "jit", "closed_call"}
LARGEST = 4096  # elements of a carry whose steps are handed back


@dataclasses.dataclass(frozen=True)
class Op:
    """An equation whose operands and results are numbered."""

    eqn: _jax.JaxprEqn
    ins: list[Any]  # a number, or a Literal
    outs: list[int]
    path: tuple[tuple[int, int], ...] = ()  # (which drawing equation, of how many), calls outermost


@dataclasses.dataclass
class Flat:
    """The equations in program order; numbers 0 ... inputs - 1 are the program's operands."""

    inputs: int
    ops: list[Op] = dataclasses.field(default_factory=list)
    outs: list[Any] = dataclasses.field(default_factory=list)
    consts: dict[int, Any] = dataclasses.field(default_factory=dict)
    count: int = 0
    shapes: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    floats: dict[int, bool] = dataclasses.field(default_factory=dict)
    random: set[int] = dataclasses.field(default_factory=set)  # what depends on a choice

    def new(self) -> int:
        self.count += 1
        return self.count - 1

    def shape(self, x: Any) -> tuple[int, ...]:
        """Of an output."""
        if not isinstance(x, int):
            return _jax.struct(x).shape
        return self.shapes.get(x, (-1,))

    def is_float(self, number: int) -> bool:
        """Whether a result is of floating point."""
        return self.floats.get(number, True)

    def constant(self, value: Any) -> int:
        number = self.new()
        self.consts[number] = value
        return number


def flatten(jaxpr: Any, plan: Plan) -> Flat:
    """The equations of a jaxpr whose inputs are `[*consts, *args]`."""
    inputs = _jax.input_vars(jaxpr)
    flat = Flat(len(inputs), count=len(inputs))
    flat.outs = _inline(flat, jaxpr, list(range(len(inputs))), plan, ())
    return flat


def _inline(flat: Flat, jaxpr: Any, operands: list[Any], plan: Plan, path: Any) -> list[Any]:
    env: dict[Any, Any] = dict(zip(_jax.input_vars(jaxpr), operands, strict=True))

    def read(v: Any) -> Any:
        return v if isinstance(v, _jax.Literal) else env[v]

    for v in [v for eqn in jaxpr.eqns for v in eqn.invars]:
        if _jax.is_reference(v):
            raise _keeps_state()
    drawing, count = -1, sum(map(eqn_has_sites, jaxpr.eqns))
    for eqn in jaxpr.eqns:
        ins = [read(v) for v in eqn.invars]
        drawing += (draws := eqn_has_sites(eqn))
        here = (*path, (drawing, count)) if draws else ()
        random = draws or not flat.random.isdisjoint(x for x in ins if isinstance(x, int))
        if eqn.primitive is site_p and _recorded(eqn):
            env[eqn.outvars[0]] = ins[-1]  # a recorded value is that value
            continue
        region = _region(eqn, plan, draws=draws) if random else None
        if region is None:
            outs = [flat.new() for _ in eqn.outvars]
            flat.ops.append(Op(eqn, ins, outs, here))
            for n, v in zip(outs, eqn.outvars, strict=True):
                struct = _jax.struct(v)
                flat.shapes[n] = struct.shape
                flat.floats[n] = jnp.issubdtype(struct.dtype, jnp.floating)
            if random:
                flat.random.update(outs)
        else:
            inner, consts = _jax.opened(region)
            outs = _inline(flat, inner, [*map(flat.constant, consts), *ins], plan, here)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _keeps_state() -> CapabilityError:
    return CapabilityError(
        "A program whose expectation is taken keeps its state in values, not in references.",
        expected="values",
        got="jax.new_ref",
        where=user_line(),
        fix="carry the state through jax.lax.scan, or return it",
    )


def _recorded(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation records its operand, which has its lanes."""
    same = _jax.struct(eqn.invars[-1]) == _jax.struct(eqn.outvars[0]) if eqn.invars else False
    return same and eqn.params["site"].kind == "record"


def _region(eqn: _jax.JaxprEqn, plan: Plan, *, draws: bool) -> Any:
    """What stands for an equation: the inside of a call, a scan rewritten, or None for itself."""
    if eqn.primitive in _CALLS:
        region = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
        return region if draws or _ends_linearly(eqn, region) else None
    if eqn.primitive is _jax.scan_p:
        return _unrolled(eqn) if plan.branches_at(eqn) else _costs_out(eqn)
    return None


_CALLS = (_jax.jit_p, _jax.closed_call_p)


def _ends_linearly(eqn: _jax.JaxprEqn, region: Any) -> bool:
    if eqn.params.get("name") in ONE_EQUATION:
        return False
    jaxpr, _ = _jax.opened(region)
    found = set(jaxpr.outvars)
    for inner in jaxpr.eqns:
        if found.intersection(inner.outvars) and inner.primitive.name in ENDS:
            return True
    return False


def _traced(function: Any, eqn: _jax.JaxprEqn) -> Any:
    return jax.make_jaxpr(function)(*(_jax.struct(v) for v in eqn.invars))


def _unrolled(eqn: _jax.JaxprEqn) -> Any:
    length = eqn.params["length"]
    jaxpr, inner = _jax.opened(eqn.params["jaxpr"])
    n_consts, n_carry = _jax.scan_counts(eqn)

    def run(*operands: Any) -> list[Any]:
        fixed, carry = operands[:n_consts], list(operands[n_consts : n_consts + n_carry])
        xs, rows = operands[n_consts + n_carry :], {}
        steps = range(length)
        for t in reversed(steps) if eqn.params["reverse"] else steps:
            x = [jax.lax.index_in_dim(x, t, keepdims=False) for x in xs]
            outs = evaluate(Edit(), jaxpr, [*inner, *fixed, *carry, *x])
            carry, rows[t] = outs[:n_carry], outs[n_carry:]
        if not rows:
            empty = [_jax.struct(v) for v in eqn.outvars[n_carry:]]
            return [*carry, *(jnp.zeros(s.shape, s.dtype) for s in empty)]
        columns = zip(*(rows[t] for t in steps), strict=True)
        return [*carry, *(jnp.stack(column) for column in columns)]

    return _traced(run, eqn)


def _costs_out(eqn: _jax.JaxprEqn) -> Any:
    """The scan with the sums among its carries taken out, or None where there are none."""
    jaxpr, inner = _jax.opened(eqn.params["jaxpr"])
    n_consts, n_carry = _jax.scan_counts(eqn)
    if any(e.primitive in _CALLS and eqn_has_sites(e) for e in jaxpr.eqns):
        avals = [_jax.struct(v) for v in jaxpr.invars]
        closed = jax.make_jaxpr(lambda *xs: evaluate(Edit(), jaxpr, [*inner, *xs]))(*avals)
        jaxpr, inner = _jax.opened(closed)
    sums = _running_sums(jaxpr, len(inner) + n_consts, n_carry)
    if not sums or eqn.params["length"] == 0:
        return None
    kept = [k for k in range(n_carry) if k not in sums]

    def run(*operands: Any) -> list[Any]:
        fixed, start = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        zeros = [jnp.zeros_like(x) for x in start]

        def body(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
            full = dict(zip(kept, carry, strict=True))
            carried = [full.get(k, zeros[k]) for k in range(n_carry)]
            outs = evaluate(Edit(), jaxpr, [*inner, *fixed, *carried, *x])
            costs = [outs[k] for k in sums]
            return [outs[k] for k in kept], (costs, outs[n_carry:])

        ended, (costs, ys) = jax.lax.scan(
            body,
            [start[k] for k in kept],
            list(operands[n_consts + n_carry :]),
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        totals = {k: start[k] + jnp.sum(c, 0) for k, c in zip(sums, costs, strict=True)}
        final = totals | dict(zip(kept, ended, strict=True))
        return [*(final[k] for k in range(n_carry)), *ys]

    return _traced(run, eqn)


def _running_sums(jaxpr: Any, first: int, count: int) -> list[int]:
    """The carries that are only ever added to."""
    uses: dict[Any, list[Any]] = {}  # of each variable: the equations that read it, None an output
    for eqn in [*jaxpr.eqns, None]:
        for v in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(v, _jax.Literal):
                uses.setdefault(v, []).append(eqn)
    inputs = _jax.input_vars(jaxpr)
    return [k for k in range(count) if _adds_up(inputs[first + k], jaxpr.outvars[k], uses)]


def _adds_up(start: Any, end: Any, uses: dict[Any, list[Any]]) -> bool:
    at = start
    aval = _jax.struct(at)
    if not jnp.issubdtype(aval.dtype, jnp.floating) or math.prod(aval.shape) > LARGEST:
        return False
    while True:
        (user, *others) = uses.get(at, [None])
        if others:
            return False
        if user is None:
            return at is end and at is not start
        name = user.primitive.name
        same = name == "convert_element_type" and _jax.struct(user.outvars[0]) == aval
        minus = name == "sub" and user.invars[0] is at
        if not (same or minus or name in ("add", "add_any")):
            return False
        at = user.outvars[0]
