"""From weighed terms to outputs: the linear end of a program, evaluated term by term.

Terms that are added up and depend on the same choices are added before they are weighed, since one
weight serves them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from . import _jax
from .axes import Spread, Sum
from .dependence import NONE, Dep
from .flat import Op
from .linear import AFFINE
from .signals import signal_p

if TYPE_CHECKING:
    from .paths import Fan

SUMS = ("add", "add_any", "sub", "neg")


class Tail:
    """The sums that make up the outputs of one run.

    Args:
        fan: the run.
        shift: what to add to the log weights of some choices.
    """

    def __init__(self, fan: Fan, shift: dict[int, Any] | None):
        self.fan, self.shift = fan, shift
        self.maker = {n: op for op in fan.flat.ops for n in op.outs if n in fan.credit.tail}
        self.signals = {op.outs[0]: op for op in fan.flat.ops if op.eqn.primitive is signal_p}
        self.known: dict[int, Sum] = {}

    def run(self) -> None:
        """In program order, so that no chain of operations is a chain of calls."""
        for op in self.fan.flat.ops:
            if op.outs and op.outs[0] in self.maker and not _adds(op):
                self.value(op.outs[0])

    def value(self, x: Any) -> Sum:
        """A number's value, its random terms weighed."""
        if not isinstance(x, int) or not (x in self.maker or x in self.fan.credit.terms):
            return Sum([self.fan.read(x)])
        if x not in self.known:
            self.known[x] = self._sum(x)
        return self.known[x]

    def _sum(self, root: int) -> Sum:
        """What a number is the sum of: terms by the choices they depend on, and the rest."""
        parts: list[tuple[Sum, int]] = []
        groups: dict[Any, tuple[int, list[tuple[Spread, int]]]] = {}
        stack: list[tuple[Any, int]] = [(root, 1)]
        while stack:
            x, sign = stack.pop()
            op = self.maker.get(x) if isinstance(x, int) else None
            if op is not None and _adds(op):
                second = -sign if op.eqn.primitive.name == "sub" else sign
                stack += [(y, second) for y in op.ins[1:]][::-1]
                stack.append((op.ins[0], -sign if op.eqn.primitive.name == "neg" else sign))
            elif op is not None and x == root:
                parts.append((self._linear(op), sign))
            elif isinstance(x, int) and x in self.signals:
                parts.append((self._signal(x), sign))
            elif isinstance(x, int) and x in self.fan.credit.terms:
                term = self.fan.values[x]
                _, members = groups.setdefault((self._key(x), jnp.shape(term.value)), (x, []))
                members.append((term, sign))
            else:
                parts.append((self.value(x), sign))
        for x, members in groups.values():
            total = self.fan.axes.total([(Sum([term]), sign) for term, sign in members])
            value = total.dense(self.fan.axes) if len(members) > 1 else total.terms[0]
            weighed = self.fan.weights.weigh(x, value, self.shift)
            parts.append((Sum([weighed]), 1))
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        return self.fan.axes.total(parts)

    def _key(self, x: int) -> Any:
        dep: Dep = self.fan.credit.deps.get(x, NONE)
        return dep.whole, frozenset(dep.aligned.items()), self.fan.flat.is_float(x)

    def _signal(self, x: int) -> Sum:
        op = self.signals[x]
        values = [self.fan.read(y) for y in op.ins]
        return Sum([self.fan.weights.weigh_signals(op, values, self.shift)])

    def _linear(self, op: Op) -> Sum:
        """An equation that is linear, but not a sum, term by term."""
        eqn, values, axes = op.eqn, [self.value(x) for x in op.ins], self.fan.axes
        if not self.fan.flat.is_float(op.outs[0]):  # a count, whose terms are weighed
            values = [Sum([as_float(term) for term in value.terms]) for value in values]

        def run(*values: Any) -> list[Any]:
            return _jax.bind_again(eqn, list(values))

        many = [i for i, value in enumerate(values) if len(value.terms) > 1]
        if len(many) != 1 or not all(v.free() for i, v in enumerate(values) if i not in many):
            return Sum(axes.apply(run, *(value.dense(axes) for value in values)))
        fixed, (at,) = [value.terms[0] for value in values], many
        nothing = [_zero(x) for x in fixed] if eqn.primitive.name in AFFINE else fixed
        parts = []
        for i, term in enumerate(values[at].terms):
            others = nothing if i else fixed  # what else is added is added once
            parts += axes.apply(run, *others[:at], term, *others[at + 1 :])
        return Sum(parts)


def _adds(op: Op) -> bool:
    """Whether an equation is a sum whose operands have the result's shape and are floats."""
    out = _jax.struct(op.eqn.outvars[0])
    if op.eqn.primitive.name not in SUMS or not jnp.issubdtype(out.dtype, jnp.floating):
        return False
    return all(_jax.struct(v).shape == out.shape for v in op.eqn.invars)


def _zero(x: Spread) -> Spread:
    """Zeros in the place of numbers; predicates and indices stay."""
    if not jnp.issubdtype(jnp.result_type(x.value), jnp.floating):
        return x
    return Spread(jnp.zeros_like(x.value))


def as_float(term: Spread) -> Spread:
    """A term in floating point."""
    value = jnp.asarray(term.value)
    if jnp.issubdtype(value.dtype, jnp.floating):
        return Spread(value, term.blocks)
    return Spread(value.astype(jnp.result_type(float)), term.blocks)
