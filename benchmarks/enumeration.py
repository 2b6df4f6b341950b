"""What exact enumeration of a chain of K binary choices costs in varax.

    z_i ~ Bernoulli(0.3 if z_{i-1} = 0 else 0.6), z_{-1} = 0;  x ~ Normal(sum_i w_i z_i, 0.5), x = 1
    w_i = 0.3 (i + 1) (-1)^i;  guide z_i ~ Bernoulli(logits = a_i + b_i z_{i-1})

The gradient of the ELBO in (a, b), exact by `est.Enumerate()` at every choice of the guide: seconds
to trace and to compile it, microseconds a gradient. Beside it, written by hand in JAX:

    doubling    sums over all 2^K paths, as arrays that double with every choice
    table       one-hot matrix of all 2^K configurations, a constant for K <= 14, else in blocks

and for K = 6, 256 gradients a call, NumPyro's TraceEnum_ELBO (needs funsor). The gradients are
compared with each other, and the value with a sum in NumPy float64, before anything is timed.
Aim: K = 20 traces and compiles in under 2 s plus what `doubling` needs.

    python benchmarks/enumeration.py [--quick] [--save | --out FILE]
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from _report import Report, built, interleaved, spread

import varax as vx
from varax import dist as d
from varax import estimators as est

X, SD, ROWS = 1.0, 0.5, 2**14


def weights(k):
    return [0.3 * (i + 1) * (-1) ** i for i in range(k)]


# ---- varax


@vx.model
def chain(k):
    z, mean = 0, 0.0
    for i, w in enumerate(weights(k)):
        z = vx.sample(f"z{i}", d.Bernoulli(probs=jnp.where(z == 0, 0.3, 0.6)))
        mean = mean + w * z
    vx.sample("x", d.Normal(mean, SD))


@vx.model
def guide(phi):
    z = 0
    for i, (a, b) in enumerate(zip(*phi, strict=True)):
        z = vx.sample(f"z{i}", d.Bernoulli(logits=a + b * z), estimator=est.Enumerate())


def varax(k):
    def elbo(phi):
        return vx.objectives.elbo(chain(k), guide(phi), {"x": X})

    value_and_grad = vx.value_and_grad(elbo)
    return lambda phi: value_and_grad(jax.random.key(0), phi)


# ---- by hand


def log_normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi)


def doubling(k):
    log_prior = jnp.log(jnp.array([[0.7, 0.3], [0.4, 0.6]]))  # [z_{i-1}, z_i]

    def elbo(phi):
        log_p = log_q = mean = jnp.zeros((1,))  # a path each: [2^i]
        for i, (a, b, w) in enumerate(zip(*phi, weights(k), strict=True)):
            logits = jnp.stack([a, a + b])
            log_guide = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], 1)
            before = (-1, 2) if i else (-1, 1)  # paths by the choice before
            log_p = (log_p.reshape(before)[..., None] + log_prior[: before[1]]).reshape(-1)
            log_q = (log_q.reshape(before)[..., None] + log_guide[: before[1]]).reshape(-1)
            mean = (mean[:, None] + jnp.array([0.0, w])).reshape(-1)
        log_p = log_p + log_normal(X, mean, SD)
        return jnp.exp(log_q) @ (log_p - log_q)

    return jax.value_and_grad(elbo)


def table(k):
    rows = min(2**k, ROWS)

    def configurations(start, xp):
        """One-hot pairs (z_{i-1}, z_i), [rows, 4k], and the model's log density, [rows]."""
        z = start + xp.arange(rows)[:, None] >> xp.arange(k) & 1
        pair = 2 * xp.pad(z[:, :-1], ((0, 0), (1, 0))) + z
        hot = (pair[..., None] == xp.arange(4)).reshape(rows, -1).astype("float32")
        log_prior = xp.log(xp.array([0.7, 0.3, 0.4, 0.6]))[pair].sum(1)
        residual = (X - z @ xp.array(weights(k))) / SD
        log_p = log_prior - 0.5 * residual**2 - math.log(SD) - 0.5 * math.log(2 * math.pi)
        return hot, log_p.astype("float32")

    def part(phi, hot, log_p):
        logits = jnp.stack([phi[0], phi[0] + phi[1]], 1)  # [k, z_{i-1}]
        log_guide = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], 2)
        log_q = hot @ log_guide.reshape(-1)
        return jnp.exp(log_q) @ (log_p - log_q)

    if rows == 2**k:
        hot, log_p = configurations(0, np)
        return lambda phi: jax.value_and_grad(part)(phi, hot, log_p)

    def value_and_grad(phi):
        def add(total, start):
            one = jax.value_and_grad(part)(phi, *configurations(start, jnp))
            return jax.tree.map(jnp.add, total, one), None

        zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), phi))
        return jax.lax.scan(add, zero, jnp.arange(2**k // rows) * rows)[0]

    return value_and_grad


def exact(k, phi):
    """The ELBO in NumPy, float64, one configuration after the other."""
    a, b = np.asarray(phi[0], float), np.asarray(phi[1], float)
    total = 0.0
    for z in itertools.product((0, 1), repeat=k):
        before = (0, *z[:-1])
        q = [1 / (1 + np.exp(-(a[i] + b[i] * before[i]))) for i in range(k)]
        p = [0.6 if y else 0.3 for y in before]
        log_q = sum(np.log(r if y else 1 - r) for r, y in zip(q, z, strict=True))
        log_p = sum(np.log(r if y else 1 - r) for r, y in zip(p, z, strict=True))
        residual = (X - np.dot(weights(k), z)) / SD
        log_p += -0.5 * residual**2 - np.log(SD) - 0.5 * np.log(2 * np.pi)
        total += np.exp(log_q) * (log_p - log_q)
    return total


def numpyro_chain(k):
    """The model in NumPyro."""
    import numpyro
    import numpyro.distributions as npd

    def model(phi):
        z, mean = 0, 0.0
        for i, w in enumerate(weights(k)):
            z = numpyro.sample(f"z{i}", npd.Bernoulli(probs=jnp.where(z == 0, 0.3, 0.6)))
            mean = mean + w * z
        numpyro.sample("x", npd.Normal(mean, SD), obs=X)

    return model


def numpyro_enum(k):
    import numpyro
    import numpyro.distributions as npd
    from numpyro.contrib.funsor import config_enumerate
    from numpyro.infer import TraceEnum_ELBO

    model = numpyro_chain(k)

    @config_enumerate
    def guide(phi):
        z = 0
        for i, (a, b) in enumerate(zip(*phi, strict=True)):
            z = numpyro.sample(f"z{i}", npd.Bernoulli(logits=a + b * z))

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    return jax.value_and_grad(lambda phi: -elbo.loss(jax.random.key(0), {}, model, guide, phi))


# ---- measure


def check(k, functions, phi):
    """All candidates agree to 1e-4."""
    found = {name: jax.jit(make(k))(phi) for name, make in functions.items()}
    value, grads = found["doubling"]
    if k <= 12:
        assert abs(float(value) - exact(k, phi)) < 1e-4 * abs(float(value)), (value, exact(k, phi))
    for name, (other, others) in found.items():
        np.testing.assert_allclose(other, value, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(
            np.stack(others), np.stack(grads), rtol=1e-4, atol=1e-4, err_msg=name
        )


def parameters(k, n=None):
    shape = (2, k) if n is None else (2, n, k)
    a, b = 0.5 * jax.random.normal(jax.random.key(3), shape)
    return a, b


def measure(report, title, k, functions, phi, per_call, rounds, builds, wrap=lambda f: f):
    makers = {name: lambda make=make: jax.jit(wrap(make(k))) for name, make in functions.items()}
    times = built(makers, (phi,), builds)
    compiled = {name: make().lower(phi).compile() for name, make in makers.items()}
    calls = max(1, min(200, 2**19 // (2**k * per_call)))
    runs = interleaved({name: lambda f=f: f(phi) for name, f in compiled.items()}, rounds, calls)
    report.say(f"\n{title}: {rounds} rounds of {calls} calls, {builds} compilations")
    base = times["doubling"].both, runs["doubling"]
    rows = []
    for name in functions:
        t = times[name]
        more = [
            f"{statistics.median(one) - statistics.median(other):+.2f}"
            for one, other in ((t.both.cpu, base[0].cpu), (t.both.wall, base[0].wall))
        ]
        rows.append((name, spread(t.trace.cpu), spread(t.compile.cpu), " / ".join(more)))
    report.table(("", "trace+lower CPU s", "compile CPU s", "- doubling, CPU / wall s"), rows)
    rows = [
        (
            name,
            spread(r.cpu, 1e6 / per_call),
            f"{statistics.median(r.wall) * 1e6 / per_call:.4g}",
            r.ratio(base[1]),
            r.ratio(runs["table"]),
        )
        for name, r in runs.items()
    ]
    head = ("", "CPU us a gradient", "wall us", "CPU / doubling: medians, by round")
    report.table((*head, "CPU / table"), rows)


def main():
    report = Report("enumeration", __doc__)
    functions = {"doubling": doubling, "table": table, "varax": varax}
    for k in (6, 12) if report.quick else (6, 12, 16, 20):
        check(k, functions, parameters(k))
        rounds, builds = (10, 2) if report.quick else (30, 5)
        measure(report, f"K = {k}", k, functions, parameters(k), 1, rounds, builds)
    if importlib.util.find_spec("funsor"):
        functions["numpyro"] = numpyro_enum
    check(6, functions, parameters(6))
    rounds, builds = (10, 2) if report.quick else (40, 5)
    title = "K = 6, 256 gradients a call"
    measure(report, title, 6, functions, parameters(6, 256), 256, rounds, builds, wrap=jax.vmap)
    report.close()


if __name__ == "__main__":
    main()
