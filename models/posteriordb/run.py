"""One posterior: NUTS and an automatic guide beside the reference.

`varax run posteriordb --posterior kidiq-kidscore_momiq`; `--list` shows all names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import varax as vx

from .compare import Comparison, columns, compare
from .data import Reference
from .posteriors import POSTERIORS, posterior, reference_of

FLOW, OTHERS = (8000, 0.01), (2000, 0.02)  # steps, and the first learning rate
GUIDES = ("mean_field", "full_rank", "low_rank", "structured", "flow", "laplace")


def sampled(measure: vx.Measure, key: Any, draws: int = 1000, *, progress: bool = True) -> vx.Draws:
    """Four chains of NUTS, with a dense mass matrix: predictors are correlated and unscaled.

    They start with draws of the Laplace guide. From u ~ U(-2, 2) one chain in a few goes to a mode
    that has no mass (Lotka-Volterra explains all by noise) and stays there.
    """
    search, run = jax.random.split(key)
    laplace: Any = vx.autoguide(measure, "laplace", key=search)
    return vx.nuts(
        measure,
        run,
        initial=laplace(laplace.init(search)),
        draws=draws,
        warmup=1000,
        chains=4,
        dense=True,
        target_acceptance=0.95,
        progress=progress,
    )


def fitted(
    measure: vx.Measure,
    kind: str,
    key: Any,
    steps: int | None = None,
    *,
    start: Any = "uniform",
    progress: bool = True,
) -> tuple[Any, vx.FitResult]:
    """An automatic guide, fitted by Adam with a learning rate that falls to zero.

    The gradient's norm is bounded: where a model's density has no bound, as with differential
    equations and volatilities, one draw in a hundred thousand would undo the rest.
    """
    search, first, fit = jax.random.split(key, 3)
    layers = 8 if kind == "flow" else 4
    guide = vx.autoguide(measure, kind, key=search, start=start, draws=16, layers=layers)
    count, rate = FLOW if kind == "flow" else OTHERS
    count = steps or count
    optimizer = optax.chain(
        optax.clip_by_global_norm(100.0),
        optax.zero_nans(),
        optax.adam(optax.cosine_decay_schedule(rate, count)),
    )
    params = guide.init(first)
    return guide, vx.fit(guide.elbo, params, optimizer, steps=count, key=fit, progress=progress)


def picture(reference: Reference, nuts: np.ndarray, guide: np.ndarray) -> Any:
    """The marginals: NUTS as an area, the guide as a line, the reference's 5 to 95 % as a bar."""
    import matplotlib.pyplot as plt

    count = len(reference.names)
    wide = min(5, count)
    tall = -(-count // wide)
    figure, axes = plt.subplots(
        tall, wide, figsize=(2.4 * wide, 1.7 * tall + 0.4), layout="constrained", squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for i, (name, ax) in enumerate(zip(reference.names, axes.flat, strict=False)):
        low, *_, high = reference.quantiles[:, i]
        reach = 0.6 * (high - low)
        bins = np.linspace(low - reach, high + reach, 50)
        ax.hist(nuts[:, i], bins, density=True, color="C0", alpha=0.4, label="NUTS")
        ax.hist(guide[:, i], bins, density=True, color="C3", histtype="step", label="guide")
        ax.plot([low, high], [0, 0], "k", lw=4, solid_capstyle="butt", label="reference, 90 %")
        ax.plot(reference.mean[i], 0, "w|")
        ax.set(yticks=[], title=name)
    axes[0, 0].legend(fontsize=6)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Sample, fit, print both beside the reference, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run posteriordb", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--posterior", choices=list(POSTERIORS), default="kidiq-kidscore_momiq", metavar="NAME"
    )
    parser.add_argument("--list", action="store_true", help="the names, and no more")
    parser.add_argument("--guide", choices=GUIDES, default="full_rank")
    parser.add_argument("--draws", type=int, default=1000, help="of each of four chains")
    parser.add_argument("--steps", type=int, help="of the guide's fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(POSTERIORS))
        return {}
    with jax.enable_x64(True):
        return _run(args)


def _run(args: argparse.Namespace) -> dict[str, float]:
    name, reference = args.posterior, reference_of(args.posterior)
    k_nuts, k_fit, k_draw = jax.random.split(jax.random.key(args.seed), 3)
    measure = posterior(name)
    chains = sampled(measure, k_nuts, args.draws)
    nuts = reference.columns({site: chains[site] for site in reference.sites})
    _, fit = fitted(measure, args.guide, k_fit, args.steps)
    guide = columns(measure, fit.sample(k_draw, 10_000), reference)
    khat = float(fit.khat)

    by_nuts, by_guide = compare(reference, nuts), compare(reference, guide[None], independent=True)
    _show(f"NUTS, {chains.seconds:.0f} s, {chains.divergences} divergences", by_nuts)
    _show(f"{args.guide} guide, {fit.seconds:.0f} s, k-hat {khat:.2f}", by_guide)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "posteriordb.png"
    picture(reference, nuts.reshape(-1, nuts.shape[-1]), guide).savefig(file, dpi=110)
    print(f"\npicture {file}")
    return {
        "nuts_z": float(by_nuts.z.max()),
        "nuts_error": float(by_nuts.error.max()),
        "guide_error": float(by_guide.error.max()),
        "khat": khat,
    }


def _show(title: str, found: Comparison) -> None:
    print(f"\n{title}\n{found}")
