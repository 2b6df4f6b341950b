"""Credit assignment: a plate of choices and a walk (variance.py)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from _report import Report
from _variance_spread import KEYS, gradient, spread
from jax.lax import stop_gradient

import varax as vx
from varax import dist as d
from varax import estimators as est

sigmoid = jax.nn.sigmoid


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
