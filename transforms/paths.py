"""Expectations: run a flat program on all its paths at once, weigh its terms, add them up.

Values carry the sites of several values that they depend on (`axes.py`). A term of the objective is
multiplied by the weights of the choices that it depends on, element by element (`credit.py`).
Where elements are apart, a choice's values are summed at the term; where they are coupled, at the
end, last site first: a chain of sites with a cost for each costs time linear in the chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _jax
from .axes import Axes, Spread, Sum
from .credit import Credit
from .dependence import NONE, Analysis
from .direct import Expect
from .estimators import Branches, Branching
from .flat import Flat, Op, flatten
from .interpreter import refused, step
from .law import Law
from .plan import Plan
from .pool import Pool, pooled
from .seed import split
from .site import eqn_has_sites, site_p
from .tail import Tail, as_float
from .weighing import Weights

MANY = 256  # paths


class Fan:
    """One run of a flat program: its values, and the axes opened so far."""

    def __init__(self, plan: Plan, flat: Flat, credit: Credit, coupled: dict[int, Any]):
        self.plan, self.flat, self.credit, self.coupled = plan, flat, credit, coupled
        self.axes = Axes()
        self.values: dict[int, Spread] = {}
        self.behind: dict[int, int] = {}  # by axis: the choices that opened it, as bits
        self.weights = Weights(self.axes, plan, credit)
        self.noise: dict[int, jax.Array] = {}  # of smooth choices, where a strategy chose it
        self.pool: Pool = {}

    # ---- evaluation

    def run(self, operands: list[Any], key: jax.Array) -> None:
        """Compute what the terms and outputs need."""
        flat = self.flat
        values = dict(enumerate(operands)) | flat.consts
        self.values = {number: Spread(x) for number, x in values.items()}
        needed, keys = self._needed(), self._keys(key)
        drawing = -1
        for op in flat.ops:
            drawing += eqn_has_sites(op.eqn)
            if needed.isdisjoint(op.outs) and not op.eqn.effects:
                continue
            ins = [self.read(x) for x in op.ins]
            outs = self._equation(op, ins, drawing, keys)
            self.values.update(zip(op.outs, outs, strict=True))

    def _keys(self, key: jax.Array) -> list[jax.Array]:
        """The key of each equation that draws."""
        drawing = [op for op in self.flat.ops if eqn_has_sites(op.eqn)]
        given = _Keys(key)
        keys = [self.plan.own_key(op.eqn, given.at(op.path)) for op in drawing]
        one_value = [
            (op.eqn, key)
            for i, (op, key) in enumerate(zip(drawing, keys, strict=True))
            if i not in self.noise and not self.plan.branches_at(op.eqn)
        ]
        self.pool = pooled(one_value)
        return keys

    def read(self, x: Any) -> Spread:
        """The value of a number or a literal."""
        return self.values[x] if isinstance(x, int) else Spread(x.val)

    def _needed(self) -> set[int]:
        """Numbers that terms, outputs or the tail's multipliers are computed from."""
        deps, tail = self.credit.deps, self.credit.tail
        needed = {x for x in self.flat.outs if isinstance(x, int) and x not in tail}
        needed |= self.credit.terms
        for op in reversed(self.flat.ops):
            if op.eqn.effects or not needed.isdisjoint(op.outs):
                needed.update(x for x in op.ins if isinstance(x, int))
            if not tail.isdisjoint(op.outs):
                needed.update(x for x in op.ins if isinstance(x, int) and x not in deps)
        return needed

    def _equation(
        self, op: Op, ins: list[Spread], drawing: int, keys: list[jax.Array]
    ) -> list[Spread]:
        eqn = op.eqn
        if not eqn_has_sites(eqn):
            if not any(x.blocks for x in ins):
                return [Spread(x) for x in _jax.bind_again(eqn, [x.value for x in ins])]
            repeat = eqn.primitive is _jax.jit_p
            outs = self.axes.apply(lambda *xs: _jax.bind_again(eqn, list(xs)), *ins, repeat=repeat)
            return self._cut(op, outs)
        if (noise := self.noise.get(drawing)) is not None:
            place = Law.of_noise(eqn.params["site"])
            return self.axes.apply(lambda *xs: [place(list(xs), noise)], *ins)
        if not self.plan.branches_at(eqn):
            return self._one_value(op, ins, drawing, keys[drawing])
        if eqn.primitive is site_p:
            return self._several(op, ins, drawing, keys[drawing])
        return self._region(op, ins, drawing, keys[drawing])

    def _one_value(self, op: Op, ins: list[Spread], drawing: int, key: Any) -> list[Spread]:
        eqn = op.eqn
        dep = self.credit.deps.get(op.outs[0], NONE) if eqn.primitive is site_p else None
        positions: list[Any] = []

        def run(*values: Any) -> list[Any]:
            handler = Expect(self.plan, key)
            handler.keys, handler.pool = iter([key]), self.pool
            outs = step(handler, eqn, list(values))
            positions[:] = [(drawing, *p[1:]) for p in handler.weighings]
            weighings = [w for pair in handler.weighings.values() for w in pair]
            shown = [w for w in weighings if w is not None]
            positions.append([w is not None for w in weighings])
            return [*outs, *shown]

        outs = self.axes.apply(run, *ins)
        *positions, present = positions
        left = iter(outs[len(eqn.outvars) :])
        found = [next(left) if p else None for p in present]
        for position, weight, baseline in zip(positions, found[::2], found[1::2], strict=True):
            assert weight is not None
            self.weights.add(position, weight, baseline, dep)
        return self._cut(op, outs[: len(eqn.outvars)])

    def _cut(self, op: Op, outs: list[Spread]) -> list[Spread]:
        """Each of several results, on the axes of what it depends on alone."""
        if len(outs) == 1:
            return outs
        found = []
        for number, out in zip(op.outs, outs, strict=True):
            sources = self.credit.deps.get(number, NONE).sources
            for axis in [a for start, stop in out.blocks for a in range(start, stop)]:
                if not self.behind[axis] & sources:
                    out = self.axes.first(axis, out)
            found.append(out)
        return found

    def _several(self, op: Op, ins: list[Spread], drawing: int, key: Any) -> list[Spread]:
        """A site with several values opens an axis."""
        eqn = op.eqn
        site, number = eqn.params["site"], self.weights.number((drawing,))
        estimator = self.plan.estimator(site)
        assert isinstance(estimator, Branching) and number is not None
        groups = Law(site, [], self.coupled[number]).groups

        def run(*values: Any) -> list[Any]:
            law = Law(site, list(values), self.coupled[number])
            found = Branches(*law.estimator(estimator).branch(key, law))
            control = [] if found.control is None else [jnp.asarray(found.control)]
            return [found.weights, found.values, *control]

        weights, values, *control = self.axes.each(run, *ins)  # results follow the blocks
        axis, (weights, values) = self._open(1 << number, weights, values)
        if math.prod(groups) == 1:
            dims = len(weights.blocks)
            self.weights.joint[axis] = Spread(
                weights.value.reshape(weights.value.shape[:dims]), weights.blocks
            )
        else:
            self.weights.apart[axis] = (number, weights)
        dep = self.credit.deps.get(op.outs[0], NONE)
        for one in control:
            self.weights.add_control(number, one, dep, len(groups))
        return [values]

    def _open(self, behind: int, *found: Spread) -> tuple[int, list[Spread]]:
        """A new axis, along what follows the blocks."""
        n = len(self.axes.sizes)
        self.behind[n] = behind
        self.axes.sizes.append(found[0].value.shape[len(found[0].blocks)])
        return n, [self.axes.merged(x.value, [*x.blocks, (n, n + 1)]) for x in found]

    def _region(self, op: Op, ins: list[Spread], drawing: int, key: Any) -> list[Spread]:
        """A region whose outcomes are taken as a whole opens an axis."""
        eqn = op.eqn
        choices = enumerate(self.credit.found.choices)
        inside = sum(1 << n for n, position in choices if position[0] == drawing)

        def run(*values: Any) -> list[Any]:
            weights, outs = outcomes(self.plan, eqn, list(values), key)
            return [weights, *outs]

        axis, (weights, *outs) = self._open(inside, *self.axes.each(run, *ins))
        self.weights.joint[axis] = weights
        return outs

    # ---- results

    def outputs(self, shift: dict[int, Any] | None = None) -> list[Any]:
        """The estimates of the program's outputs.

        Args:
            shift: what to add to the log weights of some choices.
        """
        tail = Tail(self, shift)
        tail.run()
        return [self._output(x, tail) for x in self.flat.outs]

    def _output(self, x: Any, tail: Tail) -> jax.Array:
        if isinstance(x, int) and not self.flat.is_float(x):
            drawn = self.read(x)
            if not drawn.blocks and not self.weights.averaged:
                return jnp.asarray(drawn.value)  # what is no float has no derivative
        return self._mean(tail.value(x))

    def _mean(self, out: Sum) -> jax.Array:
        """The sum over all paths of weight times outcome."""
        if out.free() and len(out.terms) == 1:
            return jnp.asarray(out.terms[0].value)
        terms = [self._shrink(as_float(term)) for term in out.terms]
        for axis in reversed(range(len(self.axes.sizes))):
            here = [term for term in terms if term.blocks and term.blocks[-1][1] == axis + 1]
            if here:
                total = Sum(here).dense(self.axes)
                terms = [term for term in terms if term not in here]
                terms.append(self.axes.contract([self.weights.joint[axis]], total))
        return sum(term.value for term in terms[1:]) + terms[0].value

    def mean_of(self, spread: Spread) -> jax.Array:
        """The mean of a value over all paths."""
        return self._mean(Sum([spread]))

    def _shrink(self, term: Spread) -> Spread:
        """Sum a term on many paths over several axes at a time: fewer kernels to compile."""
        while term.blocks and math.prod(map(self.axes.size, term.blocks)) > MANY:
            start, stop = term.blocks[-1]
            first = stop - 1
            while first > start and self.axes.size((first - 1, stop)) <= MANY:
                first -= 1
            term = self.axes.contract([self.weights.joint[a] for a in range(first, stop)], term)
        return term


