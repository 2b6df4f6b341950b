"""Expectations of programs in which some site has several values: all paths, in linear code.

The program is evaluated once, with values that carry the sites they depend on (`axes.py`). At the
end each site's weights multiply the outcome and its axis is summed, last site first. A term of the
outcome that does not depend on a site never meets its weights: their sum is 1 in expectation, with
all derivatives, for every sound estimator (its law, with a constant for the rest of the program).
So a chain of sites with a cost for each costs time linear in the chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _jax
from .axes import Axes, Spread, Sum
from .direct import Expect
from .estimators import Branching
from .interpreter import read, refused, step
from .law import Law
from .plan import Plan
from .seed import split
from .site import eqn_has_sites, site_p


class Paths(NamedTuple):
    """The outcomes of a region: outs have a leading dimension of the weights' length."""

    weights: jax.Array  # [L]
    outs: list[jax.Array]  # each [L, ...]


def mean(plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array) -> list[Any]:
    """The expected outputs of a program."""
    fan = Fan(plan)
    outs = fan.region(jaxpr, [_sum(x) for x in operands], key)
    return [fan.mean(x) for x in outs]


class Fan:
    """The axes opened so far, with their weights."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.axes = Axes()
        self.weights: list[Spread] = []  # of every axis, its own axis included
        self.log_weights: list[Spread] = []  # of the sites with one value

    # ---- evaluation

    def region(self, jaxpr: Any, operands: list[Sum], key: jax.Array) -> list[Sum]:
        """Evaluate a jaxpr; `operands` are `[*consts, *args]`."""
        env: dict[Any, Any] = dict(zip(_jax.input_vars(jaxpr), operands, strict=True))
        drawing = [eqn for eqn in jaxpr.eqns if eqn_has_sites(eqn)]
        keys = iter(split(key, len(drawing)))
        for eqn in jaxpr.eqns:
            values = [_sum(read(env, v)) for v in eqn.invars]
            key = next(keys) if eqn_has_sites(eqn) else key
            env.update(zip(eqn.outvars, self.equation(eqn, values, key), strict=True))
        return [_sum(read(env, v)) for v in jaxpr.outvars]

    def equation(self, eqn: _jax.JaxprEqn, values: list[Sum], key: jax.Array) -> list[Sum]:
        if self.plan.branches_at(eqn):
            if eqn.primitive in (_jax.jit_p, _jax.closed_call_p):
                jaxpr, consts = _jax.opened(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"])
                return self.region(jaxpr, [*map(_sum, consts), *values], key)
            return (self.scan if eqn.primitive is _jax.scan_p else self.open)(eqn, values, key)
        if all(value.free() for value in values) and not eqn_has_sites(eqn):
            return [_sum(x) for x in _jax.bind_again(eqn, [v.terms[0].value for v in values])]
        if (terms := self.linear(eqn, values)) is not None:
            return [terms]
        return self.one_value(eqn, values, key)

    def linear(self, eqn: _jax.JaxprEqn, values: list[Sum]) -> Sum | None:
        """Sums and multiples of sums, term by term; None for everything else."""
        name = eqn.primitive.name
        if name in ("add", "add_any", "sub") and _floats(values) and _same_shape(eqn):
            return self.axes.total([(values[0], 1), (values[1], -1 if name == "sub" else 1)])
        many = [i for i, value in enumerate(values) if len(value.terms) > 1]
        if many != [i for i, value in enumerate(values) if not value.free()] or len(many) != 1:
            return None
        if not (name in LINEAR or name == "mul" or (name == "div" and many == [0])):
            return None
        if not _floats(values) or not jnp.issubdtype(
            _jax.struct(eqn.outvars[0]).dtype, jnp.floating
        ):
            return None

        def run(*values: Any) -> list[Any]:
            return _jax.bind_again(eqn, list(values))

        fixed, (at,) = [value.terms[0] for value in values], many
        parts = [self.axes.apply(run, *fixed[:at], t, *fixed[at + 1 :]) for t in values[at].terms]
        return Sum([term for (term,) in parts])

    def one_value(self, eqn: _jax.JaxprEqn, values: list[Sum], key: jax.Array) -> list[Sum]:
        """An equation that opens no axis."""
        weighs = False

        def run(*values: Any) -> list[Any]:
            nonlocal weighs
            handler = Expect(self.plan, key)
            handler.keys = iter([key])
            outs = step(handler, eqn, list(values))
            weighs = handler.weighs
            return [*outs, handler.effects()] if weighs else outs

        repeat = eqn.primitive is _jax.jit_p
        outs = self.axes.apply(run, *self.dense(values), repeat=repeat)
        if weighs:
            self.log_weights.append(outs.pop())
        return [Sum([x]) for x in outs]

    def open(self, eqn: _jax.JaxprEqn, values: list[Sum], key: jax.Array) -> list[Sum]:
        """An equation with several outcomes opens an axis."""

        def run(*values: Any) -> list[Any]:
            weights, outs = outcomes(self.plan, eqn, list(values), key)
            return [weights, *outs]

        found = self.axes.each(run, *self.dense(values))  # outcomes follow the blocks
        n = len(self.axes.sizes)
        self.axes.sizes.append(found[0].value.shape[len(found[0].blocks)])
        weights, *outs = (self.axes.merged(x.value, [*x.blocks, (n, n + 1)]) for x in found)
        self.weights.append(weights)
        return [Sum([x]) for x in outs]

    def scan(self, eqn: _jax.JaxprEqn, values: list[Sum], key: jax.Array) -> list[Sum]:
        """Unrolled, since every step opens axes of its own."""
        params, length = eqn.params, eqn.params["length"]
        jaxpr, inner = _jax.opened(params["jaxpr"])
        n_consts, n_carry = _jax.scan_counts(eqn)
        fixed = [*map(_sum, inner), *values[:n_consts]]
        carry, xs = values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        xs = self.dense(xs)
        keys, steps = jax.random.split(key, length), range(length)
        rows: dict[int, list[Spread]] = {}
        for t in reversed(steps) if params["reverse"] else steps:
            x = [Sum(self.axes.apply(lambda x, t=t: [x[t]], x)) for x in xs]
            outs = self.region(jaxpr, [*fixed, *carry, *x], keys[t])
            carry, rows[t] = outs[:n_carry], self.dense(outs[n_carry:])
        if not rows:
            empty = [_jax.struct(v) for v in eqn.outvars[n_carry:]]
            return [*carry, *(_sum(jnp.zeros(s.shape, s.dtype)) for s in empty)]
        columns = zip(*(rows[t] for t in steps), strict=True)
        stacked = [self.axes.apply(lambda *xs: [jnp.stack(xs)], *column) for column in columns]
        return [*carry, *map(Sum, stacked)]

    def dense(self, values: list[Sum]) -> list[Spread]:
        """Sums evaluated."""
        return [value.dense(self.axes) for value in values]

    # ---- results

    def mean(self, out: Sum) -> jax.Array:
        """The sum over all paths of weight times outcome."""
        terms = [_float(term) for term in out.terms]
        for log_weight in self.log_weights:
            terms = [self.axes.apply(_weigh, log_weight, term)[0] for term in terms]
        terms = [self.shrink(term) for term in terms]
        for axis in reversed(range(len(self.axes.sizes))):
            here = [term for term in terms if term.blocks and term.blocks[-1][1] == axis + 1]
            if here:
                total = Sum(here).dense(self.axes)
                terms = [term for term in terms if term not in here]
                terms.append(self.axes.contract([self.weights[axis]], total))
        return sum(term.value for term in terms[1:]) + terms[0].value

    def shrink(self, term: Spread) -> Spread:
        """Sum a term on many paths over several axes at a time: fewer kernels to compile."""
        while term.blocks and math.prod(map(self.axes.size, term.blocks)) > MANY:
            start, stop = term.blocks[-1]
            first = stop - 1
            while first > start and self.axes.size((first - 1, stop)) <= MANY:
                first -= 1
            term = self.axes.contract(self.weights[first:stop], term)
        return term

    def reify(self, outs: list[Sum]) -> Paths:
        """All outcomes as flat lists, for a region that has to hand back arrays of one shape."""
        everything = (0, len(self.axes.sizes))
        zeros = Spread(jnp.zeros(self.axes.size(everything)), (everything,))
        zeros = zeros if self.axes.sizes else Spread(jnp.zeros(()))
        n, m = len(self.weights), len(self.log_weights)

        def one(zero: Any, *rest: Any) -> list[Any]:
            weights, log_weights, outs = rest[:n], rest[n : n + m], rest[n + m :]
            weight = math.prod(weights) * jnp.exp(sum(log_weights, start=zero))
            return [weight, *outs]

        found = self.axes.apply(one, zeros, *self.weights, *self.log_weights, *self.dense(outs))
        weights, *values = (x.value if x.blocks else jnp.asarray(x.value)[None] for x in found)
        return Paths(weights, values)


MANY = 256  # paths
LINEAR = {"neg", "reduce_sum", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type"}


def _sum(x: Any) -> Sum:
    return x if isinstance(x, Sum) else Sum([Spread(x)])


def _floats(values: list[Sum]) -> bool:
    return all(
        jnp.issubdtype(jnp.result_type(term.value), jnp.floating)
        for value in values
        for term in value.terms
    )


def _same_shape(eqn: _jax.JaxprEqn) -> bool:
    """Whether both operands have the result's shape and dtype, as terms must."""
    out = _jax.struct(eqn.outvars[0])
    return all(_jax.struct(v).shape == out.shape for v in eqn.invars)


