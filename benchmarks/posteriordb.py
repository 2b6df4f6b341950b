"""posteriordb: NUTS and automatic guides against reference posteriors that no one here wrote.

Each of the 21 posteriors is treated in the same way, without a look at its reference:
centring by measurement (`vx.reparameterize(m, "measure")`), NUTS with a dense mass matrix from
draws of the Laplace guide, and every kind of automatic guide. The best is the one with the highest
ELBO; of those that are within 0.01 nats of it, the one with the least k-hat.

NUTS passes where, for every parameter, |mean - reference| is within 5 standard errors of the two
and 0.1 sd, and the sd within 7 %. A guide is close where its means are within 0.1 sd and its sds
within 15 %; k-hat above 0.7 says that it is not to be trusted. `plain` is a mean-field guide by
Adam from zero, without any start or scaling: what a model's units do to it.

    python benchmarks/posteriordb.py [--quick] [--only NAME] [--fresh] [--save | --out FILE]

What is done is kept in .cache/posteriordb, and an interrupted run goes on; --fresh forgets it.
"""

from __future__ import annotations

from typing import Any

import _long  # before JAX
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import Report

import varax as vx
from varax import dist as d
from varax.models import posteriordb
from varax.models.posteriordb import columns, compare
from varax.models.posteriordb.run import fitted, sampled

KINDS = ("mean_field", "full_rank", "low_rank", "structured", "flow")
DRAWS = 10_000  # of each guide
LIMIT = 0.7  # of k-hat
EQUAL = 0.01  # nats: about the noise of 10,000 draws
ENOUGH = 2000  # effective draws of every parameter
UNSCALED = ("earnings", "kidiq", "sblrc")


def centred(name: str, key: Any) -> tuple[vx.Measure, str]:
    """The posterior in the coordinates that a measurement prefers, and which were changed."""
    measure = vx.reparameterize(posteriordb.posterior(name), "measure", key=key)
    before = posteriordb.posterior(name).addresses
    return measure, ", ".join(sorted(before.keys() - measure.addresses.keys()))


def by_nuts(name: str, measure: vx.Measure, key: Any, quick: bool) -> dict[str, Any]:
    """NUTS, and again four times as long where its own effective sample sizes ask for that."""
    reference = posteriordb.reference_of(name)
    seconds = 0.0
    for draws in (500,) if quick else (2000, 8000):
        chains = sampled(measure, key, draws, progress=False)
        seconds += chains.seconds
        found = compare(reference, reference.columns({s: chains[s] for s in reference.sites}))
        if found.ess.min() >= ENOUGH:
            break
    return {
        "size": measure.potential().size,
        "draws": draws,
        "z": float(found.z.max()),
        "error": float(found.error.max()),
        "ratio": [float(found.ratio.min()), float(found.ratio.max())],
        "ess": float(found.ess.min()),
        "r_hat": float(found.r_hat.max()),
        "divergences": chains.divergences,
        "seconds": seconds,
        "right": found.right,
    }


def judged(name: str, measure: vx.Measure, guide: vx.Measure, key: Any) -> dict[str, Any]:
    """A guide's ELBO and k-hat, which are all that chooses, and its distance from the reference."""

    def one(key: Any) -> tuple[Any, Any]:
        trace = guide.simulate(key)
        return trace.choices, measure.log_density(trace.choices) - trace.log_density

    keys = jax.random.split(key, DRAWS)
    choices, log_weights = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    log_weights = np.asarray(log_weights)
    reference = posteriordb.reference_of(name)
    found = compare(reference, columns(measure, choices, reference)[None], independent=True)
    return {
        "elbo": float(log_weights.mean()),
        "khat": float(vx.psis(log_weights)[1]) if np.isfinite(log_weights).any() else np.inf,
        "error": float(found.error.max()),
        "ratio": [float(found.ratio.min()), float(found.ratio.max())],
        "close": found.close,
    }


def by_guides(
    name: str, measure: vx.Measure, key: Any, kinds: tuple[str, ...], quick: bool
) -> dict[str, Any]:
    """Every kind of guide, all from the start that the first has found."""
    k_fit, k_draw = jax.random.split(key)
    start: Any = "uniform"
    found = {}
    for kind in kinds:
        steps = 500 if quick else None
        guide, result = fitted(measure, kind, k_fit, steps, start=start, progress=False)
        start = guide.start
        found[kind] = judged(name, measure, guide(result.params), k_draw)
        found[kind]["seconds"] = result.seconds
    return found


def plain(name: str, key: Any, steps: int) -> dict[str, Any]:
    """Mean-field by Adam at rate 0.02 from standard normals (Kucukelbir et al. 2017)."""
    measure = posteriordb.posterior(name)
    potential = measure.potential()

    @vx.model
    def noise(phi: Any) -> None:
        vx.sample("u", d.Normal(phi["mean"], jnp.exp(phi["log_sd"])))

    def elbo(phi: Any) -> Any:
        q = vx.constrain(noise(phi), measure).simulate()
        return measure.log_density(q.choices) - q.log_density

    phi = {"mean": jnp.zeros(potential.size), "log_sd": jnp.zeros(potential.size)}
    result = vx.fit(elbo, phi, optax.adam(0.02), steps=steps, key=key, progress=False)
    return judged(name, measure, vx.constrain(noise(result.params), measure), key)


