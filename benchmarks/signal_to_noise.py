"""The signal of gradient estimates as the number of draws grows: |mean| / sd of one estimate.

    z ~ Normal(mu, I),  x ~ Normal(z, I),  guide z ~ Normal(x / 2 + b, 2/3 I),  D dimensions

The gradient in mu, the model's, and in b, the guide's, near the best b = mu / 2. A slope is that of
the signal's logarithm in the logarithm of K, the number of draws in all, by least squares. The
tighter the importance-weighted bound, the weaker is its guide's signal: slope -1/2, where averaging
independent estimates has 1/2 (Rainforth et al. 2018). `miwae` and the guide's half of `piwae` have
K / 8 bounds of 8 draws each; `elbo` and `sticking_the_landing` are means over K draws.

The signal is the mean over coordinates. The mean gradient of `iwelbo` is too small to be seen under
its own noise: that of `dreg` takes its place in the guide, which has the same expectation.

    python benchmarks/signal_to_noise.py [--quick] [--plot FILE] [--save | --out FILE]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import Report

import varax as vx
from varax import dist as d
from varax import objectives as ob

D, GROUP = 5, 8  # dimensions; draws to a bound in miwae
X = jnp.linspace(-1.0, 1.5, D)
MU, B = jnp.full(D, 0.2), jnp.full(D, 0.35)  # the best b is 0.1


@vx.model
def model(mu):
    z = vx.sample("z", d.Normal(mu, 1.0))  # [D]
    vx.sample("x", d.Normal(z, 1.0))  # [D]


@vx.model
def guide(b):
    vx.sample("z", d.Normal(X / 2 + b, math.sqrt(2 / 3)))  # [D]


def mean_of(objective: Callable[..., Any]) -> Callable[..., Any]:
    """The mean of independent copies of an objective of one draw."""

    def mean(p, q, data, k):
        return jax.vmap(lambda _: objective(p, q, data))(jnp.arange(k)).mean()

    return mean


def groups(name: str) -> Callable[..., Any]:
    """One of piwae's scalars."""
    return lambda p, q, data, k: ob.piwae(p, q, data, GROUP, k // GROUP)[name]


Objective = tuple[str, str, Callable[..., Any], float]  # name, group, objective, expected slope
OBJECTIVES: list[Objective] = [
    ("elbo", "guide", mean_of(ob.elbo), 0.5),
    ("sticking_the_landing", "guide", mean_of(ob.sticking_the_landing), 0.5),
    ("iwelbo", "guide", ob.iwelbo, -0.5),
    ("dreg", "guide", ob.dreg, 0.5),
    ("miwae", "guide", lambda p, q, data, k: ob.miwae(p, q, data, GROUP, k // GROUP), 0.5),
    ("piwae", "guide", groups("guide"), 0.5),
    ("elbo", "model", mean_of(ob.elbo), 0.5),
    ("iwelbo", "model", ob.iwelbo, 0.5),
    ("miwae", "model", lambda p, q, data, k: ob.miwae(p, q, data, GROUP, k // GROUP), 0.5),
    ("piwae", "model", groups("model"), 0.5),
]


def moments(objective: Callable[..., Any], group: str, k: int, n: int) -> tuple[Any, Any]:
    """Mean and standard deviation of n gradients in mu or b: [D] each."""

    def program(theta: jax.Array) -> jax.Array:
        mu, b = (theta, B) if group == "model" else (MU, theta)
        return objective(model(mu), guide(b), {"x": X}, k)

    at = MU if group == "model" else B
    chunk = max(16, 2**16 // k)
    estimate = jax.jit(jax.vmap(lambda key: vx.grad(program)(key, at)))
    one, two, count = np.zeros(D), np.zeros(D), n // chunk + 1
    for key in jax.random.split(jax.random.key(k), count):
        found = np.asarray(estimate(jax.random.split(key, chunk)), float)
        one, two = one + found.sum(0), two + (found**2).sum(0)
    n = count * chunk
    return one / n, np.sqrt((two / n - (one / n) ** 2) * n / (n - 1))


def signals(ks: list[int], n: int) -> dict[tuple[str, str], np.ndarray]:
    """`(objective, group)` -> signal for each k."""
    found = {
        (name, group): [moments(objective, group, k, max(n, 2**20 // k)) for k in ks]
        for name, group, objective, _ in OBJECTIVES
    }
    means = {at: [m for m, _ in each] for at, each in found.items()}
    means["iwelbo", "guide"] = means["dreg", "guide"]
    return {
        at: np.array([np.mean(np.abs(m) / s) for m, (_, s) in zip(means[at], each, strict=True)])
        for at, each in found.items()
    }


def plot(found: dict[tuple[str, str], np.ndarray], ks: list[int], file: Path) -> None:
    """Signal against draws, one panel for each parameter group."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained")
    for ax, group in zip(axes, ("guide", "model"), strict=True):
        for i, name in enumerate(names):
            if (name, group) in found:
                style = {"color": f"C{i}", "marker": "osDv^x"[i], "ms": 4, "lw": 1}
                ax.loglog(ks, found[name, group], label=name, **style)
        ax.set(title=f"gradient of the {group}", xlabel="draws K")
    axes[0].set_ylabel("|mean| / sd")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(file, dpi=110)


def main() -> None:
    report = Report("signal_to_noise", __doc__, ("--plot", {"type": Path, "help": "a figure"}))
    ks = [16, 64, 256] if report.quick else [16, 32, 64, 128, 256, 512, 1024]
    found = signals(ks, 4096 if report.quick else 8192)
    for group in ("guide", "model"):
        rows = []
        for name, of, _, expected in OBJECTIVES:
            if of == group:
                values = found[name, of]
                slope = np.polyfit(np.log(ks), np.log(values), 1)[0]
                within = "yes" if abs(slope - expected) < 0.1 else "NO"
                rows.append(
                    (
                        name,
                        *(f"{v:.3g}" for v in values),
                        f"{slope:.2f}",
                        f"{expected:+.1f}",
                        within,
                    )
                )
        report.say(f"\n\n{group}: signal for K draws")
        report.table(("", *(f"K = {k}" for k in ks), "slope", "theory", "within 0.1"), rows)
    if report.options.plot:
        plot(found, ks, report.options.plot)
    report.close()


if __name__ == "__main__":
    main()
