"""Attend, infer, repeat: count, locate and recognise the digits of a canvas (Eslami et al. 2016).

For t = 1, 2, 3, as long as there is one more object:

    present_t ~ Bernoulli(1 / 2),   where_t ~ N(0, diag s^2): log scale, x, y,   what_t ~ N(0, I)
    canvas = sum_t place(decode(what_t), where_t),   image ~ N(canvas, 0.3^2)

The guide is a recurrent network that looks at the image, at a glimpse of it around where_t, and at
what it has found before. Counting is discrete, and how its gradient is estimated decides whether
it is learned: `--estimator` names them (Becker et al. 2024, table 2).

Canvases of 20 x 20 pixels with 0, 1 or 2 of the 8 x 8 digits that come with scikit-learn; or those
of 50 x 50 with MNIST digits, where the folder VARAX_DATA has them (`--data multi_mnist`).
"""

from __future__ import annotations

import argparse
import os
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
from varax import estimators as est

STEPS, CANVAS, SPRITE, WHAT, HIDDEN, NOISE = 3, 20, 8, 20, 128, 0.3
MORE = 0.5  # prior probability of one more object
ANNEALED = 4000  # steps until it is that
WHERE_SD = jnp.array([0.1, 0.6, 0.6])  # log scale, x, y


class Nets(eqx.Module):
    """Decoder of sprites; the guide's networks."""

    decoder: eqx.nn.MLP
    embed: eqx.nn.MLP
    cell: eqx.nn.GRUCell
    head: eqx.nn.MLP
    glimpse: eqx.nn.MLP
    canvas: int = eqx.field(static=True)  # C
    side: int = eqx.field(static=True)  # S, of a sprite

    def __init__(self, key: jax.Array, canvas: int = CANVAS, side: int = SPRITE):
        k = jax.random.split(key, 5)
        self.canvas, self.side = canvas, side
        self.decoder = eqx.nn.MLP(WHAT, side**2, 128, 1, key=k[0])
        self.embed = eqx.nn.MLP(canvas**2, HIDDEN, HIDDEN, 1, key=k[1])
        self.cell = eqx.nn.GRUCell(HIDDEN + 3 + WHAT + 1, HIDDEN, key=k[2])
        self.head = eqx.nn.MLP(HIDDEN, 1 + 6, 64, 1, key=k[3])
        self.glimpse = eqx.nn.MLP(side**2, 2 * WHAT, 128, 1, key=k[4])


def window(where: jax.Array, canvas: int, side: int) -> tuple[jax.Array, jax.Array]:
    """Linear interpolation from canvas rows and columns to those of a sprite, each [S, C]."""
    scale, centre = jnp.exp(where[0]), (canvas - 1) / 2 * (1 + where[1:])  # x, y
    offset = scale * (jnp.arange(side) - (side - 1) / 2)  # [S]
    at = centre[:, None, None] + offset[:, None] - jnp.arange(canvas)  # [2, S, C]
    columns, rows = jax.nn.relu(1 - abs(at) / scale)
    return rows, columns


def place(sprite: jax.Array, where: jax.Array, canvas: int) -> jax.Array:
    """A sprite [S, S] on an empty canvas [C, C]."""
    rows, columns = window(where, canvas, len(sprite))
    return rows.T @ sprite @ columns


def attend(image: jax.Array, where: jax.Array, side: int) -> jax.Array:
    """The glimpse [S, S] of an image [C, C]."""
    rows, columns = window(where, len(image), side)
    return rows @ image @ columns.T


def sprite(nets: Nets, what: jax.Array) -> jax.Array:
    """A digit [S, S], dark at first."""
    return jax.nn.sigmoid(nets.decoder(what) - 2.0).reshape(nets.side, nets.side)


@vx.model
def scene(nets: Nets, more_p: Any = MORE) -> None:
    """p(present, where, what, image)."""
    more, canvas = jnp.array(1), jnp.zeros((nets.canvas, nets.canvas))
    for t in range(STEPS):
        more = vx.sample(f"present{t}", vx.masked(d.Bernoulli(more_p), more == 1)) * more
        here = more == 1
        where = vx.sample(f"where{t}", vx.masked(d.Normal(jnp.zeros(3), WHERE_SD), here))  # [3]
        what = vx.sample(f"what{t}", vx.masked(d.Normal(jnp.zeros(WHAT), 1.0), here))  # [20]
        canvas += more * place(sprite(nets, what), where, nets.canvas)
    vx.sample("image", d.Normal(canvas, NOISE))  # [C, C]


