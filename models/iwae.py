"""Importance weighted autoencoders: the bound of k = 1, 5 and 50 samples as training objective.

    L_k = E[log 1/k sum_i w_i],   w_i = p(x, h_i) / q(h_i | x),   h_i ~ q(h | x)     (equation 8)

Burda, Grosse and Salakhutdinov 2016 train one network with each k on binarised MNIST and report
-log p(x) of held-out images, estimated by L_5000: 86.76, 85.54, 84.78 nats for k = 1, 5, 50 (one
stochastic layer, table 1). Here the images are scikit-learn's digits, 8 x 8 with grey levels 0 to
16, and the estimate is L_1000: other numbers, in the same order.
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

Array = jax.Array
PIXELS, LEVELS, LATENT, WIDTH = 64, 16, 10, 100
PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}  # MNIST, Burda et al. 2016, table 1
Nets = dict[str, eqx.nn.MLP]


@vx.model
def decoder(net: eqx.nn.MLP) -> None:
    """p(h) p(x | h)."""
    h = vx.sample("h", d.Normal(jnp.zeros(LATENT), 1.0))  # [10]
    vx.sample("x", d.Binomial(LEVELS, logits=net(h)))  # [64]


@vx.model
def encoder(net: eqx.nn.MLP, x: Array) -> None:
    """q(h | x), for one image x: [64]."""
    mean, log_sd = jnp.split(net(x / LEVELS), 2)  # [10], [10]
    vx.sample("h", d.Normal(mean, jnp.exp(log_sd)))


def log_weight(nets: Nets, x: Array) -> Array:
    """log w at h ~ q(h | x)."""
    q = encoder(nets["q"], x).simulate()
    return decoder(nets["p"]).log_density(q.choices | {"x": x}) - q.log_density


def bound(nets: Nets, batch: Array, k: int) -> Array:
    """L_k, mean of the images of a batch [B, 64]."""

    def one(x: Array) -> Array:
        log_w = jax.vmap(lambda _: log_weight(nets, x))(jnp.arange(k))  # [k]
        return jax.nn.logsumexp(log_w) - jnp.log(k)

    return jax.vmap(one)(batch).mean()


def init(key: Array) -> Nets:
    """Two hidden layers of tanh units each, as in the paper."""
    one, two = jax.random.split(key)
    return {
        "q": eqx.nn.MLP(PIXELS, 2 * LATENT, WIDTH, 2, jnp.tanh, key=one),
        "p": eqx.nn.MLP(LATENT, PIXELS, WIDTH, 2, jnp.tanh, key=two),
    }


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images with grey levels 0 to 16: 1500 to train [1500, 64] and 297 held out [297, 64]."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = np.random.default_rng(0).permutation(digits.data).astype(np.float32)
    return images[:1500], images[1500:]


def evaluate(nets: Nets, images: Any, key: Array, k: int = 1000) -> dict[str, float]:
    """-L_k, -L_1 and the number of active units of the latent layer (section 5.2), held out."""

    @eqx.filter_jit
    def run(nets: Nets, images: Array, key: Array) -> tuple[Array, Array, Array]:
        def program() -> Array:
            once = jax.vmap(lambda x: log_weight(nets, x))
            return jax.lax.map(lambda _: once(images), jnp.arange(k))  # [k, N]

        log_w = vx.seed(program)(key)
        means = jax.vmap(nets["q"])(images / LEVELS)[:, :LATENT]  # [N, 10]
        l_k = (jax.nn.logsumexp(log_w, axis=0) - jnp.log(k)).mean()
        return -l_k, -log_w.mean(), (means.var(0) > 0.01).sum()

    names = ("nll", "vae", "active")
    return dict(zip(names, map(float, run(nets, jnp.asarray(images), key)), strict=True))


def picture(histories: dict[int, np.ndarray], window: int = 200) -> Any:
    """Training bounds."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    for k, history in histories.items():
        window = max(1, min(window, len(history) // 4))
        mean = np.convolve(history, np.ones(window) / window, "valid")
        ax.plot(np.arange(window - 1, len(history)), mean, label=f"k = {k}")
        ax.set_ylim(*np.quantile(mean, [0.15, 1.0]) + np.array([0.0, 0.5]))
    ax.set(xlabel="step", ylabel="$L_k$, nats")
    ax.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with every k, print held-out bounds beside the published ones, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run iwae", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--k", type=int, nargs="+", default=sorted(PUBLISHED))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    train, test = data()
    k_init, k_fit, k_test = jax.random.split(jax.random.key(args.seed), 3)
    found, histories = {}, {}
    print(f"{'k':>4}{'-L_1':>9}{'-L_1000':>9}{'active units':>14}{'MNIST, published':>18}")
    for k in args.k:
        result = vx.fit(
            lambda nets, batch, k=k: bound(nets, batch, k),
            init(k_init),
            optax.adam(optax.cosine_decay_schedule(1e-3, args.steps), eps=1e-4),
            steps=args.steps,
            key=k_fit,
            data=train,
            batch_size=args.batch_size,
        )
        seen = evaluate(result.params, test, k_test)
        numbers = f"{seen['vae']:>9.2f}{seen['nll']:>9.2f}{seen['active']:>14.0f}"
        print(f"{k:>4}{numbers}{PUBLISHED.get(k, float('nan')):>18.2f}", flush=True)
        histories[k] = result.history
        found |= {f"{name} {k}": value for name, value in seen.items()}

    args.out.mkdir(parents=True, exist_ok=True)
    picture(histories).savefig(args.out / "iwae.png", dpi=80)
    print(f"nats a held-out image; picture {args.out / 'iwae.png'}")
    return found


if __name__ == "__main__":
    main()