def _float(term: Spread) -> Spread:
    value = jnp.asarray(term.value)
    if jnp.issubdtype(value.dtype, jnp.floating):
        return Spread(value, term.blocks)
    return Spread(value.astype(jnp.result_type(float)), term.blocks)


def _weigh(log_weight: Any, x: Any) -> list[Any]:
    return [x * jnp.exp(log_weight).astype(x.dtype)]


# ---- the outcomes of one equation, on one path


def outcomes(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Weighted outcomes of a site, or of a region that has to be entered as a whole."""
    if eqn.primitive is site_p:
        site = eqn.params["site"]
        estimator = plan.estimator(site)
        assert isinstance(estimator, Branching)
        drawn, weights = estimator.branch(key, Law(site, values))
        return Paths(weights, [drawn])
    if eqn.primitive is _jax.remat_p:
        body = jax.checkpoint(_region(plan, eqn.params["jaxpr"]), policy=eqn.params["policy"])
        return body(key, *values)
    if eqn.primitive is _jax.cond_p:
        return _cond(plan, eqn, values, key)
    raise refused(eqn, "an estimator with several values (Enumerate) needs a rule to enter it")


def _region(plan: Plan, region: Any) -> Callable[..., Paths]:
    jaxpr, consts = _jax.opened(region)

    def run(key: jax.Array, *values: Any) -> Paths:
        fan = Fan(plan)
        return fan.reify(fan.region(jaxpr, [_sum(x) for x in (*consts, *values)], key))

    return run


def _cond(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Every branch hands back as many outcomes as the largest, padded with weight 0."""
    index, *values = values
    branches = [_region(plan, branch) for branch in eqn.params["branches"]]
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
