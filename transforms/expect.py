"""Expectations: `expect(f)(key, *args)` is unbiased for E[f(*args)], and so are its derivatives.

    law:  E[d^n expect(f)(key, theta) / d theta^n]  =  d^n E[f(theta)] / d theta^n

Each site's estimator replaces the draw by weighted values (see `estimators/base.py`). Sites with
one value run in direct style: the log weights add up, inside scan and cond as outputs of the body,
and exp of their sum, which is 1, multiplies the outputs. After a site with several values the rest
of the program runs once, under `vmap`: code stays linear in the number of sites, and arithmetic
that does not depend on a site is not repeated for its values.

Where several values arise inside a region (jit, scan, cond, checkpoint), the region hands back all
its paths, `Paths`, and the rest of the program goes on under `vmap` over them. A scan of such a
body is unrolled, since the number of paths grows with every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _jax
from .errors import CapabilityError
from .estimators import Branching, Direct
from .interpreter import Handler, evaluate, read, refused, step
from .law import Law
from .plan import Plan
from .seed import Keyed
from .site import Site, eqn_has_sites, site_p
from .staging import stage


def expect(f: Callable[..., Any]) -> Callable[..., Any]:
    """`(key, *args) -> estimate of E[f(*args)]`, a pytree like f's.

    Outputs that are not floats are returned as drawn; where a site is enumerated they are averaged
    as floats.

    Raises:
        CapabilityError: f observes or weighs (`obs=`, `vx.factor`): it is a model, not a draw.
        EstimatorError: an estimator cannot serve its site.
    """

    @functools.wraps(f)
    def estimate(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        staged = stage(lambda: f(*args, **kwargs))
        plan = Plan(staged.jaxpr)
        if plan.branches(staged.jaxpr):
            outs = _mean(plan, staged.jaxpr, staged.consts, key)
        else:
            handler = Expect(plan, key)
            outs = evaluate(handler, staged.jaxpr, staged.consts)
            outs = [_weighed(handler.log_weight, x) for x in outs]
        return staged.rebuild(outs)

    return estimate


class Expect(Keyed):
    """Direct style: draw each site by its estimator and add up the log weights."""

    def __init__(self, plan: Plan, key: jax.Array):
        super().__init__(key)
        self.plan = plan
        self.log_weight: Any = jnp.zeros(())

    def site(self, site: Site, operands: list[Any]) -> Any:
        key = next(self.keys)
        if site.kind == "record":
            return operands[-1]
        if site.kind != "draw":
            raise _weighs(site)
        estimator = self.plan.estimator(site)
        assert isinstance(estimator, Direct)
        value, log_weight = estimator.draw(key, Law(site, operands))
        self.log_weight = self.log_weight + log_weight
        return value

    def inside(self, entered: Any) -> Expect:
        return Expect(self.plan, entered)

    def effects(self) -> Any:
        return self.log_weight

    def leave(self, effects: Any) -> None:
        self.log_weight = self.log_weight + effects

    def leave_scan(self, effects: Any, length: int) -> None:
        self.leave(effects.sum(0))

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        return next(self.keys), jnp.zeros_like(self.log_weight)

    def inside_while(self, carried: Any) -> Expect:
        return Expect(self.plan, jax.random.split(carried[0])[0])

    def next_while(self, carried: Any, step: Handler) -> Any:
        return jax.random.split(carried[0])[1], carried[1] + step.effects()

    def leave_while(self, carried: Any) -> None:
        self.leave(carried[1])


class Paths(NamedTuple):
    """The outcomes of a region: outs have a leading axis of the weights' length."""

    weights: jax.Array  # [L]
    outs: list[jax.Array]  # each [L, ...]


Rest = Callable[[list[Any], Any], Any]  # (outputs of a region, log weight) -> result
Combine = Callable[[jax.Array, Any], Any]  # (weights [L], results with leading axis L) -> result


def _mean(plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array) -> list[Any]:
    """The expected outputs of a program: sums are taken where a site branches, innermost first."""

    def rest(outs: list[Any], log_weight: Any) -> list[Any]:
        return [_weighed(log_weight, x) for x in outs]

    def combine(weights: jax.Array, results: list[Any]) -> list[Any]:
        return [_average(weights, x) for x in results]

    return _run(plan, jaxpr, operands, key, rest, combine)


def _paths(plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array) -> Paths:
    """All outcomes of a region."""

    def rest(outs: list[Any], log_weight: Any) -> Paths:
        return Paths(jnp.exp(log_weight)[None], [jnp.asarray(x)[None] for x in outs])

    return _run(plan, jaxpr, operands, key, rest, _product)


def _product(weights: jax.Array, inner: Paths) -> Paths:
    """Outcomes of outcomes: the two leading axes become one."""
    flat = [x.reshape((-1, *x.shape[2:])) for x in inner.outs]
    return Paths((weights[:, None] * inner.weights).reshape(-1), flat)


