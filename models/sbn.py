"""Sigmoid belief network with two layers of binary units, by five gradient estimators.

    p(h2) = Bern(sigmoid(b)),  p(h1 | h2),  p(x | h1);  q(h1 | x),  q(h2 | h1): all of the form
    prod_j Bern(sigmoid((W h + c)_j))

The data are scikit-learn's 8 x 8 digits, each pixel drawn once as a coin from its grey level. A
bound with 2^20 states a layer is out of reach of enumeration, so the encoder's gradient is a
matter of variance: the score function alone, against the mean of a second run (leave one out),
with mirrored values (DisARM), and in the multi-sample bound of VIMCO.

Neal 1992 (model); Mnih and Gregor 2014, Mnih and Rezende 2016, Dong, Mnih and Tucker 2020
(estimators).
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
from varax import estimators as est

Array = jax.Array
Params = dict[str, Any]
PIXELS, H1, H2 = 64, 20, 20


def affine(layer: dict[str, Array], h: Array) -> Array:
    """W h + c."""
    return layer["W"] @ h + layer["c"]


@vx.model
def network(theta: Params) -> None:
    """p(h2) p(h1 | h2) p(x | h1)."""
    h2 = vx.sample("h2", d.Bernoulli(logits=theta["b"]))  # [H2]
    h1 = vx.sample("h1", d.Bernoulli(logits=affine(theta["h1"], h2)))  # [H1]
    vx.sample("x", d.Bernoulli(logits=affine(theta["x"], h1)))  # [64]


@vx.model
def encoder(phi: Params, x: Array, estimator: est.Estimator) -> None:
    """q(h1 | x) q(h2 | h1), for one image x: [64]."""
    h1 = vx.sample(
        "h1", d.Bernoulli(logits=affine(phi["h1"], x - 0.5)), estimator=estimator
    )  # [H1]
    vx.sample("h2", d.Bernoulli(logits=affine(phi["h2"], h1 - 0.5)), estimator=estimator)  # [H2]


def elbo(params: Params, batch: Array, estimator: est.Estimator) -> Array:
    """Evidence lower bound a data point; batch: [B, 64]."""

    def one(x: Array) -> Array:
        guide = encoder(params["q"], x, estimator)
        return vx.objectives.elbo(network(params["p"]), guide, {"x": x})

    return jax.vmap(one)(batch).mean()


def vimco(params: Params, batch: Array, k: int = 2) -> Array:
    """Bound of k samples a data point, each with a learning signal of its own."""

    def one(x: Array) -> Array:
        guide = encoder(params["q"], x, est.Score())
        return vx.objectives.vimco(network(params["p"]), guide, {"x": x}, k)

    return jax.vmap(one)(batch).mean()


OBJECTIVES = {
    "score": lambda params, x: elbo(params, x, est.Score()),
    "leave-one-out": lambda params, x: elbo(params, x, est.Score(est.LeaveOneOut(2))),
    "arm": lambda params, x: elbo(params, x, est.ARM()),
    "disarm": lambda params, x: elbo(params, x, est.DisARM()),
    "vimco": vimco,
}


def init(key: Array) -> Params:
    """Small weights."""
    sizes = {"h1": (H1, H2), "x": (PIXELS, H1), "q1": (H1, PIXELS), "q2": (H2, H1)}
    layers = {
        name: {"W": jax.random.normal(k, shape) / shape[1] ** 0.5, "c": jnp.zeros(shape[0])}
        for (name, shape), k in zip(sizes.items(), jax.random.split(key, 4), strict=True)
    }
    return {
        "p": {"b": jnp.zeros(H2), "h1": layers["h1"], "x": layers["x"]},
        "q": {"h1": layers["q1"], "h2": layers["q2"]},
    }


def data() -> tuple[np.ndarray, np.ndarray]:
    """Binary images, 1500 to train [1500, 64] and 297 held out [297, 64]."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rng = np.random.default_rng(0)
    images = rng.permutation(digits.data) / 16
    images = (rng.random(images.shape) < images).astype(np.int32)
    return images[:1500], images[1500:]


