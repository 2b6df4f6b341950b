"""One target of the Inference Gym by NUTS, beside the ground truth.

`varax run inference_gym --target eight_schools`; `--list` shows all names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import varax as vx

from .compare import Comparison, compare
from .data import Truth, truth
from .targets import TARGETS, target

SHOWN = 6  # entries of each part
WHITENED = {"synthetic_log_gaussian_cox_process": "log_intensity"}  # for the sampler


def sampled(
    name: str,
    key: Any,
    draws: int = 1000,
    warmup: int = 1000,
    *,
    target_acceptance: float = 0.9,
    dense: bool = False,
    progress: bool = True,
) -> vx.Draws:
    """Four chains of NUTS. A Gaussian process is sampled as its standardised values."""
    measure = target(name)
    if name in WHITENED:
        measure = vx.reparameterize(measure, {WHITENED[name]: "noncentred"})
    return vx.nuts(
        measure,
        key,
        draws=draws,
        warmup=warmup,
        chains=4,
        target_acceptance=target_acceptance,
        dense=dense,
        progress=progress,
    )


def table(exact: dict[str, Truth], found: dict[str, Comparison]) -> str:
    """The first entries of each part, and the largest distances over all of them."""
    lines = [f"{'':30}{'mean':>11}{'truth':>11}{'sd':>11}{'truth':>11}{'z mean':>8}{'z var':>8}"]
    for part, c in found.items():
        columns = (c.mean, exact[part].mean, c.sd, exact[part].sd, c.z_mean, c.z_variance)
        flat = [np.ravel(x) for x in columns]
        for i in range(min(SHOWN, flat[0].size)):
            name = f"{part}[{','.join(map(str, np.unravel_index(i, c.mean.shape)))}]"
            cells = "".join(f"{x[i]:{'11.4g' if k < 4 else '8.2f'}}" for k, x in enumerate(flat))
            lines.append(f"{name if c.mean.shape else part:30}{cells}")
        if (more := flat[0].size - SHOWN) > 0:
            worst = f"largest of all: z mean {c.z_mean.max():.2f}, z var {c.z_variance.max():.2f}"
            lines.append(f"{'':4}and {more} more; {worst}")
    return "\n".join(lines)


def picture(exact: dict[str, Truth], found: dict[str, Comparison]) -> Any:
    """By part: means with two standard deviations, ours as a band and the truth as bars."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(4 * len(found), 3.2), layout="constrained", squeeze=False
    )
    for ax, (part, c) in zip(axes[0], found.items(), strict=True):
        mean, sd = np.ravel(c.mean), np.ravel(c.sd)
        right, width = np.ravel(exact[part].mean), 2 * np.ravel(exact[part].sd)
        at = np.arange(mean.size)
        ax.errorbar(at, right, width, fmt="k.", ms=3, lw=0.8, label="ground truth, 2 sd")
        ax.bar(at, 4 * sd, 0.9, mean - 2 * sd, color="C0", alpha=0.4, label="NUTS, 2 sd")
        ax.set(title=part, xlabel="entry")
    axes[0, 0].legend(fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Sample, print the draws beside the truth, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run inference_gym", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--target", choices=list(TARGETS), default="eight_schools", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="the names, and no more")
    parser.add_argument("--draws", type=int, default=1000, help="of each of four chains")
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(TARGETS))
        return {}
    with jax.enable_x64(True):
        draws = sampled(args.target, jax.random.key(args.seed), args.draws, args.warmup)
        exact = truth(args.target)
        found = compare(exact, {part: draws[part] for part in exact})
    print(f"\n{args.target}: {draws.seconds:.0f} s, {draws.divergences} divergences")
    print(table(exact, found))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "inference_gym.png"
    picture(exact, found).savefig(file, dpi=110)
    print(f"picture {file}")
    return {
        "z_mean": float(max(c.z_mean.max() for c in found.values())),
        "z_variance": float(max(c.z_variance.max() for c in found.values())),
    }
