"""What a fit takes from end to end, compilation included: `vx.fit` beside NumPyro's `SVI.run`.

Five models, each written in both systems with the same mean-field guide, initial values, optimiser
(Adam, 0.01) and number of steps; no progress bar. All of JAX's and varax's caches are empty before
each fit, as in a fresh process that has imported both. The VAE takes minibatches by the means of
each system: `batch_size=` there, a subsampling plate here.

    linear      y ~ N(X w, sigma),  w ~ N(0, 1)^10,  sigma ~ LogNormal(0, 1)         N = 200
    logistic    y ~ Bernoulli(sigmoid(X w)),  w ~ N(0, 1)^10                         N = 500
    schools     eight schools, non-centred (Rubin 1981)                              N = 8
    vae         64-200-8-200-64 on scanned digits, Binomial(16)             N = 1500, B = 100
    radon       varying intercepts in 85 counties, simulated (Gelman and Hill 2007)  N = 919

Reported: seconds of CPU and wall time, and their ratio, formed within each round. First, that the
last objectives agree. Aim: at most 1.0 times NumPyro on every model.

    python benchmarks/fit.py [--quick] [--save | --out FILE] [--only MODEL] [--rounds N]
                             [--profile MODEL]
"""

from __future__ import annotations

import cProfile
import dataclasses
import gc
import math
import pstats
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
import optax
from _report import Report, Runs, forget, spread, timed
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro
from sklearn.datasets import load_digits

import varax as vx
from varax import dist as d

RATE, BATCH, LEVELS = 0.01, 100, 16
RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class Model:
    """One model in both systems; the NumPyro forms take (params, data)."""

    params: Any
    data: Any
    objective: Callable[..., Any]
    model: Callable[..., Any]
    guide: Callable[..., Any]
    batch: int | None = None
    per: int = 1  # what NumPyro's loss is divided by, to be varax's objective

    def varax(self, steps: int, key: jax.Array) -> Any:
        adam = optax.adam(RATE)
        if self.batch is None:
            return vx.fit(self.objective, self.params, adam, steps, key, progress=False).history
        data = {"data": self.data, "batch_size": self.batch}
        return vx.fit(self.objective, self.params, adam, steps, key, **data, progress=False).history

    def numpyro(self, steps: int, key: jax.Array) -> Any:
        svi = SVI(self.model, self.guide, optax_to_numpyro(optax.adam(RATE)), Trace_ELBO())
        losses = svi.run(key, steps, self.data, progress_bar=False).losses
        return -np.asarray(losses) / self.per


def mean_field(**sizes):
    """Means 0 and log-scales -1."""
    return {
        name: {"m": jnp.zeros(shape), "s": jnp.full(shape, -1.0)} for name, shape in sizes.items()
    }


def normals(sample, dist, phi, positive=()):
    """The guide of all models but the VAE: normal, or log-normal for positive values."""
    for name, q in phi.items():
        kind = dist.LogNormal if name in positive else dist.Normal
        law = kind(q["m"], jnp.exp(q["s"]))
        sample(name, law.to_event(1) if dist is npd and jnp.ndim(q["m"]) else law)


def both(sizes, data, model, positive=()):
    """A model written once for `sample` and a family of distributions, in both systems."""

    @vx.model
    def varax_model():
        model(vx.sample, d, lambda law: law, data)

    @vx.model
    def varax_guide(phi):
        normals(vx.sample, d, phi, positive)

    def objective(phi):
        return vx.objectives.elbo(varax_model(), varax_guide(phi), {})

    def numpyro_model(data):
        model(numpyro.sample, npd, lambda law: law.to_event(1), data)

    def numpyro_guide(data):
        start = mean_field(**sizes)
        phi = {
            name: {k: numpyro.param(f"{name}_{k}", x) for k, x in q.items()}
            for name, q in start.items()
        }
        normals(numpyro.sample, npd, phi, positive)

    return Model(mean_field(**sizes), data, objective, numpyro_model, numpyro_guide)


# ---- the models