def bounds(params: Params, images: Any, key: Array, k: int = 200) -> tuple[float, float]:
    """ELBO and k-sample bound a data point, from the same draws."""

    @jax.jit
    def run(params: Params, images: Array, key: Array) -> tuple[Array, Array]:
        def one(x: Array) -> Array:
            q = encoder(params["q"], x, est.Score()).simulate()
            return network(params["p"]).log_density(q.choices | {"x": x}) - q.log_density

        draws = jnp.arange(k)
        log_w = vx.seed(lambda: jax.lax.map(lambda _: jax.vmap(one)(images), draws))(key)  # [k, N]
        return log_w.mean(), (jax.nn.logsumexp(log_w, axis=0) - jnp.log(k)).mean()

    low, high = run(params, jnp.asarray(images), key)
    return float(low), float(high)


def spread(params: Params, batch: Any, objective: Any, key: Array, n: int = 200) -> float:
    """Root mean square standard deviation of the encoder's gradient."""

    @jax.jit
    def run(params: Params, batch: Array, key: Array) -> Array:
        def gradient(key: Array) -> Any:
            return vx.grad(objective)(key, params, batch)["q"]

        draws = jax.lax.map(gradient, jax.random.split(key, n))
        flat = jnp.concatenate([x.reshape(n, -1) for x in jax.tree.leaves(draws)], 1)
        return jnp.sqrt(flat.var(0).sum())

    return float(run(params, jnp.asarray(batch), key))


def picture(params: Params, images: Any, key: Array) -> Any:
    """Held-out images beside images from the model."""
    import matplotlib.pyplot as plt

    def mean(key: Array) -> Array:  # of x given h1 from the prior
        h1 = network(params["p"]).simulate(key)["h1"]
        return jax.nn.sigmoid(affine(params["p"]["x"], h1))

    drawn = jax.vmap(mean)(jax.random.split(key, 32))
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
    shown = {"held out": images[:32], "from the model": drawn}
    for ax, (title, these) in zip(axes, shown.items(), strict=True):
        rows = [
            [np.pad(np.asarray(x).reshape(8, 8), 1) for x in these[i : i + 8]]
            for i in (0, 8, 16, 24)
        ]
        ax.imshow(np.block(rows), cmap="gray_r")
        ax.set(title=title, xticks=[], yticks=[])
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each estimator, print bounds and spreads, write a picture."""
    parser = argparse.ArgumentParser(
        prog="varax run sbn", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--estimator", choices=["all", *OBJECTIVES], default="all")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    train, test = data()
    k_init, k_fit, k_bound, k_draw = jax.random.split(jax.random.key(args.seed), 4)
    start, found = init(k_init), {}
    print(f"{'':>14}{'gradient sd':>12}{'ELBO':>9}{'bound, 200 samples':>20}{'steps/s':>9}")
    for name, objective in OBJECTIVES.items():
        if args.estimator not in ("all", name):
            continue
        result = vx.fit(
            objective,
            start,
            optax.adam(3e-3),
            steps=args.steps,
            key=k_fit,
            data=train,
            batch_size=args.batch_size,
        )
        sd = spread(start, train[: args.batch_size], objective, k_draw)
        low, high = bounds(result.params, test, k_bound)
        speed = result.steps / result.seconds
        print(f"{name:>14}{sd:>12.3f}{low:>9.2f}{high:>20.2f}{speed:>9.0f}", flush=True)
        found |= {f"{name} sd": sd, f"{name} elbo": low, f"{name} bound": high}

    args.out.mkdir(parents=True, exist_ok=True)
    picture(result.params, test, k_draw).savefig(args.out / "sbn.png", dpi=80)
    print(f"held-out images, nats each; picture {args.out / 'sbn.png'}")
    return found


if __name__ == "__main__":
    main()
