"""Bayesian Gaussian mixture with a discrete assignment for every data point, on Fisher's irises.

    pi ~ Dirichlet(1),  mu_k ~ N(0, 2^2 I),  sigma_k ~ LogNormal(-1, 0.5^2)
    z_i ~ Categorical(pi),  x_i ~ N(mu_{z_i}, diag sigma_{z_i}^2),   i = 1 .. 150, k = 1 .. 3

Three ways to treat z: a factor q(z_i) of its own for every flower (Bishop 2006, section 10.2); the
exact conditional q(z_i | x_i, pi, mu, sigma); and the sum over z_i by hand, with no choice left.
The last two are one bound, the first is below it. Whatever the guide, each z_i is summed over its
three values within its own term, which varax finds from the program: 150 assignments cost three
runs of a flower's term, not 3^150 of the program.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax import dist as d

Array = jax.Array
Params = dict[str, Any]
K, D = 3, 4


def prior() -> tuple[Array, Array, Array]:
    """pi [K], mu [K, D], sigma [K, D]."""
    pi = vx.sample("pi", d.Dirichlet(jnp.ones(K)))  # [K]
    mu = vx.sample("mu", d.Normal(jnp.zeros((K, D)), 2.0))  # [K, D]
    sigma = vx.sample("sigma", d.LogNormal(jnp.full((K, D), -1.0), 0.5))  # [K, D]
    return pi, mu, sigma


def log_joint(pi: Array, mu: Array, sigma: Array, x: Array) -> Array:
    """log p(z = k, x) of one flower x: [D], for every k: [K]."""
    return jnp.log(pi) + d.Normal(mu, sigma).log_prob(x).sum(-1)


@vx.model
def mixture(n: int) -> None:
    """p(pi, mu, sigma) prod_i p(z_i) p(x_i | z_i)."""
    pi, mu, sigma = prior()

    def flower(_: Array) -> None:
        z = vx.sample("z", d.Categorical(pi))
        vx.sample("x", d.Normal(mu[z], sigma[z]))  # [D]

    jax.vmap(flower)(jnp.arange(n))


@vx.model
def summed(x: Array) -> None:
    """The same with every z_i summed out by hand; x: [N, D]."""
    pi, mu, sigma = prior()
    each = jax.vmap(lambda x: jax.nn.logsumexp(log_joint(pi, mu, sigma, x)))(x)  # [N]
    vx.factor("x", each.sum())


def globals_(phi: Params) -> tuple[Array, Array, Array]:
    """q(pi) q(mu) q(sigma)."""
    pi = vx.sample("pi", d.Dirichlet(jnp.exp(phi["pi"])))  # [K]
    mu = vx.sample("mu", d.Normal(phi["mu"], jnp.exp(phi["mu_sd"])))  # [K, D]
    sigma = vx.sample("sigma", d.LogNormal(phi["sigma"], jnp.exp(phi["sigma_sd"])))  # [K, D]
    return pi, mu, sigma


@vx.model
def factorised(phi: Params, x: Array) -> None:
    """q(pi, mu, sigma) prod_i q(z_i)."""
    globals_(phi)
    jax.vmap(lambda logits: vx.sample("z", d.Categorical(logits=logits)))(phi["z"])  # [N]


@vx.model
def conditional(phi: Params, x: Array) -> None:
    """q(pi, mu, sigma) prod_i p(z_i | x_i, pi, mu, sigma)."""
    theta = globals_(phi)
    jax.vmap(lambda x: vx.sample("z", d.Categorical(logits=log_joint(*theta, x))))(x)  # [N]


@vx.model
def collapsed(phi: Params, x: Array) -> None:
    """q(pi, mu, sigma) alone."""
    globals_(phi)


def elbo_of(guide: vx.Model, phi: Params, x: Array) -> Array:
    """E_q[log p(pi, mu, sigma, z, x) - log q(pi, mu, sigma, z)]."""
    q = guide(phi, x).simulate()
    return mixture(len(x)).log_density(q.choices | {"x": x}) - q.log_density


def elbo_summed(phi: Params, x: Array) -> Array:
    """E_q[log p(pi, mu, sigma, x) - log q(pi, mu, sigma)]."""
    q = collapsed(phi, x).simulate()
    return summed(x).log_density(q.choices) - q.log_density


OBJECTIVES = {
    "factorised": lambda phi, x: elbo_of(factorised, phi, x),
    "conditional": lambda phi, x: elbo_of(conditional, phi, x),
    "summed by hand": elbo_summed,
}


def init(x: Any, seed: int = 0) -> Params:
    """Means at flowers that are far from each other, the rest near the prior."""
    chosen = x[seed % len(x)][None]
    for _ in range(K - 1):
        far = ((x[:, None] - chosen) ** 2).sum(-1).min(1)  # [N]
        chosen = np.concatenate([chosen, x[far.argmax()][None]])
    small, large = jnp.full((K, D), -2.0), jnp.full((K, D), -0.5)
    z = jnp.zeros((len(x), K))
    mu = jnp.asarray(chosen)
    return {"pi": jnp.ones(K), "mu": mu, "mu_sd": small, "sigma": large, "sigma_sd": small, "z": z}


def data() -> tuple[np.ndarray, np.ndarray]:
    """Standardised petals and sepals [150, 4], and the species [150]."""
    from sklearn.datasets import load_iris

    iris: Any = load_iris()
    x = (iris.data - iris.data.mean(0)) / iris.data.std(0)
    return x.astype(np.float32), iris.target


def evidence(phi: Params, x: Any, key: Array, k: int = 10_000) -> float:
    """log p(x) by importance sampling from q(pi, mu, sigma), every z_i summed out."""

    def program() -> Array:
        log_w = jax.lax.map(lambda _: elbo_summed(phi, x), jnp.arange(k), batch_size=100)
        return jax.nn.logsumexp(log_w) - jnp.log(k)

    return float(jax.jit(vx.seed(program))(key))


def species_of(phi: Params, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Components by length of petal, as the species are numbered [K]; each flower's own [N]."""
    order = np.argsort(phi["mu"][:, 2])
    pi = jnp.exp(phi["pi"]) / jnp.exp(phi["pi"]).sum()  # the mean of q(pi)
    theta = (pi, phi["mu"], jnp.exp(phi["sigma"]))
    found = np.asarray(jax.vmap(lambda x: log_joint(*theta, x).argmax())(x))  # [N]
    return order, np.argsort(order)[found]


