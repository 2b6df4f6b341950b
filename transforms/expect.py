"""Expectations: `expect(f)(key, *args)` is unbiased for E[f(*args)], and so are its derivatives.

    law:  E[d^n expect(f)(key, theta) / d theta^n]  =  d^n E[f(theta)] / d theta^n

Each site's estimator (`plan.py`) replaces the draw by weighted values (`estimators/base.py`). The
program is cut into the terms that its outputs are sums of (`credit.py`), run once on all its paths
(`paths.py`), and each term is multiplied by the weights of the choices that it depends on
(`weighing.py`). The code is linear in the number of sites.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from . import _jax
from .controls import controls
from .credit import assign
from .dependence import Analysis
from .errors import EstimatorError, KeyArgumentError
from .estimators import Estimator, Reparam
from .flat import Flat, Op, flatten
from .law import Law
from .noise import NoNoiseError
from .paths import Fan
from .plan import Plan
from .planning import planned
from .site import Address, Site, eqn_has_sites, site_p
from .strategies import Strategy, no_rule
from .weighing import RUNS

Estimators = Mapping[Any, Estimator]  # by address: a string, or a tuple of them


def expect(
    f: Callable[..., Any],
    *,
    using: Strategy | None = None,
    strict: bool = False,
    estimators: Estimators | None = None,
) -> Callable[..., Any]:
    """`(key, *args) -> estimate of E[f(*args)]`, a pytree like f's.

    Outputs that are not floats are returned as drawn; where a site has several values, or several
    runs are compared, they are averaged as floats.

    Args:
        f: a program.
        using: how the expectation is taken (`strategies.py`); one run by default.
        strict: refuse deliberately biased estimators.
        estimators: by address (`"z"`, `"local/z"`), in the place of those that f asks for.

    Raises:
        CapabilityError: f observes or weighs (`obs=`, `vx.factor`): it is a model, not a draw.
        EstimatorError: an estimator cannot serve its site.
        UnsoundEstimatorError: a pathwise choice reaches a discontinuous operation.
    """
    if using is not None and not isinstance(using, Strategy):
        raise _not_an_instance("a strategy", using, "varax.strategies.MonteCarlo(16)")

    @functools.wraps(f)
    def estimate(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        require_key(key)
        asked = by_path(estimators)
        program = functools.partial(f, *args, **kwargs)
        staged, plan = planned(program, strict=strict, estimators=asked, using=using)
        return staged.rebuild(run(plan, staged.jaxpr, staged.consts, key))

    return estimate


def require_key(key: Any) -> None:
    """Raise unless this is a random key, new or old style."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return
    if dtype == jnp.uint32 and jnp.ndim(key) == 1:
        return
    raise KeyArgumentError(
        "The first argument is the random key.",
        expected="a key, such as jax.random.key(0), then the program's own arguments",
        got=repr(key) if dtype is None else f"an array of {dtype}{list(jnp.shape(key))}",
        where=user_line(),
        fix="vx.grad(f)(key, ...), vx.value_and_grad(f)(key, ...), vx.expect(f)(key, ...)",
    )


def _not_an_instance(what: str, got: Any, example: str) -> EstimatorError:
    return EstimatorError(
        f"This is not {what}.",
        expected=f"an instance, such as {example}",
        got=repr(got),
        where=user_line(),
    )


def by_path(estimators: Estimators | None) -> dict[Address, Estimator]:
    """Keys as addresses."""
    given = (estimators or {}).items()
    for _, estimator in given:
        if not isinstance(estimator, Estimator):
            raise _not_an_instance("an estimator", estimator, "varax.estimators.Score()")
    return {tuple(a.split("/")) if isinstance(a, str) else a: e for a, e in given}


def run(plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array) -> list[Any]:
    """Estimates of a program's outputs."""
    flat = flatten(jaxpr, plan)
    credit = assign(flat, Analysis(plan.elements))
    coupled = plan.settle(flat, credit)

    chosen = _chosen_noise(plan, flat)
    dimension = sum(math.prod(shape) for shape in chosen.values())
    n = plan.runs(dimension)

    def once(key: jax.Array, noise: jax.Array | None = None) -> list[Any]:
        fan = Fan(plan, flat, credit, coupled)
        if noise is not None:
            fan.noise = _cut(noise, chosen)
        fan.weights.averaged = n > 1
        fan.run(operands, key)
        outs = fan.outputs()
        for i, control in controls(fan):
            outs[i] = outs[i] + control.astype(outs[i].dtype)
        return outs

    if n == 1 and not plan.using.chooses:
        return once(key)
    many = jax.random.split(key, n)
    if plan.using.chooses:
        points = plan.using.points(jax.random.fold_in(key, n), dimension)  # [n, dimension]
        outs = jax.vmap(once, axis_name=RUNS)(many, points)
    else:
        outs = jax.vmap(once, axis_name=RUNS)(many)
    weights = plan.using.weights(dimension) if plan.using.runs(dimension) == n else [1 / n] * n
    averaged = functools.partial(_mean, weights=jnp.asarray(weights))
    random = [isinstance(at, int) and at in flat.random for at in flat.outs]
    return [averaged(x) if r else x[0] for x, r in zip(outs, random, strict=True)]


def _chosen_noise(plan: Plan, flat: Flat) -> dict[int, tuple[int, ...]]:
    """Shapes of the choices whose noise the strategy chooses, by number among what draws."""
    found: dict[int, tuple[int, ...]] = {}
    if not plan.using.chooses:
        return found
    for i, op in enumerate(op for op in flat.ops if eqn_has_sites(op.eqn)):
        site = op.eqn.params.get("site") if op.eqn.primitive is site_p else None
        if site is None or type(plan.estimator(site)) is not Reparam:
            continue
        if _from_noise(site, op):
            found[i] = site.shape
        elif plan.using.exact:
            raise no_rule(
                plan.using, Law(site, []), "a (multivariate) normal, or a scalar with an icdf"
            )
    return found


def _from_noise(site: Site, op: Op) -> bool:
    structs = [_jax.struct(v) for v in op.eqn.invars]
    noise = jax.ShapeDtypeStruct(site.shape, site.value.dtype)
    try:
        jax.eval_shape(Law.of_noise(site), structs, noise)
    except NoNoiseError:
        return False
    return True


def _cut(noise: jax.Array, chosen: dict[int, tuple[int, ...]]) -> dict[int, jax.Array]:
    """One run's noise, shared out."""
    parts, at = {}, 0
    for number, shape in chosen.items():
        size = math.prod(shape)
        parts[number] = noise[at : at + size].reshape(shape)
        at += size
    return parts


def _mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
    return jnp.tensordot(weights.astype(x.dtype), x, 1)
