"""The decoder of the digits' variational autoencoder in few bits: bounds in nats, and bytes.

    x ~ p(x | z) with the decoder's weights rounded; q(z | x), and so every draw of z, as it was

The autoencoder is that of `vae`. What a scheme costs is the fall of the held-out bounds, which are
estimated with the same draws of z for all schemes. GPTQ is calibrated on draws of z for training
images. On schemes see docs/quantization.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax.kernels.quant import Scheme

from .vae import LATENT, LEVELS, Nets, bounds, data, elbo, init

SCHEMES = {
    "int8, int8 activations": Scheme(bits=8, activations="int8"),
    "int4": Scheme(bits=4),
    "int4, int8 activations": Scheme(bits=4, activations="int8"),
    "NF4": Scheme(bits=4, grid="nf4"),
    "HIGGS 4": Scheme(bits=4, method="higgs"),
    "GPTQ 4": Scheme(bits=4, method="gptq"),
    "int3": Scheme(bits=3),
    "HIGGS 3": Scheme(bits=3, method="higgs"),
    "GPTQ 3": Scheme(bits=3, method="gptq"),
    "int2": Scheme(bits=2),
    "HIGGS 2": Scheme(bits=2, method="higgs"),
    "GPTQ 2": Scheme(bits=2, method="gptq"),
    "GPTQ 2, Lloyd-Max": Scheme(bits=2, method="gptq", grid="lloyd_max"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: held-out bounds in nats an image, and the decoder's bytes."""

    name: str
    elbo: float
    iwae: float
    bytes: int
    decoder: Any


def codes(nets: Nets, images: Any, key: jax.Array) -> jax.Array:
    """One draw of z ~ q(z | x) for each image; [N, 64] -> [N, 8]."""
    mean, log_sd = jnp.split(jax.vmap(nets["encoder"])(images / LEVELS), 2, axis=1)
    return mean + jnp.exp(log_sd) * jax.random.normal(key, mean.shape)


def compare(nets: Nets, schemes: dict[str, Scheme], images: Any, z: Any, key: Any) -> list[Row]:
    """Bounds of held-out images with the decoder as it is and by each scheme; z: calibration."""
    decoders: dict[str, Any] = {"float32": nets["decoder"]}
    for name, scheme in schemes.items():
        calibration = z if scheme.method == "gptq" else None
        decoders[name] = vx.quantize(nets["decoder"], scheme, calibration=calibration)
    rows = []
    for name, decoder in decoders.items():
        found = bounds({**nets, "decoder": decoder}, images, key)
        size = vx.quantization_report(nets["decoder"], decoder).bytes_after
        rows.append(Row(name, *found, size, decoder))
    return rows


def picture(rows: list[Row], nets: Nets, images: Any, labels: np.ndarray) -> Any:
    """Ten held-out digits through some of the decoders, and nats against bytes."""
    import matplotlib.pyplot as plt

    chosen = np.stack([np.flatnonzero(labels == n)[0] for n in range(10)])
    means = jax.vmap(nets["encoder"])(images[chosen] / LEVELS)[:, :LATENT]  # [10, 8]
    wanted = ("float32", "int4", "HIGGS 4", "int3", "GPTQ 3", "int2", "HIGGS 2", "GPTQ 2")
    shown = [row for row in rows if row.name in wanted]
    again = [jax.nn.sigmoid(jax.vmap(row.decoder)(means)) * LEVELS for row in shown]  # [10, 64]
    strips = [np.asarray(x).reshape(10, 8, 8) for x in (images[chosen], *again)]
    tiles = np.block([[np.pad(x, 1) for x in strip] for strip in strips])

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5), layout="constrained")
    left.imshow(tiles, cmap="gray_r", vmin=0, vmax=LEVELS)
    left.set_yticks(np.arange(len(strips)) * 10 + 4.5, ["held out", *(r.name for r in shown)])
    left.set_xticks([])
    left.tick_params(length=0)
    left.set_title("the same codes z through decoders of few bits")
    exact = rows[0]
    for kind, mark in (("int", "o-"), ("NF4", "s"), ("HIGGS", "^-"), ("GPTQ", "D-")):
        found = [r for r in rows[1:] if r.name.startswith(kind) and "," not in r.name]
        lost = [max(exact.elbo - r.elbo, 1e-3) for r in found]
        right.plot([r.bytes / exact.bytes for r in found], lost, mark, label=kind)
    right.set_yscale("log")
    right.set_xlabel("bytes of the decoder, in those of float32")
    right.set_ylabel("nats an image lost (ELBO, held out)")
    right.set_title("what 2, 3 and 4 bits cost")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit or read the autoencoder, quantize its decoder, print the table and write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run vae_quantized", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--schemes", nargs="*", choices=sorted(SCHEMES), metavar="NAME")
    parser.add_argument("--params", type=Path, help="written by `varax run vae`; then no fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    train, test, labels = data()
    k_init, k_fit, k_bound, k_codes = jax.random.split(jax.random.key(args.seed), 4)
    nets = init(k_init)
    if args.params is not None:
        nets = eqx.tree_deserialise_leaves(args.params, nets)
    else:
        fitted = {"steps": args.steps, "key": k_fit, "data": train, "batch_size": 100}
        nets = vx.fit(elbo, nets, optax.adam(1e-3), **fitted).params
    schemes = {name: SCHEMES[name] for name in args.schemes or SCHEMES}
    rows = compare(nets, schemes, test, codes(nets, jnp.asarray(train), k_codes), k_bound)

    exact = rows[0]
    print(f"\n{'decoder':24}{'ELBO':>9}{'IWAE 100':>10}{'lost':>8}{'bytes':>9}{'of float32':>12}")
    for row in rows:
        print(
            f"{row.name:24}{row.elbo:>9.2f}{row.iwae:>10.2f}{exact.elbo - row.elbo:>8.2f}"
            f"{row.bytes:>9,}{row.bytes / exact.bytes:>12.3f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    picture(rows, nets, test, labels).savefig(args.out / "vae_quantized.png", dpi=110)
    print(f"nats an image, held out; picture {args.out / 'vae_quantized.png'}")
    return {row.name: row.elbo for row in rows}


if __name__ == "__main__":
    main()
