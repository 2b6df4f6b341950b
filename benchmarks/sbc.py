"""Simulation-based calibration of varax's engines: five models, 1,000 replicates each.

A replicate draws parameters and data from the model, infers them again, and takes the rank of the
true value among 99 draws of the inference; ranks are uniform where the inference is exact (Talts
et al. 2018). `p` is the smallest p-value of any quantity (each parameter and the log density) by
the simultaneous test of Säilynoja et al. 2022, times the number of quantities; `verdict` is that of
`vx.sbc` with a false alarm in a thousand. No times are compared here.

    normal mean         mu ~ N(1, 2), y_i ~ N(mu, 1), i < 5
    beta-binomial       p ~ Beta(2, 3), y ~ Binomial(12, p)
    linear regression   a, b ~ N(0, 2), sigma ~ HalfNormal(1), y_i ~ N(a + b . x_i, sigma), i < 20
    hierarchical normal mu ~ N(0, 2), tau ~ HalfNormal(1), z_j ~ N(0, 1), y_j ~ N(mu + tau z_j, 1)
    Poisson log-linear  a, b ~ N(0, 0.5), y_i ~ Poisson(exp(a + b . x_i)), i < 20

    exact       the conjugate posterior
    NUTS        `vx.engines.one_chain`, 300 steps of warmup, every fifth of 495 draws
    full rank   a normal guide on the unconstrained space: the right family in the first model alone
    mean field  the same with a diagonal covariance, wrong on purpose for correlated predictors

    python benchmarks/sbc.py [--quick] [--save | --out FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import Report

import varax as vx
from varax import dist as d

jax.config.update("jax_enable_x64", True)

DRAWS, THIN, WARMUP = 99, 5, 300
STEPS, SAMPLES = 600, 8  # of the guides' optimisation
FALSE_ALARM = 1e-3
X = np.random.default_rng(0).normal(size=(20, 2)) @ np.array([[1.0, 0.9], [0.0, 0.45]])

# ---- models


@vx.model
def normal_mean():
    mu = vx.sample("mu", d.Normal(1.0, 2.0))
    vx.sample("y", d.Normal(mu, 1.0).expand([5]))


@vx.model
def beta_binomial():
    p = vx.sample("p", d.Beta(2.0, 3.0))
    vx.sample("y", d.Binomial(12, p))


@vx.model
def linear_regression():
    a = vx.sample("a", d.Normal(0.0, 2.0))
    b = vx.sample("b", d.Normal(0.0, 2.0).expand([2]))
    sigma = vx.sample("sigma", d.HalfNormal(1.0))
    vx.sample("y", d.Normal(a + X @ b, sigma))


@vx.model
def hierarchical_normal():
    mu = vx.sample("mu", d.Normal(0.0, 2.0))
    tau = vx.sample("tau", d.HalfNormal(1.0))
    z = vx.sample("z", d.Normal(0.0, 1.0).expand([8]))
    vx.sample("y", d.Normal(mu + tau * z, 1.0))


@vx.model
def poisson_log_linear():
    a = vx.sample("a", d.Normal(0.0, 0.5))
    b = vx.sample("b", d.Normal(0.0, 0.5).expand([2]))
    vx.sample("y", d.Poisson(jnp.exp(a + X @ b)))


MODELS = {
    "normal mean": normal_mean(),
    "beta-binomial": beta_binomial(),
    "linear regression": linear_regression(),
    "hierarchical normal": hierarchical_normal(),
    "Poisson log-linear": poisson_log_linear(),
}

# ---- engines: (key, measure) -> choices [DRAWS, ...]


def observed(target: vx.Measure, choices: Any) -> Any:
    """The data of a measure."""
    return target.generate(jax.random.key(0), choices)[0].recorded["y"]


def exact_normal(key: jax.Array, target: vx.Measure) -> Any:
    y = observed(target, {"mu": 0.0})
    precision = 1 / 4 + len(y)
    mean = (1 / 4 + y.sum()) / precision
    return {"mu": mean + precision**-0.5 * jax.random.normal(key, (DRAWS,))}


def exact_beta(key: jax.Array, target: vx.Measure) -> Any:
    y = observed(target, {"p": 0.5})
    return {"p": jax.random.beta(key, 2 + y, 3 + 12 - y, (DRAWS,))}


def nuts(key: jax.Array, target: vx.Measure) -> Any:
    choices, _ = vx.engines.one_chain(target, key, draws=THIN * DRAWS, warmup=WARMUP)
    return jax.tree.map(lambda x: x[THIN - 1 :: THIN], choices)


def gaussian(full: bool) -> Callable[[jax.Array, vx.Measure], Any]:
    """A normal guide on R^D, fitted along the path alone (Roeder, Wu and Duvenaud 2017)."""

    def infer(key: jax.Array, target: vx.Measure) -> Any:
        potential = target.potential()
        size = potential.size
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))

        def law(params: Any) -> d.Distribution:
            mean, raw = params
            scale = jnp.diag(jnp.exp(jnp.diag(raw))) + (jnp.tril(raw, -1) if full else 0.0)
            return d.MultivariateNormal(mean, scale_tril=scale)

        def loss(params: Any, key: jax.Array) -> Any:
            u = law(params).rsample(key, (SAMPLES,))
            log_q = law(jax.lax.stop_gradient(params)).log_prob(u)
            log_p = jax.vmap(lambda u: potential.log_density(potential.unravel(u)))(u)
            return (log_q - log_p).mean()

        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        params = (jnp.zeros(size), -1.0 * jnp.eye(size))
        fit, draw = jax.random.split(key)
        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(fit, STEPS))
        u = law(params).sample(draw, (DRAWS,))
        return jax.vmap(lambda u: potential.constrain(potential.unravel(u)))(u)

    return infer


CASES = [
    ("normal mean", "exact", exact_normal),
    ("normal mean", "NUTS", nuts),
    ("normal mean", "full rank", gaussian(full=True)),
    ("beta-binomial", "exact", exact_beta),
    ("beta-binomial", "NUTS", nuts),
    ("linear regression", "NUTS", nuts),
    ("linear regression", "full rank", gaussian(full=True)),
    ("linear regression", "mean field", gaussian(full=False)),
    ("hierarchical normal", "NUTS", nuts),
    ("Poisson log-linear", "NUTS", nuts),
    ("Poisson log-linear", "full rank", gaussian(full=True)),
]


def main() -> None:
    report = Report("sbc", __doc__)
    replicates = 100 if report.quick else 1000
    rows = []
    for seed, (model, engine, infer) in enumerate(CASES):
        began = time.perf_counter()
        found = vx.sbc(
            MODELS[model],
            infer,
            jax.random.key(seed),
            observed="y",
            replicates=replicates,
            batch=min(250, replicates),
            false_alarm=FALSE_ALARM,
        )
        p = found.p_values
        worst = min(p, key=p.__getitem__)
        verdict = "passed" if found.passed else "NOT passed"
        seconds = time.perf_counter() - began
        smallest = min(1.0, p[worst] * len(p))
        cells = (f"{len(found.ranks)}", f"{len(p)}", f"{smallest:.2g}", worst, verdict)
        rows.append((f"{model}, {engine}", *cells, f"{seconds:.0f}"))
    report.table(
        ("model, engine", "replicates", "quantities", "p", "smallest at", "verdict", "s"), rows
    )
    report.close()


if __name__ == "__main__":
    main()
