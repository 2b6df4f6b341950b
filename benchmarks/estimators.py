"""What a gradient of a chain of K binary choices costs: exact, score function, leave-one-out.

    z_i ~ Bernoulli(0.3 if z_{i-1} = 0 else 0.6), z_{-1} = 0;  x ~ Normal(sum_i w_i z_i, 0.5), x = 1
    w_i = 0.3 (i + 1) (-1)^i;  guide z_i ~ Bernoulli(logits = a_i + b_i z_{i-1})

The gradient of the ELBO in (a, b), K = 6, 256 parameters a call, one sample or one pair each. varax
runs one model and guide, and only its estimators differ. Beside it, exact:

    sum         log-probabilities of all K choices as arrays [2^K, K], the straightforward way
    doubling, table   from `enumeration.py`: partial sums shared by paths, one-hot matrix product
    numpyro     TraceEnum_ELBO (needs funsor)

and estimates, written by hand with K draws in a loop, from one call of the random generator:

    whole       the ELBO times the sum of all scores
    to go       each score times those terms alone that its choice can influence, as in varax
    keys        the same, a key for each choice, as in varax and NumPyro
    loop        the same, choice after choice with the distributions' log_prob instead of arrays [K]
    numpyro     TraceGraph_ELBO

All means are compared with the exact gradient before anything is timed.
Aims: Enumerate at most 0.8 NumPyro and 1.1 `sum`, Score and LeaveOneOut at most 1.1 by hand, choice
after choice as in the user's program (`loop`).

    python benchmarks/estimators.py [--quick] [--save | --out FILE]
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import Report, Runs, built, interleaved, spread
from enumeration import (
    SD,
    X,
    chain,
    doubling,
    guide,
    log_normal,
    numpyro_chain,
    numpyro_enum,
    parameters,
    table,
    weights,
)
from jax.lax import stop_gradient
from jax.nn import softplus
from scipy.special import ndtri

import varax as vx
from varax import dist as d
from varax import estimators as est

FALSE_ALARM, DRAWS = 1e-6, 2**16
Gradient = Callable[[Any, Any], tuple[Any, Any]]  # (key, phi) -> value and gradient


def varax(estimator: est.Estimator) -> Callable[[int], Gradient]:
    def make(k):
        def elbo(phi):
            return vx.objectives.elbo(chain(k), guide(phi), {"x": X})

        return vx.value_and_grad(elbo, estimators={f"z{i}": estimator for i in range(k)})

    return make


# ---- by hand


def log_bernoulli(z, logits):
    return z * logits - softplus(logits)


def terms(z, phi):
    """log q of each choice, [K]; log p of each less log q, [K]; log p(x)."""
    k = len(z)
    before = jnp.concatenate([jnp.zeros(1), z[:-1]])
    log_q = log_bernoulli(z, phi[0] + phi[1] * before)
    p = jnp.where(before == 0, 0.3, 0.6)
    log_p = jnp.where(z == 1, jnp.log(p), jnp.log1p(-p))
    return log_q, log_p - log_q, log_normal(X, z @ jnp.array(weights(k)), SD)


def by_sum(k):
    z = jnp.array(list(itertools.product((0.0, 1.0), repeat=k)))  # [2^K, K]

    def elbo(phi):
        log_q, log_w, log_x = jax.vmap(terms, (0, None))(z, phi)
        return jnp.exp(log_q.sum(1)) @ (log_w.sum(1) + log_x)

    return keyless(jax.value_and_grad(elbo))


def keyless(value_and_grad) -> Gradient:
    return lambda key, phi: value_and_grad(phi)


def loop_terms(z, phi):
    """`terms`, choice by choice."""
    before, mean, log_q, log_p = 0.0, 0.0, [], []
    for i, w in enumerate(weights(len(z))):
        log_q.append(d.Bernoulli(logits=phi[0][i] + phi[1][i] * before).log_prob(z[i]))
        log_p.append(d.Bernoulli(probs=jnp.where(before == 0, 0.3, 0.6)).log_prob(z[i]))
        before, mean = z[i], mean + w * z[i]
    log_q, log_p = jnp.stack(log_q), jnp.stack(log_p)
    return log_q, log_p - log_q, d.Normal(mean, SD).log_prob(X)


def draw(key, phi, style):
    k = len(phi[0])
    if style != "arrays":
        u = jax.vmap(jax.random.uniform)(jax.random.split(key, k))
    else:
        u = jax.random.uniform(key, (k,))
    z, out = 0.0, []
    for i in range(k):
        z = 1.0 * (u[i] < jax.nn.sigmoid(phi[0][i] + phi[1][i] * z))
        out.append(z)
    return stop_gradient(jnp.stack(out))


def share(log_w, log_x, to_go):
    """What multiplies each score, [K]."""
    from_here = jax.lax.cumsum(log_w, reverse=True) if to_go else log_w.sum()
    return stop_gradient(from_here + log_x)


def by_score(to_go, style="arrays"):
    of = loop_terms if style == "loop" else terms

    def make(k):
        def surrogate(phi, key):
            log_q, log_w, log_x = of(draw(key, phi, style), phi)
            value = log_w.sum() + log_x
            change = (share(log_w, log_x, to_go) * log_q).sum()
            return value + change - stop_gradient(change)

        return lambda key, phi: jax.value_and_grad(surrogate)(phi, key)

    return make


def by_leave_one_out(to_go, style="arrays", n=2):
    of = loop_terms if style == "loop" else terms

    def make(k):
        def surrogate(phi, key):
            z = jax.vmap(lambda key: draw(key, phi, style))(jax.random.split(key, n))
            log_q, log_w, log_x = jax.vmap(of, (0, None))(z, phi)  # [n, K], [n, K], [n]
            signal = jax.vmap(share, (0, 0, None))(log_w, log_x, to_go).reshape(n, -1)
            excess = signal - (signal.sum(0) - signal) / (n - 1)
            change = (excess * log_q).sum() / n
            return (log_w.sum(1) + log_x).mean() + change - stop_gradient(change)

        return lambda key, phi: jax.value_and_grad(surrogate)(phi, key)

    return make


def numpyro_graph(k):
    import numpyro
    import numpyro.distributions as npd
    from numpyro.infer import TraceGraph_ELBO

    model = numpyro_chain(k)

    def guide(phi):
        z = 0
        for i, (a, b) in enumerate(zip(*phi, strict=True)):
            z = numpyro.sample(f"z{i}", npd.Bernoulli(logits=a + b * z))

    elbo = TraceGraph_ELBO()

    def value_and_grad(key, phi):
        value, grads = jax.value_and_grad(lambda p: elbo.loss(key, {}, model, guide, p))(phi)
        return -value, jax.tree.map(jnp.negative, grads)

    return value_and_grad


def candidates() -> dict[str, dict[str, Callable[[int], Gradient]]]:
    """By group and name; the first of a group is varax's."""
    exact = {
        "varax Enumerate": varax(est.Enumerate()),
        "sum": by_sum,
        "doubling": lambda k: keyless(doubling(k)),
        "table": lambda k: keyless(table(k)),
    }
    if importlib.util.find_spec("funsor"):
        exact["numpyro"] = lambda k: keyless(numpyro_enum(k))
    score = {
        "varax Score": varax(est.Score()),
        "score, whole": by_score(False),
        "score, to go": by_score(True),
        "score, to go, keys": by_score(True, "keys"),
        "score, to go, loop": by_score(True, "loop"),
        "numpyro TraceGraph": numpyro_graph,
    }
    loo = {
        "varax LeaveOneOut(2)": varax(est.Score(est.LeaveOneOut(2))),
        "two, whole": by_leave_one_out(False),
        "two, to go": by_leave_one_out(True),
        "two, to go, keys": by_leave_one_out(True, "keys"),
        "two, to go, loop": by_leave_one_out(True, "loop"),
    }
    return {"exact": exact, "score function": score, "leave one out": loo}