class _Keys:
    """Keys by the path of a drawing equation: a region splits its own by how many it has."""

    def __init__(self, key: jax.Array):
        self.key = key
        self.known: dict[Any, Any] = {}

    def at(self, path: tuple[tuple[int, int], ...]) -> jax.Array:
        """The key of one equation."""
        if not path:
            return self.key
        parent, (index, count) = path[:-1], path[-1]
        if parent not in self.known:
            self.known[parent] = split(self.at(parent), count)
        return self.known[parent][index]


# ---- the outcomes of a region that has to be entered as a whole, on one path


class Paths(NamedTuple):
    """The outcomes of a region: outs have a leading dimension of the weights' length."""

    weights: jax.Array  # [L]
    outs: list[jax.Array]  # each [L, ...]


def outcomes(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Weighted outcomes of a region."""
    if eqn.primitive is _jax.remat_p:
        body = jax.checkpoint(_enter(plan, eqn.params["jaxpr"]), policy=eqn.params["policy"])
        return body(key, *values)
    if eqn.primitive is _jax.cond_p:
        return _cond(plan, eqn, values, key)
    raise refused(eqn, "an estimator with several values (Enumerate) needs a rule to enter it")


def _enter(plan: Plan, region: Any) -> Callable[..., Paths]:
    jaxpr, consts = _jax.opened(region)
    flat = flatten(jaxpr, plan)

    def run(key: jax.Array, *values: Any) -> Paths:
        fan = Whole(plan, flat)
        fan.run([*consts, *values], key)
        return fan.reify()

    return run


class Whole(Fan):
    """A region of which nothing is known outside: all its choices are coupled."""

    def __init__(self, plan: Plan, flat: Flat):
        credit = Credit.unknown(flat, Analysis(plan.elements))
        super().__init__(plan, flat, credit, credit.coupled(range(len(credit.found.choices))))

    def reify(self) -> Paths:
        """All outcomes as flat lists."""
        everything = (0, len(self.axes.sizes))
        zeros = Spread(jnp.zeros(self.axes.size(everything)), (everything,))
        zeros = zeros if self.axes.sizes else Spread(jnp.zeros(()))
        weights, log_weights = list(self.weights.joint.values()), self.weights.all()
        n, m = len(weights), len(log_weights)

        def one(zero: Any, *rest: Any) -> list[Any]:
            weights, log_weights, outs = rest[:n], rest[n : n + m], rest[n + m :]
            total = sum((w.sum() for w in log_weights), start=zero)
            return [math.prod(weights) * jnp.exp(total), *outs]

        outs = [self.read(x) for x in self.flat.outs]
        found = self.axes.apply(one, zeros, *weights, *log_weights, *outs)
        first, *values = (x.value if x.blocks else jnp.asarray(x.value)[None] for x in found)
        return Paths(first, values)


def _cond(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Every branch hands back as many outcomes as the largest, padded with weight 0."""
    index, *values = values
    branches = [_enter(plan, branch) for branch in eqn.params["branches"]]
    counts = [jax.eval_shape(b, key, *values).weights.shape[0] for b in branches]

    def padded(branch: Callable[..., Paths], count: int) -> Callable[..., Paths]:
        extra = max(counts) - count

        def pad(x: jax.Array) -> jax.Array:  # repeat an outcome, so that no NaN comes in
            return jnp.concatenate([x, jnp.repeat(x[:1], extra, 0)]) if extra else x

        def run(key: jax.Array, *values: Any) -> Paths:
            weights, outs = branch(key, *values)
            return Paths(jnp.pad(weights, (0, extra)), [pad(x) for x in outs])

        return run

    runs = [padded(b, n) for b, n in zip(branches, counts, strict=True)]
    return jax.lax.switch(index, runs, key, *values)