def results_of(name: str, quick: bool, fresh: bool) -> dict[str, Any]:
    k_centre, k_nuts, k_guide, k_plain = jax.random.split(jax.random.key(0), 4)
    kinds = ("full_rank", "structured") if quick else KINDS
    measure, changed = centred(name, k_centre)
    parts = {
        "nuts": lambda: by_nuts(name, measure, k_nuts, quick),
        "guides": lambda: by_guides(name, measure, k_guide, kinds, quick),
        "plain": lambda: plain(name, k_plain, 15_000),
    }
    found: dict[str, Any] = {"changed": changed}
    for part, compute in parts.items():
        if part != "plain" or (name.startswith(UNSCALED) and not quick):
            file = f"posteriordb/{name}-{part}{'-quick' if quick else ''}"
            found[part] = _long.kept(file, fresh, compute)
    jax.clear_caches()
    return found


def best(guides: dict[str, Any]) -> str:
    elbo = {kind: np.nan_to_num(g["elbo"], nan=-np.inf) for kind, g in guides.items()}
    level = max(elbo.values()) - EQUAL
    return min((kind for kind in elbo if elbo[kind] >= level), key=lambda k: guides[k]["khat"])


def shown(ratio: list[float]) -> str:
    return f"{ratio[0]:.3f} - {ratio[1]:.3f}"


def main() -> None:
    report = Report("posteriordb", __doc__, *_long.OPTIONS)
    jax.config.update("jax_enable_x64", True)
    found = {}
    for name in [n for n in posteriordb.POSTERIORS if report.options.only in n]:
        found[name] = results_of(name, report.quick, report.options.fresh)
        print(f"  {name} done", flush=True)

    report.say("\nNUTS: the worst parameter of each posterior")
    head = ("posterior", "D", "recentred", "draws", "z", "|error|/sd", "sd ratio", "ESS", "R-hat")
    head = (*head, "diverging", "seconds", "passes")
    rows = []
    for name, one in found.items():
        n = one["nuts"]
        cells = (f"{n['z']:.2f}", f"{n['error']:.3f}", shown(n["ratio"]), f"{n['ess']:.0f}")
        last = (f"{n['r_hat']:.4f}", n["divergences"], f"{n['seconds']:.0f}")
        passes = "yes" if n["right"] else "NO"
        first = (name, n["size"], one["changed"] or "-", f"4 x {n['draws']}")
        rows.append((*first, *cells, *last, passes))
    report.table(head, rows)
    passed = sum(one["nuts"]["right"] for one in found.values())
    report.say(f"\nNUTS passes on {passed} of {len(found)}.")

    report.say("\nThe best guide, by ELBO and k-hat")
    rows, good, warned = [], 0, 0
    for name, one in found.items():
        kind = best(one["guides"])
        g = one["guides"][kind]
        good += g["close"]
        warned += not g["close"] and g["khat"] > LIMIT
        closeness = (
            "yes" if g["close"] else ("no, and k-hat says so" if g["khat"] > LIMIT else "NO")
        )
        numbers = (f"{g['elbo']:.2f}", f"{g['khat']:.2f}", f"{g['error']:.3f}", shown(g["ratio"]))
        rows.append((name, kind, *numbers, f"{g['seconds']:.0f}", closeness))
    report.table(
        ("posterior", "guide", "ELBO", "k-hat", "|error|/sd", "sd ratio", "seconds", "close"), rows
    )
    report.say(
        f"\n{good} of {len(found)} are close; of the other {len(found) - good}, "
        f"k-hat warns of {warned}."
    )

    report.say("\nEvery kind of guide: k-hat, |error|/sd, sd ratio")
    kinds = list(next(iter(found.values()))["guides"])
    rows = []
    for name, one in found.items():
        cells = [
            f"{g['khat']:.2f} {g['error']:.3f} {g['ratio'][0]:.2f}-{g['ratio'][1]:.2f}"
            for g in one["guides"].values()
        ]
        rows.append((name, *cells))
    report.table(("posterior", *kinds), rows)

    if rows := [
        (
            name,
            f"{p['error']:.3g}",
            f"{p['khat']:.2f}",
            f"{one['guides'][best(one['guides'])]['error']:.3f}",
        )
        for name, one in found.items()
        if (p := one.get("plain"))
    ]:
        report.say("\nUnscaled regressions: plain Adam from zero against the best guide")
        report.table(("posterior", "plain |error|/sd", "k-hat", "best guide |error|/sd"), rows)
    report.close()


if __name__ == "__main__":
    main()