# ---- measure


def check(report: Report, groups: Any, k: int) -> None:
    """Means are the exact gradient; print the spread of one estimate."""
    phi, many = parameters(k), parameters(k, 256)
    value, grads = doubling(k)(phi)
    exact = np.concatenate([[value], *grads]).astype(float)
    bound, rows = ndtri(1 - FALSE_ALARM / (2 * len(exact))), []

    def flat(value_and_grad, key, phi):
        value, grads = value_and_grad(key, phi)
        return jnp.concatenate([value[None], *grads])

    for group, functions in groups.items():
        for name, make in functions.items():
            f = make(k)
            if group == "exact":
                found = np.asarray(jax.jit(lambda p, f=f: flat(f, jax.random.key(0), p))(phi))
                np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4, err_msg=name)
                continue
            keys = jax.random.split(jax.random.key(1), DRAWS)
            draws = np.asarray(jax.jit(jax.vmap(lambda key, f=f: flat(f, key, phi)))(keys), float)
            error = draws.std(0, ddof=1) / math.sqrt(DRAWS)
            z = (abs(draws.mean(0) - exact) / np.maximum(error, 1e-12)).max()  # b_0 has no effect
            assert z < bound, (name, z, draws.mean(0), exact)
            each = jax.vmap(lambda key, phi, f=f: flat(f, key, phi)[1:], (0, None))
            draws = jax.jit(jax.vmap(each, (None, 0)))(keys[:256], many)  # [256, 256, 2 K]
            sd = float(jnp.sqrt(draws.var(1, ddof=1).mean()))
            rows.append((name, f"{sd:.3g}", f"{z:.1f}"))
    report.say(
        f"\nK = {k}: all exact gradients agree to 1e-4. Means of {DRAWS} others: the largest"
    )
    report.say(f"distance from exact in standard errors z, of {len(exact)}; must be < {bound:.1f}")
    report.table(("", "rms sd of a coordinate", "z"), rows)


