"""The noisy cone: one model, every bound (Becker et al. 2024, table 4).

    x, y ~ N(0, 10^2),   z ~ N(x^2 + y^2, (0.1 + (x^2 + y^2) / 100)^2),   z = 5 observed

The posterior is a thin ring. Three guides: independent normals; a ring whose angle u is an
auxiliary choice, integrated out by m draws of its prior; the same ring with the angle's posterior
as the proposal, which makes its marginal density exact.

    HVI          log p(x, y, z) - log q(x, y | u)                     m = 1
    IWHVI(m)     log p(x, y, z) - log 1/m sum_j q(x, y | u_j)         u_1 is the angle drawn
    DIWHVI(k, m) log 1/k sum_i of such weights

Ranganath, Tran and Blei 2016 (HVI); Sobolev and Vetrov 2019 (IWHVI, DIWHVI).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax import dist as d

Z, EVIDENCE = 5.0, -5.32323  # log p(z = 5)
DATA = {"z": Z}
Params = dict[str, jax.Array]


@vx.model
def cone() -> None:
    """p(x, y, z)."""
    x = vx.sample("x", d.Normal(0.0, 10.0))
    y = vx.sample("y", d.Normal(0.0, 10.0))
    r2 = x**2 + y**2
    vx.sample("z", d.Normal(r2, 0.1 + r2 / 100.0))


@vx.model
def naive(phi: Params) -> None:
    """q(x) q(y)."""
    vx.sample("x", d.Normal(phi["mx"], jnp.exp(phi["sx"])))
    vx.sample("y", d.Normal(phi["my"], jnp.exp(phi["sy"])))


@vx.model
def ring(phi: Params) -> None:
    """q(u) q(x | u) q(y | u): normal noise around a circle of radius sqrt(z)."""
    u = vx.sample("u", d.Uniform(-jnp.pi, jnp.pi))
    vx.sample("x", d.Normal(jnp.sqrt(Z) * jnp.cos(u), jnp.exp(phi["sx"])))
    vx.sample("y", d.Normal(jnp.sqrt(Z) * jnp.sin(u), jnp.exp(phi["sy"])))


@vx.model
def round_ring(phi: Params) -> None:
    """The same with one noise for both and a radius of its own."""
    u = vx.sample("u", d.Uniform(-jnp.pi, jnp.pi))
    vx.sample("x", d.Normal(phi["r"] * jnp.cos(u), jnp.exp(phi["s"])))
    vx.sample("y", d.Normal(phi["r"] * jnp.sin(u), jnp.exp(phi["s"])))


@vx.model
def angle(phi: Params, at: dict[str, jax.Array]) -> None:
    """q(u | x, y) of the round ring, which is von Mises."""
    x, y = at["x"], at["y"]
    kappa = phi["r"] * jnp.hypot(x, y) / jnp.exp(2 * phi["s"])
    vx.sample("u", d.VonMises(jnp.arctan2(y, x), kappa))


def around(phi: Params, m: int) -> vx.Measure:
    """The ring's marginal by m draws of the angle's prior."""
    return vx.marginal(ring(phi), keep=("x", "y"), using=vx.importance(m))


def exactly(phi: Params) -> vx.Measure:
    """The round ring's marginal by the angle's posterior."""
    using = vx.importance(1, proposal=lambda at: angle(phi, at))
    return vx.marginal(round_ring(phi), keep=("x", "y"), using=using)


NAIVE = {"mx": 0.5, "my": 2.0, "sx": -0.5, "sy": -0.5}
RING = {"sx": -0.5, "sy": -0.5}
ROUND = {"r": 2.0, "s": -1.5}
elbo, iwelbo = vx.objectives.elbo, vx.objectives.iwelbo

# name: (the bound, the parameters' start, the paper's value, the optimum's)
BOUNDS: dict[str, tuple[Callable[[Params], jax.Array], dict[str, float], Any, Any]] = {
    "ELBO": (lambda phi: elbo(cone(), naive(phi), DATA), NAIVE, -8.08, -8.0745),
    "IWELBO(5)": (lambda phi: iwelbo(cone(), naive(phi), DATA, 5), NAIVE, -7.79, -7.533),
    "HVI": (lambda phi: elbo(cone(), around(phi, 1), DATA), RING, -9.75, -9.749),
    "IWHVI(5)": (lambda phi: elbo(cone(), around(phi, 5), DATA), RING, -8.18, -8.180),
    "DIWHVI(5, 5)": (lambda phi: iwelbo(cone(), around(phi, 5), DATA, 5), RING, -7.33, -7.314),
    "DIWHVI(20, 50)": (lambda phi: iwelbo(cone(), around(phi, 50), DATA, 20), RING, None, -5.494),
    "ELBO, exact ring": (lambda phi: elbo(cone(), exactly(phi), DATA), ROUND, None, None),
}


def fit(name: str, steps: int, draws: int, key: jax.Array, *, progress: bool = True) -> Params:
    """The parameters that maximise the mean of `draws` copies of a bound."""
    bound, start, *_ = BOUNDS[name]

    def objective(phi: Params) -> jax.Array:
        return jax.vmap(lambda _: bound(phi))(jnp.arange(draws)).mean()

    rate = optax.cosine_decay_schedule(0.03, steps)
    phi = {a: jnp.asarray(x) for a, x in start.items()}
    return vx.fit(objective, phi, optax.adam(rate), steps, key, progress=progress).params


def evaluate(name: str, phi: Params, draws: int, key: jax.Array) -> tuple[float, float]:
    """A bound's mean and its standard error."""
    bound = BOUNDS[name][0]
    once = jax.jit(jax.vmap(lambda key: vx.expect(bound)(key, phi)))
    values = np.concatenate([once(jax.random.split(k, 1000)) for k in jax.random.split(key, draws)])
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def picture(fits: dict[str, Params], key: jax.Array) -> Any:
    """Draws of the guides over the posterior."""
    import matplotlib.pyplot as plt

    grid = np.linspace(-4, 4, 200)
    at = {"x": jnp.array(grid[None, :]), "y": jnp.array(grid[:, None])}
    score = lambda x, y: cone().log_density({"x": x, "y": y, "z": Z})  # noqa: E731
    x, y = jnp.broadcast_arrays(at["x"], at["y"])
    density = np.exp(np.asarray(jax.vmap(jax.vmap(score))(x, y)) - EVIDENCE)
    guides = {"ELBO": naive, "IWHVI(5)": ring, "ELBO, exact ring": round_ring}
    shown = [name for name in guides if name in fits]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(4 * len(shown), 4), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes[0], shown, strict=True):
        guide = guides[name](fits[name])
        draws = jax.vmap(lambda k, g=guide: g.simulate(k).choices)(jax.random.split(key, 500))
        ax.contourf(grid, grid, density, levels=12, cmap="Blues")
        ax.plot(draws["x"], draws["y"], ".", ms=2, color="C3")
        ax.set(title=f"guide of {name}", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit every bound, print them beside the published ones and the evidence, draw the guides."""
    parser = argparse.ArgumentParser(
        prog="varax run cone", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--bounds", nargs="*", choices=list(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=64, help="copies of the bound in a step")
    parser.add_argument("--evaluate", type=int, default=200, help="thousands of draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    k_fit, k_score, k_draw = jax.random.split(jax.random.key(args.seed), 3)
    fits, found = {}, {}
    print(f"log p(z = 5) = {EVIDENCE}; {args.steps} steps of {args.draws} draws\n")
    print(f"{'bound':>18}{'fitted':>10}{'se':>8}{'optimum':>10}{'paper':>8}{'seconds':>9}")
    for name in args.bounds:
        began = time.perf_counter()
        fits[name] = fit(name, args.steps, args.draws, k_fit, progress=False)
        found[name], error = evaluate(name, fits[name], args.evaluate, k_score)
        _, _, paper, optimum = BOUNDS[name]
        shown = [f"{x:.2f}" if x is not None else "" for x in (optimum, paper)]
        seconds = time.perf_counter() - began
        print(
            f"{name:>18}{found[name]:>10.3f}{error:>8.3f}{shown[0]:>10}{shown[1]:>8}{seconds:>9.0f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    picture(fits, k_draw).savefig(args.out / "cone.png", dpi=110)
    print(f"\npicture {args.out / 'cone.png'}")
    return found


if __name__ == "__main__":
    main()
