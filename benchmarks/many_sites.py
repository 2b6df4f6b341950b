"""How long it takes to trace the gradient of the ELBO of a program with n random choices.

A random walk written as a Python loop, so that every choice is a site of its own:

    z_i ~ Normal(0.9 z_{i-1}, 1);  x ~ Normal(z_n, 1), x = 1;  guide z_i ~ Normal(m_i, exp(s_i))

Pathwise derivatives, one draw. Seconds of CPU to trace (not to compile) `vx.grad`, NumPyro's
`jax.grad` of Trace_ELBO's loss with the same programs, and `jax.grad` of the same loop written by
hand, with all caches empty; the gradients are compared first. Aim: linear in n.

    python benchmarks/many_sites.py [--quick] [--save | --out FILE] [--profile N]

`--profile N` says where the time goes for n = N: varax's functions by cumulative and own time.
"""

from __future__ import annotations

import cProfile
import math
import pstats
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
from _report import Report, Runs, forget, spread, timed
from numpyro.infer import Trace_ELBO

import varax as vx
from varax import dist as d

X = 1.0

# ---- varax


@vx.model
def walk(n):
    z = 0.0
    for i in range(n):
        z = vx.sample(f"z{i}", d.Normal(0.9 * z, 1.0))
    vx.sample("x", d.Normal(z, 1.0))


@vx.model
def guide(phi):
    for i, (m, s) in enumerate(zip(*phi, strict=True)):
        vx.sample(f"z{i}", d.Normal(m, jnp.exp(s)))


def varax(n):
    return vx.grad(lambda phi: vx.objectives.elbo(walk(n), guide(phi), {"x": X}))


# ---- NumPyro


def with_numpyro(n):
    def model(phi):
        z = 0.0
        for i in range(n):
            z = numpyro.sample(f"z{i}", npd.Normal(0.9 * z, 1.0))
        numpyro.sample("x", npd.Normal(z, 1.0), obs=X)

    def guide(phi):
        for i, (m, s) in enumerate(zip(*phi, strict=True)):
            numpyro.sample(f"z{i}", npd.Normal(m, jnp.exp(s)))

    elbo = Trace_ELBO()
    return lambda key, phi: jax.grad(lambda p: -elbo.loss(key, {}, model, guide, p))(phi)


# ---- by hand


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


def hand(n):
    def elbo(phi, key):
        keys = jax.random.split(key, n)
        log_p = log_q = z = 0.0
        for i, (m, s) in enumerate(zip(*phi, strict=True)):
            before, scale = z, jnp.exp(s)
            z = m + scale * jax.random.normal(keys[i])
            log_p += log_normal(z, 0.9 * before, 1.0)
            log_q += log_normal(z, m, scale)
        return log_p + log_normal(X, z, 1.0) - log_q

    return lambda key, phi: jax.grad(elbo)(phi, key)


# ---- measure

CANDIDATES = {"hand": hand, "numpyro": with_numpyro, "varax": varax}


def parameters(n):
    m, s = 0.3 * jax.random.normal(jax.random.key(0), (2, n))
    return list(m), list(s)


def check(n=5, draws=4000):
    """All candidates estimate the same gradient: means over many keys agree."""
    keys, phi, found = jax.random.split(jax.random.key(1), draws), parameters(n), {}
    for name, make in CANDIDATES.items():
        each = jax.jit(jax.vmap(make(n), (0, None)))(keys, phi)
        found[name] = np.stack(jax.tree.leaves(each), -1)  # [draws, 2n]
    one = found["hand"]
    for name, other in found.items():
        error = np.sqrt((one.var(0) + other.var(0)) / draws)
        assert (abs(other.mean(0) - one.mean(0)) < 6 * error + 1e-6).all(), name


def trace(name, n):
    """A fresh trace, all caches empty."""
    function, args = jax.jit(CANDIDATES[name](n)), (jax.random.key(1), parameters(n))
    forget()
    return function, args


def profiled(report, n):
    """Where varax's tracing time goes."""
    function, args = trace("varax", n)
    profile = cProfile.Profile()
    profile.runcall(function.trace, *args)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    root = str(Path(vx.__file__).parent)
    library = (f"{root}/transforms", f"{root}/ppl", f"{Path(root).resolve()}/")
    rows = [
        (f"{Path(file).name}:{line} {function}", calls, own, cumulative)
        for (file, line, function), (_, calls, own, cumulative, _) in stats.items()
        if file.startswith(library) and "/benchmarks/" not in file and "/.venv/" not in file
    ]
    ours = sum(r[2] for r in rows)
    report.say(f"\nvarax, n = {n}, under cProfile: {total:.2f} s; {ours:.2f} s own time of varax")
    for column, title in ((3, "cumulative"), (2, "own")):
        top = sorted(rows, key=lambda r: -r[column])[:10]
        cells = [(w, c, f"{o:.3f}", f"{cum:.3f}", f"{cum / total:.0%}") for w, c, o, cum in top]
        report.table((f"by {title} time", "calls", "own s", "cumulative s", "share"), cells)


def main():
    option = ("--profile", {"type": int, "metavar": "N", "help": "profile n = N"})
    report = Report("many_sites", __doc__, option)
    check()
    sizes, rounds = ((250, 500), 2) if report.quick else ((250, 500, 1000, 2000), 3)
    runs = {(name, n): Runs() for name in CANDIDATES for n in sizes}
    for at in range(rounds + 1):
        for (name, n), one in runs.items():
            function, args = trace(name, n)
            with timed(one if at else Runs()):
                function.trace(*args)
    rows = []
    for name in CANDIDATES:
        for n in sizes:
            r = runs[name, n]
            per_site = f"{statistics.median(r.cpu) / n * 1e3:.3f}"
            ratio = r.ratio(runs["hand", n])
            rows.append((name, n, spread(r.cpu), per_site, ratio, r.ratio(runs["numpyro", n])))
    report.say(f"\n{rounds} rounds; ratios: of medians, then median and quartiles by round")
    report.table(("", "n", "CPU s", "ms a site", "CPU / hand", "CPU / numpyro"), rows)
    if report.options.profile:
        profiled(report, report.options.profile)
    report.close()


if __name__ == "__main__":
    main()