def measure(report: Report, groups: Any, k: int, size: int, rounds: int) -> None:
    """Microseconds a gradient, and the ratios."""
    phi, keys = parameters(k, size), jax.random.split(jax.random.key(2), size)
    for group, functions in groups.items():
        compiled = {
            name: jax.jit(jax.vmap(make(k))).lower(keys, phi).compile()
            for name, make in functions.items()
        }
        timed = {name: lambda f=f: f(keys, phi) for name, f in compiled.items()}
        runs = interleaved(timed, rounds, 50)
        first, *others = functions
        report.say(f"\nK = {k}, {size} gradients a call, {group}: {rounds} rounds of 50 calls")
        report.table(
            ("", "CPU us a gradient", "wall us", f"CPU: {first} / this, medians, by round", "wall"),
            [
                (
                    name,
                    spread(r.cpu, 1e6 / size),
                    f"{statistics.median(r.wall) * 1e6 / size:.4g}",
                    runs[first].ratio(r) if name in others else "",
                    Runs(runs[first].wall).ratio(Runs(r.wall)) if name in others else "",
                )
                for name, r in runs.items()
            ],
        )


def compilation(report: Report, groups: Any, sizes: Any, rounds: int) -> None:
    """Seconds to trace, lower and compile 256 gradients, by K."""
    rows: dict[str, list[str]] = {}
    for k in sizes:
        phi, keys = parameters(k, 256), jax.random.split(jax.random.key(2), 256)
        makers = {
            name: lambda make=make, k=k: jax.jit(jax.vmap(make(k)))
            for functions in groups.values()
            for name, make in functions.items()
            if "whole" not in name and "keys" not in name
        }
        for name, times in built(makers, (keys, phi), rounds).items():
            trace, compile_ = (statistics.median(r.wall) for r in (times.trace, times.compile))
            cpu = statistics.median(times.both.cpu)
            rows.setdefault(name, [name]).append(f"{trace:.2f} + {compile_:.2f} ({cpu:.2f})")
    report.say(f"\nSeconds to trace and lower + to compile (CPU time of both), median of {rounds}")
    report.table(("", *(f"K = {k}" for k in sizes)), list(rows.values()))


def main():
    report = Report("estimators", __doc__)
    groups = candidates()
    check(report, groups, 6)
    measure(report, groups, 6, 256, 10 if report.quick else 60)
    if report.quick:
        compilation(report, groups, (2, 6), 1)
    else:
        compilation(report, groups, (2, 4, 6, 8, 12), 2)
    report.close()


if __name__ == "__main__":
    main()
