"""Expectations: `expect(f)(key, *args)` is unbiased for E[f(*args)], and so are its derivatives.

    law:  E[d^n expect(f)(key, theta) / d theta^n]  =  d^n E[f(theta)] / d theta^n

Each site's estimator replaces the draw by weighted values (see `estimators/base.py`). A program
whose sites have one value each runs in `direct` style; one in which some have several runs on all
their `paths` at once. Either way the code is linear in the number of sites.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from . import paths
from .direct import Expect, weighed
from .interpreter import evaluate
from .plan import Plan
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
            outs = paths.mean(plan, staged.jaxpr, staged.consts, key)
        else:
            handler = Expect(plan, key)
            outs = evaluate(handler, staged.jaxpr, staged.consts)
            outs = [weighed(handler.log_weight, x) for x in outs]
        return staged.rebuild(outs)

    return estimate