@vx.model
def infer(nets: Nets, image: jax.Array) -> None:
    """q(present, where, what | image)."""
    seen, h = nets.embed(image.ravel()), jnp.zeros(HIDDEN)  # [128]
    more, where, what = jnp.array(1), jnp.zeros(3), jnp.zeros(WHAT)
    for t in range(STEPS):
        h = nets.cell(jnp.concatenate([seen, where, what, more[None] * 1.0]), h)
        logit, mean, log_sd = jnp.split(nets.head(h), [1, 4])
        more = vx.sample(f"present{t}", vx.masked(d.Bernoulli(logits=logit[0]), more == 1)) * more
        here = more == 1
        sd = WHERE_SD * jax.nn.softplus(log_sd - 1.0)
        where = vx.sample(f"where{t}", vx.masked(d.Normal(WHERE_SD * mean, sd), here))  # [3]
        loc, log_scale = jnp.split(nets.glimpse(attend(image, where, nets.side).ravel()), 2)
        law = d.Normal(loc, jax.nn.softplus(log_scale))
        what = vx.sample(f"what{t}", vx.masked(law, here))  # [20]


def annealed(step: Any) -> Any:
    """The prior probability of one more object: high at first, so that sprites are learned."""
    return MORE + (0.99 - MORE) * jnp.clip((ANNEALED - step) / ANNEALED, 0.0, 1.0)


def elbo(nets: Nets, images: jax.Array, step: Any = ANNEALED) -> jax.Array:
    """A canvas; images: [B, C, C]."""
    p = scene(nets, annealed(step))
    return jax.vmap(lambda x: vx.objectives.elbo(p, infer(nets, x), {"image": x}))(images).mean()


def iwelbo(nets: Nets, images: jax.Array, step: Any = ANNEALED) -> jax.Array:
    """With two particles."""
    p = scene(nets, annealed(step))
    one = lambda x: vx.objectives.iwelbo(p, infer(nets, x), {"image": x}, 2)  # noqa: E731
    return jax.vmap(one)(images).mean()


def each(*kinds: est.Estimator) -> dict[str, est.Estimator]:
    """Estimators of present1, present2, ..., the last one for the rest."""
    return {f"present{t}": kinds[min(t, len(kinds) - 1)] for t in range(STEPS)}


RUNS = {
    "enum": (elbo, each(est.Enumerate())),
    "mvd": (elbo, each(est.MeasureValued())),
    "hybrid": (elbo, each(est.Enumerate(), est.MeasureValued())),
    "loo": (elbo, each(est.Score(est.LeaveOneOut(4)))),
    "reinforce": (elbo, each(est.Score())),
    "iwelbo": (iwelbo, each(est.Score(est.LeaveOneOut(2)))),
}


