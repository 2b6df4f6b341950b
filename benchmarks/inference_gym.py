"""The Inference Gym: NUTS against the ground truth of 14 targets, by the gym's rule.

Every mean and every variance of every part is to be within five standard errors of the truth: those
of our draws, and for means also that of the truth. A 5-sigma rule on some 8,000 numbers raises a
false alarm once in 200 runs, were the errors normal. All targets have the same settings, but for
the number of draws and, up to 110 dimensions, a dense mass matrix.

`worst` is the largest distance of a mean, in the truth's standard deviations, and the range of the
ratios of standard deviations.

    python benchmarks/inference_gym.py [--quick] [--only NAME] [--fresh] [--save | --out FILE]

--quick leaves out the two targets of 2,519 dimensions. What is done is kept in
.cache/inference_gym, and an interrupted run goes on; --fresh forgets it.
"""

from __future__ import annotations

import functools
from typing import Any

import _long  # before JAX
import jax
from _report import Report

from varax.models import inference_gym
from varax.models.inference_gym.run import sampled

DENSE = 110  # dimensions
LARGE = 1000  # dimensions from which a draw takes a second
Z = 5.0


def result_of(name: str, size: int) -> dict[str, Any]:
    draws = sampled(
        name,
        jax.random.key(0),
        draws=500 if size > LARGE else 2000,
        warmup=1000,
        dense=size <= DENSE,
        progress=False,
    )
    truth = inference_gym.truth(name)
    parts = inference_gym.compare(truth, {part: draws[part] for part in truth}).values()
    jax.clear_caches()
    return {
        "z_mean": max(float(c.z_mean.max()) for c in parts),
        "z_variance": max(float(c.z_variance.max()) for c in parts),
        "error": max(float(c.error.max()) for c in parts),
        "ratio": [
            min(float(c.ratio.min()) for c in parts),
            max(float(c.ratio.max()) for c in parts),
        ],
        "ess": min(float(c.ess.min()) for c in parts),
        "r_hat": max(float(c.r_hat.max()) for c in parts),
        "divergences": draws.divergences,
        "seconds": draws.seconds,
    }


def main() -> None:
    report = Report("inference_gym", __doc__, *_long.OPTIONS)
    jax.config.update("jax_enable_x64", True)
    rows, passed = [], 0
    for name in [n for n in inference_gym.TARGETS if report.options.only in n]:
        size = inference_gym.target(name).potential().size
        if report.quick and size > LARGE:
            continue
        compute = functools.partial(result_of, name, size)
        one = _long.kept(f"inference_gym/{name}", report.options.fresh, compute)
        right = one["z_mean"] <= Z and one["z_variance"] <= Z
        passed += right
        cells = (f"{one['z_mean']:.2f}", f"{one['z_variance']:.2f}", f"{one['error']:.3f}")
        more = (f"{one['ratio'][0]:.3f} - {one['ratio'][1]:.3f}", f"{one['ess']:.0f}")
        last = (f"{one['r_hat']:.4f}", one["divergences"], f"{one['seconds']:.0f}")
        rows.append((name, size, *cells, *more, *last, "yes" if right else "NO"))
        print(f"  {name} done", flush=True)
    head = ("target", "D", "z mean", "z var", "worst mean", "worst sd", "ESS", "R-hat")
    report.table((*head, "diverging", "seconds", "passes"), rows)
    report.say(f"\n{passed} of {len(rows)} targets pass.")
    report.close()


if __name__ == "__main__":
    main()