def picture(phi: Params, x: np.ndarray, species: np.ndarray) -> Any:
    """Petals by species, and two standard deviations of every component."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Ellipse

    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    ax.scatter(x[:, 2], x[:, 3], c=species, s=12, cmap="viridis")
    for mu, sd in zip(np.asarray(phi["mu"]), 2 * np.exp(phi["sigma"]), strict=True):
        ax.add_patch(Ellipse((mu[2], mu[3]), 2 * sd[2], 2 * sd[3], fill=False, ec="C3", lw=2))
    ax.set(xlabel="petal length, standardised", ylabel="petal width, standardised")
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit three ways, print bounds, means and truth, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run mixture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    x, species = data()
    start, found = init(x, args.seed), {}
    k_fit, k_bound, k_z = jax.random.split(jax.random.key(args.seed), 3)
    print(vx.check(OBJECTIVES["factorised"], start, x, draws=32), "\n")
    phi = start
    for name, objective in OBJECTIVES.items():
        rate = optax.cosine_decay_schedule(0.03, args.steps)
        result = vx.fit(
            lambda phi, objective=objective: objective(phi, x),
            start,
            optax.adam(rate),
            steps=args.steps,
            key=k_fit,
        )
        phi = result.params
        many = vx.expect(objective, using=vx.strategies.MonteCarlo(1000))
        found[name] = float(jax.jit(many)(k_bound, phi, x))
        print(f"{name:>16} {found[name]:9.2f} nats, {result.steps / result.seconds:.0f} steps/s")
    found["evidence"] = evidence(phi, x, k_z)
    print(f"{'log evidence':>16} {found['evidence']:9.2f} (importance sampling, one labelling)")

    order, guess = species_of(phi, x)
    found["accuracy"] = float((guess == species).mean())
    print(f"\n{found['accuracy']:.1%} of the flowers are in the component of their species")
    for k, component in enumerate(order):
        print(f"species {k}: mean {x[species == k].mean(0).round(2)}", end="")
        print(f"  component {np.asarray(phi['mu'][component]).round(2)}")

    args.out.mkdir(parents=True, exist_ok=True)
    picture(phi, x, species).savefig(args.out / "mixture.png", dpi=80)
    print(f"picture {args.out / 'mixture.png'}")
    return found


if __name__ == "__main__":
    main()
