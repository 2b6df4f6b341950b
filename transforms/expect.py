"""Expectations: `expect(f)(key, *args)` is unbiased for E[f(*args)], and so are its derivatives.

    law:  E[d^n expect(f)(key, theta) / d theta^n]  =  d^n E[f(theta)] / d theta^n

Each site's estimator (`plan.py`) replaces the draw by weighted values (`estimators/base.py`). The
program is cut into the terms that its outputs are sums of (`credit.py`), run once on all its paths
(`paths.py`), and each term is multiplied by the weights of the choices that it depends on
(`weighing.py`). The code is linear in the number of sites.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .credit import assign
from .dependence import Analysis
from .errors import ObjectiveError
from .estimators import Estimator
from .flat import Flat, flatten
from .paths import Fan
from .plan import Plan
from .site import Address
from .staging import stage
from .weighing import RUNS


Estimators = Mapping[str | tuple[str, ...], Estimator]


def expect(
    f: Callable[..., Any], *, strict: bool = False, estimators: Estimators | None = None
) -> Callable[..., Any]:
    """`(key, *args) -> estimate of E[f(*args)]`, a pytree like f's.

    Outputs that are not floats are returned as drawn; where a site has several values, or several
    runs are compared, they are averaged as floats.

    Args:
        f: a program.
        strict: refuse deliberately biased estimators.
        estimators: by address (`"z"`, `"local/z"`), in the place of those that f asks for.

    Raises:
        CapabilityError: f observes or weighs (`obs=`, `vx.factor`): it is a model, not a draw.
        EstimatorError: an estimator cannot serve its site.
        UnsoundEstimatorError: a pathwise choice reaches a discontinuous operation.
    """

    @functools.wraps(f)
    def estimate(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        staged = stage(lambda: f(*args, **kwargs))
        plan = Plan(staged.jaxpr, strict=strict, estimators=by_path(estimators))
        return staged.rebuild(run(plan, staged.jaxpr, staged.consts, key))

    return estimate


def by_path(estimators: Estimators | None) -> dict[Address, Estimator]:
    """Keys as addresses."""
    given = (estimators or {}).items()
    return {tuple(a.split("/")) if isinstance(a, str) else a: e for a, e in given}


def run(plan: Plan, jaxpr: Any, operands: list[Any], key: jax.Array) -> list[Any]:
    """Estimates of a program's outputs."""
    flat = flatten(jaxpr, plan)
    credit = assign(flat, Analysis(plan.elements))
    coupled = plan.settle(flat, credit)

    def once(key: jax.Array) -> list[Any]:
        fan = Fan(plan, flat, credit, coupled)
        fan.run(operands, key)
        outs = fan.outputs()
        if added := fan.weights.added() + _errors(fan):
            _require_scalar(flat)
            outs[0] = outs[0] + sum(fan.mean_of(x) for x in added).astype(outs[0].dtype)
        return outs

    if (n := plan.particles) == 1:
        return once(key)
    outs = jax.vmap(once, axis_name=RUNS)(jax.random.split(key, n))
    return [_mean(x) if at in flat.random else x[0] for x, at in zip(outs, flat.outs, strict=True)]


def _errors(fan: Fan) -> list[Any]:
    """What trains baselines: each compares its choice's share of the objective with a guess.

    The share of an element is the derivative of the objective in its log weight.
    """
    trained = fan.weights.regressions()
    if not trained:
        return []
    _require_scalar(fan.flat)
    zeros = {n: jnp.zeros(fan.credit.found.shapes[n]) for n in trained}
    signals = jax.grad(lambda shift: fan.outputs(shift, only=1)[0])(zeros)
    return fan.weights.errors(jax.lax.stop_gradient(signals))


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float).mean(0)


def _require_scalar(flat: Flat) -> None:
    """Baselines and controls are for one number."""
    shape = flat.shape(flat.outs[0]) if flat.outs else None
    if shape != ():
        raise ObjectiveError(
            "A baseline or a control variate needs an objective that is one number.",
            expected="a scalar, alone or first",
            got="nothing" if shape is None else f"shape {shape}",
            fix="return the mean or the sum, or use estimators without them (Score(), Reparam())",
        )