def linear():
    x = RNG.normal(size=(200, 10)).astype(np.float32)
    y = x @ RNG.normal(size=10) + RNG.normal(size=200)

    def model(sample, dist, event, data):
        w = sample("w", event(dist.Normal(jnp.zeros(10), 1.0)))
        sigma = sample("sigma", dist.LogNormal(0.0, 1.0))
        sample("y", event(dist.Normal(data["x"] @ w, sigma)), obs=data["y"])

    data = {"x": jnp.asarray(x), "y": jnp.asarray(y, np.float32)}
    return both({"w": 10, "sigma": ()}, data, model, positive=["sigma"])


def logistic():
    x = RNG.normal(size=(500, 10)).astype(np.float32)
    y = RNG.random(500) < 1 / (1 + np.exp(-x @ RNG.normal(size=10)))

    def model(sample, dist, event, data):
        w = sample("w", event(dist.Normal(jnp.zeros(10), 1.0)))
        sample("y", event(dist.Bernoulli(logits=data["x"] @ w)), obs=data["y"])

    return both({"w": 10}, {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}, model)


def schools():
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sd = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(sample, dist, event, data):
        mu = sample("mu", dist.Normal(0.0, 5.0))
        tau = sample("tau", dist.HalfCauchy(5.0))
        eta = sample("eta", event(dist.Normal(jnp.zeros(8), 1.0)))
        sample("y", event(dist.Normal(mu + tau * eta, data["sd"])), obs=data["y"])

    sizes = {"mu": (), "tau": (), "eta": 8}
    return both(sizes, {"y": y, "sd": sd}, model, positive=["tau"])


def radon():
    county = RNG.integers(0, 85, 919)
    floor = (RNG.random(919) < 0.17).astype(np.float32)
    y = RNG.normal(1.5, 0.3, 85)[county] - 0.7 * floor + RNG.normal(0, 0.75, 919)

    def model(sample, dist, event, data):
        mu = sample("mu", dist.Normal(0.0, 10.0))
        tau = sample("tau", dist.LogNormal(0.0, 1.0))
        alpha = sample("alpha", event(dist.Normal(jnp.zeros(85), 1.0)))
        beta = sample("beta", dist.Normal(0.0, 10.0))
        sigma = sample("sigma", dist.LogNormal(0.0, 1.0))
        mean = (mu + tau * alpha)[data["county"]] + beta * data["floor"]
        sample("y", event(dist.Normal(mean, sigma)), obs=data["y"])

    data = {"county": jnp.asarray(county), "floor": jnp.asarray(floor), "y": jnp.asarray(y, float)}
    sizes = {"mu": (), "tau": (), "alpha": 85, "beta": (), "sigma": ()}
    return both(sizes, data, model, positive=["tau", "sigma"])


def vae():
    images = load_digits().data[:1500].astype(np.float32)
    shapes = {"encode": (64, 200), "code": (200, 16), "decode": (8, 200), "pixels": (200, 64)}
    nets = {
        name: (jnp.asarray(RNG.normal(size=s) / math.sqrt(s[0]), jnp.float32), jnp.zeros(s[1]))
        for name, s in shapes.items()
    }

    def two(nets, first, second, x):
        (w, b), (v, c) = nets[first], nets[second]
        return jax.nn.relu(x @ w + b) @ v + c

    def code(nets, x):
        mean, log_sd = jnp.split(two(nets, "encode", "code", x / LEVELS), 2, axis=-1)
        return mean, jnp.exp(log_sd)

    @vx.model
    def decoder(nets):
        z = vx.sample("z", d.Normal(jnp.zeros(8), 1.0))
        vx.sample("x", d.Binomial(LEVELS, logits=two(nets, "decode", "pixels", z)))

    @vx.model
    def encoder(nets, x):
        vx.sample("z", d.Normal(*code(nets, x)))

    def objective(nets, batch):
        def elbo(x):
            return vx.objectives.elbo(decoder(nets), encoder(nets, x), {"x": x})

        return jax.vmap(elbo)(batch).mean()

    def model(images):
        p = numpyro.param("nets", nets)
        with numpyro.plate("images", len(images), subsample_size=BATCH) as i:
            z = numpyro.sample("z", npd.Normal(jnp.zeros(8), 1.0).to_event(1))
            law = npd.Binomial(LEVELS, logits=two(p, "decode", "pixels", z))
            numpyro.sample("x", law.to_event(1), obs=images[i])

    def guide(images):
        p = numpyro.param("nets", nets)
        with numpyro.plate("images", len(images), subsample_size=BATCH) as i:
            numpyro.sample("z", npd.Normal(*code(p, images[i])).to_event(1))

    # NumPyro's loss is that of all 1,500 images; Adam does not see the factor.
    return Model(nets, jnp.asarray(images), objective, model, guide, BATCH, len(images))


