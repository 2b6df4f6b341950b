"""Gradients of bounds: at the posterior, of many samples, by strategies (variance.py)."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
from _report import Report
from _variance_spread import HEAD, KEYS, compare, gradient, rows, spread
from jax.flatten_util import ravel_pytree
from numpyro.infer import Trace_ELBO

import varax as vx
from varax import dist as d
from varax import estimators as est


def landing(report: Report, n: int) -> None:
    """z ~ Normal(0, 1), x ~ Normal(z, 1) in 5 dimensions, x = 1; guide Normal(m, exp(s))."""

    @vx.model
    def model():
        z = vx.sample("z", d.Normal(jnp.zeros(5), 1.0).to_event(1))
        vx.sample("x", d.Normal(z, 1.0).to_event(1))

    @vx.model
    def guide(m, s):
        vx.sample("z", d.Normal(m, jnp.exp(s)).to_event(1))

    def peer_model():
        z = numpyro.sample("z", npd.Normal(jnp.zeros(5), 1.0).to_event(1))
        numpyro.sample("x", npd.Normal(z, 1.0).to_event(1), obs=jnp.ones(5))

    def peer_guide(phi):
        numpyro.sample("z", npd.Normal(phi[0], jnp.exp(phi[1])).to_event(1))

    def peer(phi, key):
        return jax.grad(
            lambda p: -Trace_ELBO().loss(key, {}, lambda p: peer_model(), peer_guide, p)
        )(phi)

    def mean(phi):  # - KL(q, posterior), up to a constant
        return (
            npd.Normal(phi[0], jnp.exp(phi[1])).entropy().sum()
            - ((phi[0] - 0.5) ** 2 + jnp.exp(2 * phi[1])).sum()
        )

    table = []
    for name, phi in {
        "q = p(z | x)": (jnp.full(5, 0.5), jnp.full(5, -0.5 * math.log(2))),
        "mean + 0.3, sd x 1.2": (jnp.full(5, 0.8), jnp.full(5, math.log(1.2) - 0.5 * math.log(2))),
    }.items():
        objectives = {
            "varax elbo": gradient(
                lambda p: vx.objectives.elbo(model(), guide(*p), {"x": jnp.ones(5)}), phi
            ),
            "sticking_the_landing": gradient(
                lambda p: vx.objectives.sticking_the_landing(
                    model(), guide(*p), {"x": jnp.ones(5)}
                ),
                phi,
            ),
            "NumPyro Trace_ELBO": lambda key, phi=phi: peer(phi, key),
        }
        for label, f in objectives.items():
            s = spread(f, jax.grad(mean)(phi), n)
            single = np.asarray(jax.vmap(lambda k, f=f: ravel_pytree(f(k))[0])(KEYS))
            largest = np.abs(single - s.exact).max()
            table.append((f"{name}: {label}", f"{s.rms:.4g}", f"{largest:.2g}", s.verdict(6)))
    report.say("\n\nlanding: gradient in means and log standard deviations, 5 dimensions")
    report.table(("", "sd", "largest error of 1000", "z"), table)


def bounds(report: Report, n: int) -> None:
    """log 1/k sum_i w_i."""
    discrete(report, n)
    signal(report, n)


def discrete(report: Report, n: int, k: int = 5) -> None:
    """Three coins; the exact gradient sums over all 8^5 draws."""
    logits = jnp.array([0.5, -1.0, 0.2])
    offsets = jnp.array([1.0, -0.7, 0.4])
    every = jnp.array(list(itertools.product((0.0, 1.0), repeat=3)))

    @vx.model
    def model():
        b = vx.sample("b", d.Bernoulli(jnp.full(3, 0.4)).to_event(1))
        vx.sample("x", d.Normal(b @ offsets, 0.5))

    @vx.model
    def guide(logits):
        vx.sample("b", d.Bernoulli(logits=logits).to_event(1))

    def exact(logits):
        log_q = npd.Bernoulli(logits=logits).log_prob(every).sum(1)  # [8]
        log_w = (
            npd.Bernoulli(jnp.full(3, 0.4)).log_prob(every).sum(1)
            + npd.Normal(every @ offsets, 0.5).log_prob(1.0)
            - log_q
        )
        draws = jnp.array(list(itertools.combinations_with_replacement(range(8), k)))
        counts = (draws[:, :, None] == jnp.arange(8)).sum(1)
        log_ways = jax.lax.lgamma(k + 1.0) - jax.lax.lgamma(counts + 1.0).sum(1)
        log_mean = jax.nn.logsumexp(log_w[draws], axis=1) - math.log(k)
        return jnp.exp(log_ways + log_q[draws].sum(1)) @ log_mean

    def objective(name, e):
        bound = getattr(vx.objectives, name)
        return gradient(
            lambda x: bound(model(), guide(x), {"x": 1.0}, k), logits, estimators={"b": e}
        )

    families = {
        "iwelbo, Score": (objective("iwelbo", est.Score()), k),
        "iwelbo, LeaveOneOut(2)": (objective("iwelbo", est.Score(est.LeaveOneOut(2))), 2 * k),
        "iwelbo, LeaveOneOut(4)": (objective("iwelbo", est.Score(est.LeaveOneOut(4))), 4 * k),
        "vimco": (objective("vimco", est.Score()), k),
    }
    truth = jax.grad(exact)(logits)
    found = {name: (spread(f, truth, n), runs) for name, (f, runs) in families.items()}
    report.say(f"\n\nbounds: discrete guide, k = {k}; runs counts weights")
    report.table(HEAD, rows(found))
    loo = "iwelbo, LeaveOneOut(2)"
    compare(report, found, ("vimco", loo, True), (loo, "iwelbo, Score", True))


def signal(report: Report, n: int) -> None:
    """z ~ Normal(0, 1), x ~ Normal(z, 1) in 2 dimensions: |mean| / sd of the guide's gradient.

    Exact for k = 1; for large k the bound is log p(x) - Var[w] / (2 k p(x)^2) + O(1 / k^2).
    """
    x = jnp.array([1.0, -0.5])
    phi = jnp.array([0.7, -0.4, -0.2, -0.1])  # wider than the posterior: weights are bounded

    @vx.model
    def model():
        z = vx.sample("z", d.Normal(jnp.zeros(2), 1.0).to_event(1))
        vx.sample("x", d.Normal(z, 1.0).to_event(1))

    @vx.model
    def guide(phi):
        vx.sample("z", d.Normal(phi[:2], jnp.exp(phi[2:])).to_event(1))

    def kl(phi):  # KL(q, posterior): E[log w] = log p(x) - kl
        m, s2 = phi[:2] - x / 2, jnp.exp(2 * phi[2:])
        return (m**2 + s2 - 0.5 - phi[2:]).sum()

    def chi2(phi):  # E[w^2] / p(x)^2 = integral of posterior^2 / q
        m, v, post = phi[:2], jnp.exp(2 * phi[2:]), 0.5
        precision = 2 / post - 1 / v
        mean = (2 * (x / 2) / post - m / v) / precision
        log = 0.5 * jnp.log(2 * jnp.pi * v) - jnp.log(2 * jnp.pi * post)
        log += 0.5 * jnp.log(2 * jnp.pi / precision) + 0.5 * mean**2 * precision
        log += -((x / 2) ** 2) / post + 0.5 * m**2 / v
        return jnp.exp(log.sum())

    table = []
    for k in (1, 10, 100, 1000):

        def by(name, k=k):
            bound = getattr(vx.objectives, name)
            return gradient(lambda p: bound(model(), guide(p), {"x": x}, k), phi)

        draws, chunk = max(1024, n // max(1, k // 20)), max(16, 2**16 // k)
        first = jax.grad(lambda p, k=k: -kl(p) if k == 1 else -chi2(p) / (2 * k))(phi)
        dreg = spread(by("dreg"), first, draws, chunk)
        plain = spread(by("iwelbo"), first, draws, chunk, seed=2)
        error = np.hypot(dreg.sd, plain.sd) / math.sqrt(dreg.n)
        size = math.sqrt((dreg.mean**2).mean())
        off = math.sqrt(((dreg.mean - dreg.exact) ** 2).mean()) / size
        z = (np.abs(dreg.mean - plain.mean) / error).max()
        table.append(
            (
                f"{k}",
                f"{size:.3g}",
                *(f"{size / s.rms:.3g}" for s in (plain, dreg)),
                f"{plain.rms / dreg.rms:.3g}",
                f"z = {dreg.verdict()}" if k == 1 else f"{off:.1%} off",
                f"{z:.1f}",
            )
        )
    report.say("\n\nbounds: normal guide; the signal |g| / sd of its gradient as k grows")
    head = ("k", "|g|", "iwelbo: |g| / sd", "dreg: |g| / sd", "sd ratio")
    report.table((*head, "dreg: exact, or 1st order in 1/k", "z, dreg - iwelbo"), table)


def strategies(report: Report, n: int) -> None:
    """Logistic regression of 20 data on D features, guide Normal(m, exp(s)), 64 runs."""
    runs, table = 64, []
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(80)
    node_weights = node_weights / math.sqrt(2 * math.pi)
    for size in (2, 10):
        ka, kb, km = jax.random.split(jax.random.key(size), 3)
        a = jax.random.normal(ka, (20, size))
        y = jax.random.bernoulli(kb, 0.5, (20,)).astype(float)
        phi = jnp.stack([0.5 * jax.random.normal(km, (size,)), jnp.full(size, -0.7)])

        @vx.model
        def model(a=a):
            z = vx.sample("z", d.Normal(jnp.zeros(a.shape[1]), 1.0).to_event(1))
            vx.sample("y", d.Bernoulli(logits=a @ z).to_event(1))

        @vx.model
        def guide(phi):
            vx.sample("z", d.Normal(phi[0], jnp.exp(phi[1])).to_event(1))

        def elbo(phi, y=y, model=model, guide=guide):
            return vx.objectives.elbo(model(), guide(phi), {"y": y})

        def exact(phi, a=a, y=y):  # each datum sees one normal variate
            m, s2 = phi[0], jnp.exp(2 * phi[1])
            margin = (a @ m)[:, None] + jnp.sqrt(a**2 @ s2)[:, None] * nodes
            fit = (y * (a @ m) - jax.nn.softplus(margin) @ node_weights).sum()
            return fit - (0.5 * (m**2 + s2 - 1) - phi[1]).sum()

        truth = jax.value_and_grad(exact)(phi)
        base = None
        for name, using in {
            "MonteCarlo": vx.strategies.MonteCarlo(runs),
            "Antithetic": vx.strategies.Antithetic(runs),
            "QuasiMonteCarlo": vx.strategies.QuasiMonteCarlo(runs),
        }.items():
            estimate = vx.value_and_grad(elbo, using=using)
            s = spread(lambda key, e=estimate, phi=phi: e(key, phi), truth, n, 512)
            parts = [s.sd[:1], s.sd[1 : 1 + size], s.sd[1 + size :]]
            value, mean, scale = (float(np.sqrt((p**2).mean())) for p in parts)
            base = base or (value, mean, scale)
            gains = [(b / v) ** 2 for b, v in zip(base, (value, mean, scale), strict=True)]
            numbers = (f"{v:.3g}" for v in (value, mean, scale, *gains))
            table.append((f"D = {size}: {name}({runs})", *numbers, s.verdict(6)))
    report.say("\n\nstrategies: ELBO, its gradient in means and log standard deviations")
    head = ("", "sd: value", "means", "log sds", "var gain: value", "means", "log sds", "z")
    report.table(head, table)
