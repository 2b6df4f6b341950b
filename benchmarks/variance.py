"""How much the gradient estimators scatter: standard deviations, and what they cost in runs.

Every table has an exact reference for the mean, by a closed form, a sum over all values or a fine
grid, so that its numbers are variances of unbiased estimates: `z` is the largest distance of a
coordinate's mean from the reference in standard errors of the mean, `!` where that would happen
by chance once in 10^6 tables. `sd` is the root mean square over coordinates of the standard
deviation of one estimate, `sd / |g|` the same over the gradient's root mean square, `runs` the
number of evaluations of the objective to an estimate, `var x runs` what an evaluation buys.

    plate       z_i ~ Bern(0.3), x_i ~ Normal(1.5 z_i, 1), i < B; guide z_i ~ Bern(logits = l_i)
    normal      measure-valued derivatives of E[k(x)], x ~ Normal(0.4, 0.8), noise shared or not
    coins       E[sum_i (b_i - 0.499)^2] and E[(sum_i b_i - 0.499 n)^2], b_i ~ Bern(logits = l_i)
    chain       the ELBO of the chain of binary choices of `enumeration.py`, K = 6
    landing     an ELBO at the posterior and off it
    bounds      importance-weighted bounds of a discrete and of a normal guide
    walk        z_t ~ Bern(logits = a + b s_t), s_{t+1} = s_t + 2 z_t - 1, a cost each step
    strategies  64 runs of the ELBO of a logistic regression: independent, mirrored, Sobol'

    python benchmarks/variance.py [--quick] [--only plate coins] [--save | --out FILE]
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
import optax
from _report import Report
from enumeration import SD, X, doubling, weights
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from numpyro.infer import Trace_ELBO
from scipy.special import ndtri

import varax as vx
from varax import dist as d
from varax import estimators as est

jax.config.update("jax_enable_x64", True)  # so that rounding is no part of what is compared

FALSE_ALARM = 1e-6  # a table marks a sound estimate with `!` this often
ROUNDING = 1e-9  # of the largest coordinate: what rounding may add to a mean
sigmoid = jax.nn.sigmoid


# ---- means, spreads and their tables


@dataclasses.dataclass
class Spread:
    """Moments of one estimate of a vector, from n independent ones.

    mean, sd: [D]. z: the largest |mean - exact| / (sd / sqrt(n)), less what is rounding.
    """

    mean: np.ndarray
    sd: np.ndarray
    exact: np.ndarray
    n: int

    @property
    def rms(self) -> float:
        return float(np.sqrt((self.sd**2).mean()))

    @property
    def relative(self) -> float:
        return self.rms / float(np.sqrt((self.exact**2).mean()))

    @property
    def z(self) -> float:
        away = np.abs(self.mean - self.exact) - ROUNDING * np.abs(self.exact).max()
        error = np.maximum(self.sd / math.sqrt(self.n), ROUNDING * np.abs(self.exact).max())
        return float((np.maximum(away, 0) / error).max())

    def verdict(self, tables: int = 1) -> str:
        """z, marked where it is beyond chance."""
        bound = ndtri(1 - FALSE_ALARM / (2 * len(self.mean) * tables))
        return f"{self.z:.1f}" + ("!" if self.z > bound else "")


def spread(
    estimate: Callable[[Any], Any], exact: Any, n: int, chunk: int = 0, seed: int = 1
) -> Spread:
    """The moments of `estimate(key)`, a pytree of floats, over n keys."""
    exact = np.asarray(ravel_pytree(exact)[0], float)
    chunk = min(n, chunk or max(64, min(4096, 2**21 // len(exact))))
    many = jax.jit(jax.vmap(lambda key: ravel_pytree(estimate(key))[0]))
    one, two, count = np.zeros(len(exact)), np.zeros(len(exact)), n // chunk
    for key in jax.random.split(jax.random.key(seed), count):
        away = np.asarray(many(jax.random.split(key, chunk)), float) - exact
        one, two = one + away.sum(0), two + (away**2).sum(0)
    n = count * chunk
    shift = one / n
    variance = np.maximum(two / n - shift**2, 0) * n / (n - 1)
    sd = np.where(variance < (ROUNDING * np.abs(exact).max()) ** 2, 0.0, np.sqrt(variance))
    return Spread(exact + shift, sd, exact, n)


def rows(found: dict[str, tuple[Spread, int | None]]) -> list[tuple[str, ...]]:
    """Lines of the usual table, from the spreads and the runs."""
    return [
        (
            name,
            str(runs or ""),
            f"{s.rms:.4g}",
            f"{s.relative:.4g}",
            f"{s.rms**2 * runs:.4g}" if runs else "",
            s.verdict(),
        )
        for name, (s, runs) in found.items()
    ]


Claim = tuple[str, str, bool]  # two names, and whether at equal numbers of runs
HEAD = ("", "runs", "sd", "sd / |g|", "var x runs", "z")


def compare(report: Report, found: dict[str, tuple[Spread, int | None]], *claims: Claim) -> None:
    """Say whether the first's standard deviation is at most the second's, within 2 %."""
    for a, b, equal in claims:
        one, other = (
            s.rms * (math.sqrt(runs or 1) if equal else 1) for s, runs in (found[a], found[b])
        )
        holds = "yes" if one <= 1.02 * other + ROUNDING else "NO"
        report.say(
            f"{a} <= {b}{', at equal runs' if equal else ''}: {holds} ({one:.4g}, {other:.4g})"
        )


def gradient(f: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Any], Any]:
    """`key -> varax's estimate of the gradient in the first of args`."""
    estimate = vx.grad(f, **options)
    return lambda key: estimate(key, *args)


# ---- plate: credit assignment


def plate(report: Report, n: int) -> None:
    """Local REINFORCE: the spread of a site does not grow with the number of sites."""
    report.say("\n\nplate: d/dl_i of sum_i ELBO_i, each site apart")

    @vx.model
    def model():
        z = vx.sample("z", d.Bernoulli(0.3))
        vx.sample("x", d.Normal(1.5 * z, 1.0))

    @vx.model
    def guide(logit):
        vx.sample("z", d.Bernoulli(logits=logit))

    def elbos(logits, x):
        def one(logit, x):
            return vx.objectives.elbo(model(), guide(logit), {"x": x})

        return jax.vmap(one)(logits, x).sum()

    def log_w(z, logits, x):  # one term each, by hand
        log_p = jnp.where(z == 1, math.log(0.3), math.log(0.7)) + npd.Normal(1.5 * z, 1).log_prob(x)
        return log_p - log_q(z, logits)

    def log_q(z, logits):
        return npd.Bernoulli(logits=logits).log_prob(z)

    def hand(logits, x, joint, key):
        keys = jax.random.split(key, len(x))  # as varax splits them
        z = jax.vmap(lambda k, logit: npd.Bernoulli(logits=logit).sample(k))(keys, logits)

        def surrogate(logits):
            signal = log_w(z, logits, x)
            if joint:
                return signal.sum() + stop_gradient(signal.sum()) * log_q(z, logits).sum()
            return (signal + stop_gradient(signal) * log_q(z, logits)).sum()

        return jax.grad(surrogate)(logits)

    table = []
    for size in (4, 16, 64, 256, 1024)[: 3 if n < 5000 else None]:
        kz, kx = jax.random.split(jax.random.key(size))
        z = jax.random.bernoulli(kz, 0.3, (size,))
        x = 1.5 * z + jax.random.normal(kx, (size,))
        logits = 0.8 * x - 0.8  # an amortised guide before its training has ended
        q = sigmoid(logits)
        exact = q * (1 - q) * (log_w(1, logits, x) - log_w(0, logits, x))
        estimates = {
            "local by hand": lambda key, a=(logits, x): hand(*a, False, key),
            "varax Score()": gradient(elbos, logits, x, estimators={"z": est.Score()}),
            "LeaveOneOut(2)": gradient(
                elbos, logits, x, estimators={"z": est.Score(est.LeaveOneOut(2))}
            ),
            "DisARM": gradient(elbos, logits, x, estimators={"z": est.DisARM()}),
            "Enumerate": gradient(elbos, logits, x, estimators={"z": est.Enumerate()}),
            "joint by hand": lambda key, a=(logits, x): hand(*a, True, key),
        }
        found = {name: spread(f, exact, n) for name, f in estimates.items()}
        keys = jax.random.split(jax.random.key(2), 8)
        one, other = (jax.vmap(f)(keys) for f in list(estimates.values())[:2])
        same = float(abs(one - other).max())
        worst = max(found.values(), key=lambda s: s.z)
        table.append(
            (
                str(size),
                *(f"{s.relative:.3g}" for s in found.values()),
                f"{same:.0e}",
                worst.verdict(len(found)),
            )
        )
    report.table(("B: sd / |g|", *estimates, "|varax - local|", "largest z"), table)
    report.say("|varax - local|: largest difference of single estimates of both, same key")


# ---- normal: measure-valued derivatives


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


# ---- coins and chain: estimators of discrete choices


def descend(loss: Callable[[Any, Any], Any], start: Any, steps: int, rate: float = 0.03) -> Any:
    """Minimise E[loss(x, key)] by Adam."""
    optimizer = optax.adam(rate)

    def step(carry, key):
        x, state = carry
        change, state = optimizer.update(jax.grad(loss)(x, key), state, x)
        return (optax.apply_updates(x, change), state), None

    keys = jax.random.split(jax.random.key(4), steps)
    run = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), keys)[0][0])
    return run(jax.tree.map(jnp.asarray, start))


def squared(estimate: Callable[..., Any], draws: int = 64) -> Callable[[Any, Any], Any]:
    """Mean square of the gradient `estimate(tuned, key)`: least where its variance is."""

    def loss(tuned, key):
        keys = jax.random.split(key, draws)
        return (jax.vmap(lambda k: ravel_pytree(estimate(tuned, k))[0])(keys) ** 2).sum(1).mean()

    return loss


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


# ---- landing


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


KEYS = jax.random.split(jax.random.key(5), 1000)


# ---- bounds


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


# ---- walk


def walk(report: Report, n: int) -> None:
    """A cost at each step of a scan: a choice answers for what comes after it."""
    theta = jnp.array([0.2, -0.3])

    def cost(s):
        return (0.2 * s - 1.0) ** 2

    def exact(theta, steps):  # the law of the state, step by step
        states = jnp.arange(-steps, steps + 1.0)

        def step(p, _):
            up = sigmoid(theta[0] + theta[1] * states) * p
            moved = jnp.roll(up, 1) + jnp.roll(p - up, -1)
            return moved, moved @ cost(states)

        return jax.lax.scan(step, 1.0 * (states == 0), None, steps)[1].sum()

    def program(theta, steps, carried):
        def step(carry, _):
            s, total = carry
            s = s + 2.0 * vx.sample("z", d.Bernoulli(logits=theta[0] + theta[1] * s)) - 1.0
            return (s, total + cost(s)), None if carried else cost(s)

        (_, total), costs = jax.lax.scan(step, (0.0, 0.0), None, steps)
        return total if carried else costs.sum()

    def hand(theta, steps, to_go, key):
        def step(s, key):
            logits = theta[0] + theta[1] * s
            z = npd.Bernoulli(logits=logits).sample(key)
            s = stop_gradient(s + 2.0 * z - 1.0)
            return s, (npd.Bernoulli(logits=logits).log_prob(z), cost(s))

        log_q, costs = jax.lax.scan(step, 0.0, jax.random.split(key, steps))[1]
        returns = jax.lax.cumsum(costs, reverse=True) if to_go else costs.sum()
        return (log_q * returns).sum()

    table = []
    for steps in (10,) if n < 5000 else (10, 100):
        truth = jax.grad(exact)(theta, steps)
        score = {"z": est.Score()}
        loo = {"z": est.Score(est.LeaveOneOut(2))}
        families = {
            "reward to go, by hand": lambda key, t=steps: jax.grad(hand)(theta, t, True, key),
            "varax Score()": gradient(program, theta, steps, False, estimators=score),
            "varax Score(), cost carried": gradient(program, theta, steps, True, estimators=score),
            "varax LeaveOneOut(2)": gradient(program, theta, steps, False, estimators=loo),
            "whole return, by hand": lambda key, t=steps: jax.grad(hand)(theta, t, False, key),
        }
        one, other = (jax.vmap(f)(KEYS[:8]) for f in list(families.values())[:2])
        same = float(abs(one - other).max() / abs(one).max())
        for name, f in families.items():
            s = spread(f, truth, n)
            table.append(
                (
                    f"T = {steps}: {name}",
                    *(f"{v:.4g}" for v in s.sd),
                    f"{s.relative:.3g}",
                    s.verdict(10),
                )
            )
        report.say(f"T = {steps}: varax and reward to go, same key: differ by {same:.0e}")
    report.say("\nwalk: gradient of the expected total cost in (a, b)")
    report.table(("", "sd: a", "b", "sd / |g|", "z"), table)


# ---- strategies


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


def main():
    tables = (plate, normal, coins, chain, landing, bounds, walk, strategies)
    names = [f.__name__ for f in tables]
    report = Report("variance", __doc__, ("--only", {"nargs": "+", "choices": names}))
    n, steps = (4096, 300) if report.quick else (16384, 1000)
    for table in tables:
        if table.__name__ in (report.options.only or names):
            table(report, n, *((steps,) if table in (coins, chain) else ()))
    report.close()


if __name__ == "__main__":
    main()