MODELS = {f.__name__: f for f in (linear, logistic, schools, vae, radon)}

# ---- measuring


def check(report, name, model, steps):
    """The objectives of both, averaged over the last quarter, agree within their noise."""
    found = {}
    for system in ("varax", "numpyro"):
        last = np.asarray(getattr(model, system)(steps, jax.random.key(0)))[-steps // 4 :]
        found[system] = vx.stopping.mean_and_error(last)
    (a, error_a), (b, error_b) = found.values()
    report.say(f"{name}: objective {a:.4g} +- {error_a:.2g}, NumPyro {b:.4g} +- {error_b:.2g}")
    assert abs(a - b) < 6 * math.hypot(error_a, error_b) + 0.02 * abs(b), name


def measure(model, steps, rounds):
    runs = {"varax": Runs(), "numpyro": Runs()}
    for at in range(rounds):
        for system in list(runs) if at % 2 else reversed(list(runs)):
            forget()
            gc.disable()
            with timed(runs[system]):
                jax.block_until_ready(getattr(model, system)(steps, jax.random.key(at)))
            gc.enable()
    return runs


def profile(name, steps):
    """Where the time of a fit goes: functions by cumulative and by own time."""
    model = MODELS[name]()
    model.varax(steps, jax.random.key(0))
    for system in ("varax", "numpyro"):
        forget()
        with cProfile.Profile() as profiler:
            getattr(model, system)(steps, jax.random.key(1))
        print(f"\n{system}")
        stats = pstats.Stats(profiler).strip_dirs()
        stats.sort_stats("cumulative").print_stats(45)
        stats.sort_stats("tottime").print_stats(12)


def main():
    options = [
        ("--profile", {"choices": [*MODELS], "help": "say where the time goes"}),
        ("--only", {"choices": [*MODELS], "help": "one model"}),
        ("--steps", {"type": int, "help": "of each fit (default: 2000, quick 1000)"}),
        ("--rounds", {"type": int, "help": "fits of each system (default: 15, quick 5)"}),
    ]
    report = Report("fit", __doc__, *options)
    jax.config.update("jax_enable_compilation_cache", False)
    steps, rounds = (1000, 5) if report.quick else (2000, 15)
    steps, rounds = report.options.steps or steps, report.options.rounds or rounds
    if report.options.profile:
        return profile(report.options.profile, steps)
    rows = []
    for name in [report.options.only] if report.options.only else MODELS:
        model = MODELS[name]()
        check(report, name, model, steps)
        runs = measure(model, steps, rounds)
        mine, other = runs["varax"], runs["numpyro"]
        wall = [a / b for a, b in zip(mine.wall, other.wall, strict=True)]
        cells = [spread(mine.cpu), spread(other.cpu), mine.ratio(other), spread(wall)]
        rows.append((name, *cells, f"{statistics.median(mine.wall):.3g}"))
    report.say(f"\n{steps} steps, {rounds} rounds; medians with quartiles")
    head = (
        "",
        "varax CPU s",
        "NumPyro CPU s",
        "ratio CPU: medians, by round",
        "ratio wall",
        "wall s",
    )
    report.table(head, rows)
    report.close()


if __name__ == "__main__":
    main()