def canvases(digits: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n canvases [n, 20, 20] of 0 to 2 digits that do not overlap, and the counts."""
    rng = np.random.default_rng(seed)
    images, counts = np.zeros((n, CANVAS, CANVAS), np.float32), rng.integers(0, 3, n)
    for image, count in zip(images, counts, strict=True):
        while True:  # all corners anew until the digits do not overlap
            corners = rng.integers(0, CANVAS - SPRITE + 1, (count, 2))
            if count < 2 or abs(corners[0] - corners[1]).max() >= SPRITE:
                break
        for y, x in corners:
            image[y : y + SPRITE, x : x + SPRITE] = digits[rng.integers(len(digits))]
    return images, counts


def data(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training canvases and counts, held-out ones of other digits."""
    from sklearn.datasets import load_digits

    every: Any = load_digits()
    digits = every.images[np.random.default_rng(0).permutation(len(every.images))] / 16
    return *canvases(digits[:1500], n, 1), *canvases(digits[1500:], 1000, 2)


def multi_mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """12,000 and 2,000 canvases of 50 x 50 pixels, and their counts."""
    folder = os.environ.get("VARAX_DATA")
    path = Path(folder or ".") / "multi_mnist" / "multi_mnist_50x50.npz"
    if folder is None or not path.exists():
        name = "/".join(path.parts[-2:])
        raise SystemExit(f"--data multi_mnist: set VARAX_DATA to a folder with {name}")
    with np.load(path) as found:
        images = [found[f"{split}_x"].astype(np.float32) / 255 for split in ("train", "test")]
        return images[0], found["train_count"], images[1], found["test_count"]


def counted(nets: Nets, images: jax.Array) -> jax.Array:
    """How many objects the guide finds, at its most probable decisions; [B]."""

    def one(image: jax.Array) -> jax.Array:
        seen, h, count = nets.embed(image.ravel()), jnp.zeros(HIDDEN), jnp.array(0)
        more, where, what = jnp.array(1), jnp.zeros(3), jnp.zeros(WHAT)
        for _ in range(STEPS):
            h = nets.cell(jnp.concatenate([seen, where, what, more[None] * 1.0]), h)
            logit, mean, _ = jnp.split(nets.head(h), [1, 4])
            more = more * (logit[0] > 0)
            where = WHERE_SD * mean * more
            what = jnp.split(nets.glimpse(attend(image, where, nets.side).ravel()), 2)[0] * more
            count += more
        return count

    return jax.vmap(one)(images)


def picture(nets: Nets, images: np.ndarray, key: jax.Array) -> Any:
    """Held-out canvases, and what the guide finds in them as the model draws it."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(2, len(images), figsize=(1.6 * len(images), 3.4), squeeze=False)
    for image, (top, bottom), k in zip(
        images, axes.T, jax.random.split(key, len(images)), strict=True
    ):
        found, again, more = infer(nets, image).simulate(k), np.zeros(image.shape), 1
        top.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        for t in range(STEPS):
            more *= int(found[f"present{t}"])
            if not more:
                break
            where = found[f"where{t}"]
            again += np.asarray(place(sprite(nets, found[f"what{t}"]), where, nets.canvas))
            side = nets.side * float(jnp.exp(where[0]))
            corner = (nets.canvas - 1) / 2 * (1 + np.asarray(where[1:])) - side / 2
            top.add_patch(Rectangle(tuple(corner), side, side, fill=False, ec=f"C{t}", lw=1.5))
        bottom.imshow(again, cmap="gray_r", vmin=0, vmax=1)
        for ax in (top, bottom):
            ax.set(xticks=[], yticks=[])
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each estimator; print objective and count accuracy, draw what is found."""
    parser = argparse.ArgumentParser(
        prog="varax run air", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--estimators", nargs="*", choices=list(RUNS), default=["enum"])
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="of Adam")
    parser.add_argument("--data", choices=["digits", "multi_mnist"], default="digits")
    parser.add_argument("--canvases", type=int, default=20000, help="of digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    large = args.data == "multi_mnist"
    train, _, test, counts = multi_mnist() if large else data(args.canvases)
    sizes = (50, 20) if large else (CANVAS, SPRITE)
    k_init, k_fit, k_draw = jax.random.split(jax.random.key(args.seed), 3)
    found, nets = {}, Nets(k_init, *sizes)
    print(f"{'':>12}{'objective':>12}{'count accuracy':>16}{'seconds':>9}{'ms a step':>11}")
    for name in args.estimators:
        objective, estimators = RUNS[name]
        result = vx.fit(
            objective,
            Nets(k_init, *sizes),
            optax.adam(args.rate),
            steps=args.steps,
            key=k_fit,
            data=train,
            batch_size=args.batch_size,
            estimators=estimators,
        )
        nets = result.params
        right = np.asarray(eqx.filter_jit(counted)(nets, jnp.asarray(test))) == counts
        found[name] = float(right.mean())
        last = np.asarray(result.history)[-500:].mean()
        row = f"{last:>12.2f}{found[name]:>16.3f}{result.seconds:>9.0f}"
        print(f"{name:>12}{row}{1e3 * result.seconds / args.steps:>11.1f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    picture(nets, test[:10], k_draw).savefig(args.out / "air.png", dpi=110)
    print(f"picture {args.out / 'air.png'}")
    return found


if __name__ == "__main__":
    main()