def _run(
    plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array, rest: Rest, combine: Combine
) -> Any:
    """Continuation-passing style: equations in order; what branches is mapped over its values."""
    handler = Expect(plan, key)
    handler.begin(jaxpr)
    drawing = [eqn for eqn in jaxpr.eqns if eqn_has_sites(eqn)]
    keys = {id(eqn): k for eqn, k in zip(drawing, handler.keys, strict=True)}

    def go(i: int, env: dict[Any, Any], log_weight: Any) -> Any:
        env = dict(env)
        for at in range(i, len(jaxpr.eqns)):
            eqn = jaxpr.eqns[at]
            values = [read(env, v) for v in eqn.invars]
            if plan.branches_at(eqn):
                paths = _branch(plan, eqn, values, keys[id(eqn)])

                def lane(outs: list[Any], at: int = at, log_weight: Any = log_weight) -> Any:
                    eqn = jaxpr.eqns[at]
                    return go(at + 1, env | dict(zip(eqn.outvars, outs, strict=True)), log_weight)

                return combine(paths.weights, jax.vmap(lane)(paths.outs))
            direct = Expect(plan, key)
            direct.keys = iter([keys[id(eqn)]] if id(eqn) in keys else [])
            env.update(zip(eqn.outvars, step(direct, eqn, values), strict=True))
            log_weight = log_weight + direct.log_weight
        return rest([read(env, v) for v in jaxpr.outvars], log_weight)

    env = dict(zip(_jax.input_vars(jaxpr), operands, strict=True))
    return go(0, env, jnp.zeros(()))


def _branch(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """The outcomes of one equation that branches."""
    if eqn.primitive is site_p:
        site = eqn.params["site"]
        estimator = plan.estimator(site)
        assert isinstance(estimator, Branching)
        drawn, weights = estimator.branch(key, Law(site, values))
        return Paths(weights, [drawn])
    rule = _BRANCHING.get(eqn.primitive)
    if rule is None:
        raise refused(eqn, "an estimator with several values (Enumerate) needs a rule to enter it")
    return rule(plan, eqn, values, key)


def _inline(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    jaxpr, consts = _jax.opened(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"])
    return _paths(plan, jaxpr, [*consts, *values], key)


def _checkpoint(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    jaxpr, consts = _jax.opened(eqn.params["jaxpr"])

    def body(key: jax.Array, *values: Any) -> Paths:
        return _paths(plan, jaxpr, [*consts, *values], key)

    return jax.checkpoint(body, policy=eqn.params["policy"])(key, *values)


def _cond(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Every branch hands back as many outcomes as the largest, padded with weight 0."""
    index, *values = values

    def branch(region: Any) -> Callable[..., Paths]:
        jaxpr, consts = _jax.opened(region)
        return lambda key, *values: _paths(plan, jaxpr, [*consts, *values], key)

    branches = [branch(b) for b in eqn.params["branches"]]
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


def _scan(plan: Plan, eqn: _jax.JaxprEqn, values: list[Any], key: jax.Array) -> Paths:
    """Unrolled: every step continues all paths so far."""
    params = eqn.params
    jaxpr, inner = _jax.opened(params["jaxpr"])
    n_consts, n_carry = _jax.scan_counts(eqn)
    consts, xs = values[:n_consts], values[n_consts + n_carry :]
    length = params["length"]
    keys = jax.random.split(key, length)
    order = range(length)[::-1] if params["reverse"] else range(length)

    def go(done: int, carry: Sequence[Any], ys: list[list[Any]]) -> Paths:
        if done == length:
            inorder = ys[::-1] if params["reverse"] else ys
            stacked = [jnp.stack(column) for column in zip(*inorder, strict=True)]
            return Paths(jnp.ones((1,)), [jnp.asarray(x)[None] for x in (*carry, *stacked)])
        t = order[done]
        operands = [*inner, *consts, *carry, *(x[t] for x in xs)]
        paths = _paths(plan, jaxpr, operands, keys[t])

        def lane(outs: list[Any]) -> Paths:
            return go(done + 1, outs[:n_carry], [*ys, outs[n_carry:]])

        return _product(paths.weights, jax.vmap(lane)(paths.outs))

    return go(0, values[n_consts : n_consts + n_carry], [])


_BRANCHING = {
    _jax.jit_p: _inline,
    _jax.closed_call_p: _inline,
    _jax.remat_p: _checkpoint,
    _jax.cond_p: _cond,
    _jax.scan_p: _scan,
}


def _weighed(log_weight: Any, x: Any) -> Any:
    """x times exp(log_weight), which is 1; what is not a float has no derivative to mend."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return x * jnp.exp(log_weight).astype(jnp.result_type(x))


def _average(weights: jax.Array, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(weights.dtype)
    return jnp.tensordot(weights.astype(x.dtype), x, axes=1)


def _weighs(site: Site) -> CapabilityError:
    kind = "an observation" if site.kind == "observe" else "a factor"
    return CapabilityError(
        f"expect needs a program that is a draw; this one has {kind}, which would be ignored.",
        address=site.address,
        where=site.line,
        expected="random choices only",
        got="an unnormalised program",
        fix="score the model with m.log_density(choices) inside an objective, or normalise it",
    )
