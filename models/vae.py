"""Variational autoencoder on scanned digits (Kingma and Welling 2014).

    p(z) = N(0, I),  p(x | z) = prod_i Binomial(16, sigmoid(f_theta(z)_i)),
    q(z | x) = N(mu_phi(x), diag sigma_phi(x)^2)

The data are the 1,797 images of 8 x 8 pixels with grey levels 0 to 16 that come with scikit-learn
(Alpaydin and Kaynak 1998, UCI), taken as they are: 16 binary trials a pixel. All bounds are in nats
for the integer grey levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax import dist as d

PIXELS, LEVELS, LATENT, WIDTH = 64, 16, 8, 200
Nets = dict[str, eqx.nn.MLP]


@vx.model
def decoder(net: eqx.nn.MLP) -> None:
    """p(z) p(x | z)."""
    z = vx.sample("z", d.Normal(jnp.zeros(LATENT), 1.0))  # [8]
    vx.sample("x", d.Binomial(LEVELS, logits=net(z)))  # [64]


@vx.model
def encoder(net: eqx.nn.MLP, x: jax.Array) -> None:
    """q(z | x), for one image x: [64]."""
    mean, log_sd = jnp.split(net(x / LEVELS), 2)  # [8], [8]
    vx.sample("z", d.Normal(mean, jnp.exp(log_sd)))


def log_weight(nets: Nets, x: jax.Array) -> jax.Array:
    """log p(x, z) - log q(z | x) at z ~ q(z | x), for one image x: [64]."""
    q = encoder(nets["encoder"], x).simulate()
    return decoder(nets["decoder"]).log_density(q.choices | {"x": x}) - q.log_density


def elbo(nets: Nets, batch: jax.Array) -> jax.Array:
    """Evidence lower bound a data point; batch: [B, 64]."""
    return jax.vmap(lambda x: log_weight(nets, x))(batch).mean()


def iwelbo(nets: Nets, batch: jax.Array, k: int = 5) -> jax.Array:
    """Importance-weighted bound a data point (Burda, Grosse and Salakhutdinov 2016)."""
    draws = jnp.arange(k)
    log_w = jax.vmap(lambda x: jax.vmap(lambda _: log_weight(nets, x))(draws))(batch)  # [B, k]
    return (jax.nn.logsumexp(log_w, axis=1) - jnp.log(k)).mean()


OBJECTIVES = {"elbo": elbo, "iwelbo": iwelbo}


def init(key: jax.Array) -> Nets:
    """Encoder 64-200-200-(8 + 8), decoder 8-200-200-64."""
    one, two = jax.random.split(key)
    return {
        "encoder": eqx.nn.MLP(PIXELS, 2 * LATENT, WIDTH, 2, key=one),
        "decoder": eqx.nn.MLP(LATENT, PIXELS, WIDTH, 2, key=two),
    }


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images [1500, 64], held-out images [297, 64] and the held-out digits [297]."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, labels = digits.data[order].astype(np.float32), digits.target[order]
    return images[:1500], images[1500:], labels[1500:]


def bounds(nets: Nets, images: Any, key: jax.Array, k: int = 100) -> tuple[float, float]:
    """ELBO and k-sample IWAE bound a data point, from the same k draws."""

    @eqx.filter_jit
    def run(nets: Nets, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def program() -> jax.Array:
            once = jax.vmap(lambda x: log_weight(nets, x))
            return jax.lax.map(lambda _: once(images), jnp.arange(k))  # [k, N]

        log_w = vx.seed(program)(key)
        return log_w.mean(), (jax.nn.logsumexp(log_w, axis=0) - jnp.log(k)).mean()

    found = run(nets, jnp.asarray(images), key)
    return float(found[0]), float(found[1])


def picture(nets: Nets, images: Any, labels: np.ndarray, key: jax.Array) -> Any:
    """Reconstructions, samples from the prior, and the latent plane of held-out images."""
    import matplotlib.pyplot as plt

    means = jax.vmap(nets["encoder"])(images / LEVELS)[:, :LATENT]  # [N, 8]
    shown = np.stack([np.flatnonzero(labels == n)[0] for n in range(10)])
    again = jax.nn.sigmoid(jax.vmap(nets["decoder"])(means[shown]))  # [10, 64]
    prior = jax.vmap(lambda k: decoder(nets["decoder"]).simulate(k)["x"])(jax.random.split(key, 49))
    centred = means - means.mean(0)
    plane = np.asarray(centred @ jnp.linalg.svd(centred, full_matrices=False)[2][:2].T)  # [N, 2]

    def tiles(rows: list[Any]) -> np.ndarray:
        squares = [[np.asarray(x).reshape(8, 8) for x in row] for row in rows]
        return np.block([[np.pad(x, 1) for x in row] for row in squares])

    figure, axes = plt.subplots(
        1, 3, figsize=(12.5, 4), width_ratios=[1.2, 1, 1.25], layout="constrained"
    )
    rows = [images[shown][:5], again[:5] * LEVELS, images[shown][5:], again[5:] * LEVELS]
    axes[0].imshow(tiles(rows), cmap="gray_r", vmin=0, vmax=LEVELS)
    axes[0].set_title("held-out digits, each above its reconstruction")
    axes[1].imshow(tiles(list(np.asarray(prior).reshape(7, 7, 64))), cmap="gray_r")
    axes[1].set_title("samples from the model")
    dots = axes[2].scatter(*plane.T, c=labels, cmap="tab10", s=14, vmin=-0.5, vmax=9.5)
    axes[2].set_title("posterior means, first two principal axes")
    figure.colorbar(dots, ax=axes[2], ticks=range(10), label="digit")
    for ax in axes[:2]:
        ax.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit, print the bounds, write the picture and the parameters."""
    parser = argparse.ArgumentParser(
        prog="varax run vae", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--objective", choices=sorted(OBJECTIVES), default="elbo")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    train, test, labels = data()
    k_init, k_fit, k_bound, k_draw = jax.random.split(jax.random.key(args.seed), 4)
    result = vx.fit(
        OBJECTIVES[args.objective],
        init(k_init),
        optax.adam(1e-3),
        steps=args.steps,
        key=k_fit,
        data=train,
        batch_size=args.batch_size,
    )
    nets = result.params
    (train_elbo, train_iwae), (test_elbo, test_iwae) = (
        bounds(nets, x, k_bound) for x in (train, test)
    )
    print(f"\n{result.steps} steps of {args.objective} in {result.seconds:.0f} s; nats an image:")
    print(f"{'':>10}{'ELBO':>10}{'IWAE, 100 samples':>20}")
    print(f"{'train':>10}{train_elbo:>10.2f}{train_iwae:>20.2f}")
    print(f"{'held out':>10}{test_elbo:>10.2f}{test_iwae:>20.2f}")

    args.out.mkdir(parents=True, exist_ok=True)
    picture(nets, test, labels, k_draw).savefig(args.out / "vae.png", dpi=110)
    eqx.tree_serialise_leaves(args.out / "vae.eqx", nets)
    print(f"picture {args.out / 'vae.png'}, parameters {args.out / 'vae.eqx'}")
    return {
        "train_elbo": train_elbo,
        "train_iwae": train_iwae,
        "test_elbo": test_elbo,
        "test_iwae": test_iwae,
    }


if __name__ == "__main__":
    main()
