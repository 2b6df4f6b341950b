"""Measure-valued derivatives of a normal choice (variance.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import Report
from _variance_spread import spread

import varax as vx
from varax import dist as d
from varax import estimators as est

COSTS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # k, and how it looks from one sd away
    "(x - 1)^2": ("slow", lambda x: (x - 1) ** 2),
    "exp(-(x - 1)^2)": ("slow", lambda x: jnp.exp(-((x - 1) ** 2))),
    "exp(x / 2)": ("slow", lambda x: jnp.exp(x / 2)),
    "sin(x)": ("slow", jnp.sin),
    "cos(x)": ("slow", jnp.cos),
    "softplus(3 x)": ("slow", lambda x: jax.nn.softplus(3 * x)),
    "x^3 - x": ("slow", lambda x: x**3 - x),
    "cos(3 x)": ("fast", lambda x: jnp.cos(3 * x)),
    "cos(10 x)": ("fast", lambda x: jnp.cos(10 * x)),
    "exp(-10 (x - 1)^2)": ("fast", lambda x: jnp.exp(-10 * (x - 1) ** 2)),
    "|x|": ("rough", jnp.abs),
    "[x > 0.5]": ("rough", lambda x: 1.0 * (x > 0.5)),
}


def normal(report: Report, n: int) -> None:
    """Shared noise against separate noise."""
    loc, scale = 0.4, 0.8
    grid = np.linspace(-12, 12, 2**20)
    phi = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    table, worst = [], np.zeros(2)
    for name, (kind, k) in COSTS.items():
        values = np.asarray(k(jnp.asarray(loc + scale * grid)), float) * phi
        exact = np.array([values @ grid, values @ (grid**2 - 1)]) / scale

        def f(theta, shared, k=k):
            e = est.MeasureValued(coupled_noise=shared)
            return k(vx.sample("x", d.Normal(theta[0], theta[1]), estimator=e))

        one, two = (
            spread(lambda key, c=c, f=f: vx.grad(f)(key, jnp.array([loc, scale]), c), exact, n)
            for c in (True, False)
        )
        ratio = one.sd / two.sd
        worst = np.maximum(worst, ratio) if kind == "slow" else worst
        table.append(
            (
                f"{kind}: {name}",
                *(f"{v:.3g}" for s in (two, one) for v in s.sd),
                *(f"{v:.3f}" for v in ratio),
                f"{2 * ratio[0] ** 2:.2f}",
                *(s.verdict(2 * len(COSTS)) for s in (one, two)),
            )
        )
    report.say(f"\n\nnormal: sd of d/dloc and d/dscale of E[k(x)], x ~ Normal({loc}, {scale})")
    head = ("k(x)", "separate: loc", "scale", "shared: loc", "scale", "ratio: loc", "scale")
    report.table((*head, "loc: var x runs", "z shared", "z separate"), table)
    report.say(f"largest ratios of slow costs: {worst[0]:.3f}, {worst[1]:.3f}; aim 0.64")
    report.say("runs of a difference: loc 4 shared, 2 separate; scale 2 (one is the draw itself)")
