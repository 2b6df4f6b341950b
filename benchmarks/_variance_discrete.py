"""Estimators of discrete choices: coins and a chain (variance.py)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from _report import Report
from _variance_spread import HEAD, Claim, compare, descend, rows, spread, squared
from enumeration import SD, X, doubling, weights

import varax as vx
from varax import dist as d
from varax import estimators as est


def coins(report: Report, n: int, steps: int) -> None:
    """The usual toy, n = 6 coins, as a sum over them and as a function of their number."""
    logits = jnp.array([0.5, -1.0, 0.2, 1.5, -0.4, -0.1])
    size = len(logits)
    everything = jnp.array(list(itertools.product((0.0, 1.0), repeat=size)))

    def toss(cost, logits, estimator):
        return cost(vx.sample("b", d.Bernoulli(logits=logits), estimator=estimator))

    for name, cost in {
        "E[sum (b_i - 0.499)^2]": lambda b: ((b - 0.499) ** 2).sum(),
        "E[(sum b_i - 0.499 n)^2]": lambda b: (b.sum() - 0.499 * size) ** 2,
    }.items():

        def mean(logits, cost=cost):
            log_q = npd.Bernoulli(logits=logits).log_prob(everything).sum(1)
            return jnp.exp(log_q) @ jax.vmap(cost)(everything)

        def estimate(e, key, cost=cost):
            return vx.grad(lambda x: toss(cost, x, e))(key, logits)

        def rebar(tuned):
            return est.REBAR(jnp.exp(tuned[0]), tuned[1])

        def quadratic(w, r):
            return w["a"] + r @ w["b"] + r @ w["c"] @ r

        def relax(tuned):
            w, log_t = tuned
            return est.RELAX(jax.tree_util.Partial(quadratic, w), jnp.exp(log_t))

        zero = {"a": 0.0, "b": jnp.zeros(size), "c": jnp.zeros((size, size))}
        at = descend(squared(lambda t, k: estimate(rebar(t), k)), jnp.array([-0.7, 1.0]), steps)
        surrogate = descend(squared(lambda t, k: estimate(relax(t), k)), (zero, -0.7), steps)
        families: dict[str, tuple[Any, int]] = {
            "Score": (est.Score(), 1),
            "LeaveOneOut(2)": (est.Score(est.LeaveOneOut(2)), 2),
            "LeaveOneOut(4)": (est.Score(est.LeaveOneOut(4)), 4),
            "REBAR(0.5)": (est.REBAR(0.5), 3),
            "REBAR, tuned": (rebar(at), 3),
            "RELAX": (relax(surrogate), 1),
            "ARM": (est.ARM(), 2),
            "DisARM": (est.DisARM(), 2),
            "SumAndSample(1)": (est.SumAndSample(1), 2),
            "SumAndSample(3)": (est.SumAndSample(3), 4),
            "WithoutReplacement(2)": (est.WithoutReplacement(2), 2),
            "WithoutReplacement(4)": (est.WithoutReplacement(4), 4),
            "MeasureValued": (est.MeasureValued(), 1 + size),
        }
        exact = jax.grad(mean)(logits)
        found = {
            label: (spread(lambda key, e=e: estimate(e, key), exact, n), runs)
            for label, (e, runs) in families.items()
        }
        report.say(f"\n\ncoins: {name}, n = {size}; REBAR tuned to {at[0]:.2f}, {at[1]:.2f}")
        report.table(HEAD, rows(found))
        compare(report, found, *PUBLISHED)


PUBLISHED: tuple[Claim, ...] = (
    ("DisARM", "ARM", False),  # Dong, Mnih and Tucker 2020; Yin et al. 2020
    ("ARM", "Score", True),  # Yin and Zhou 2019
    ("DisARM", "LeaveOneOut(2)", False),  # Dong et al. 2020
    ("LeaveOneOut(2)", "Score", True),  # if (E k)^2 > Var k: the baseline is as random as k
    ("LeaveOneOut(4)", "Score", True),
    ("LeaveOneOut(4)", "LeaveOneOut(2)", True),
    ("WithoutReplacement(4)", "LeaveOneOut(4)", False),  # Kool et al. 2020
    ("REBAR, tuned", "Score", False),  # Tucker et al. 2017
    ("RELAX", "Score", False),  # Grathwohl et al. 2018
)


def chain(report: Report, n: int, steps: int) -> None:
    """Estimators of all six choices; those with several values multiply the paths."""
    size = 6
    a, b = 0.5 * jax.random.normal(jax.random.key(3), (2, size))
    low, high = (math.log(p / (1 - p)) for p in (0.3, 0.6))

    @vx.model
    def model():
        z, mean = 0.0, 0.0
        for i, w in enumerate(weights(size)):
            z = vx.sample(f"z{i}", d.Bernoulli(logits=low + (high - low) * z))
            mean = mean + w * z
        vx.sample("x", d.Normal(mean, SD))

    @vx.model
    def guide(phi, make):
        z, mean = 0.0, 0.0
        for i, (a, b, w) in enumerate(zip(*phi, weights(size), strict=True)):
            z = vx.sample(f"z{i}", d.Bernoulli(logits=a + b * z), estimator=make(i, z, mean))
            mean = mean + w * z

    def elbo(phi, make):
        return vx.objectives.elbo(model(), guide(phi, make), {"x": X})

    def estimate(make, key, objective=elbo):
        return vx.grad(lambda phi: objective(phi, make))(key, (a, b))

    def relaxed(phi, make):  # the same objective for z between 0 and 1
        z, mean, total = 0.0, 0.0, 0.0
        for i, (a, b, w) in enumerate(zip(*phi, weights(size), strict=True)):
            q, p = a + b * z, low + (high - low) * z
            z = vx.sample(f"z{i}", d.Bernoulli(logits=q), estimator=make(i, z, mean))
            total = total + z * (p - q) + jax.nn.softplus(q) - jax.nn.softplus(p)
            mean = mean + w * z
        return total + npd.Normal(mean, SD).log_prob(X)

    def constantly(e):
        return lambda i, z, mean: e

    def line(c, r):
        return c @ jnp.array([1.0, r])

    def relax(tuned):  # a line in r, its coefficients linear in what was drawn before
        def make(i, z, mean):
            before = jnp.stack([1.0, z, mean, mean**2]).astype(float)
            return est.RELAX(jax.tree_util.Partial(line, tuned["w"][i] @ before), 0.5)

        return make

    start = {"w": jnp.zeros((size, 2, 4))}
    tuned = descend(squared(lambda t, k: estimate(relax(t), k)), start, 4 * steps)
    families: dict[str, tuple[Any, int]] = {
        "Score": (constantly(est.Score()), 1),
        "LeaveOneOut(2)": (constantly(est.Score(est.LeaveOneOut(2))), 2),
        "LeaveOneOut(4)": (constantly(est.Score(est.LeaveOneOut(4))), 4),
        "RELAX": (relax(tuned), 1),
        "ARM": (constantly(est.ARM()), 2**size),
        "DisARM": (constantly(est.DisARM()), 2**size),
        "REBAR(0.5)": (constantly(est.REBAR(0.5)), 3**size),
        "MeasureValued": (constantly(est.MeasureValued()), 2**size),
        "WithoutReplacement(2)": (constantly(est.WithoutReplacement(2)), 2**size),
    }
    exact = jax.grad(lambda phi: doubling(size)(phi)[0])((a, b))
    found = {
        label: (
            spread(
                lambda key, m=m, o=relaxed if "REBAR" in label else elbo: estimate(m, key, o),
                exact,
                n if runs < 64 else n // 4,
                256,
            ),
            runs,
        )
        for label, (m, runs) in families.items()
    }
    report.say(f"\n\nchain: ELBO, K = {size}; runs counts paths, the product over the choices")
    report.table(HEAD, rows(found))
    compare(
        report,
        found,
        *(c for c in PUBLISHED if {c[0], c[1]} <= found.keys() and found[c[0]][1] < 64),
    )
