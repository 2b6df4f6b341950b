"""The summary of a sampler's draws, and whether its chains can be trusted.

R-hat <= 1.01,  effective sample size >= 100 a chain, bulk and tail     Vehtari et al. 2021
no divergent trajectory,  E-BFMI >= 0.3                                 Betancourt 2016, Stan
at least two chains
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import mixing
from .psis import khat_threshold
from .table import Summary, Verdict, moments, scalars

R_HAT, ESS, BFMI = 1.01, 100, 0.3
CHUNK = 256  # quantities whose autocovariances are held at once


def summarize_draws(result: Any, *, markov: bool | None = None) -> Summary:
    """Moments and quantiles of draws, and whether the chains have mixed.

    Columns: `mean`, `sd`, `mcse`, `q5`, `median`, `q95`, and of Markov chains `ess_bulk`,
    `ess_tail`, `r_hat`.

    Args:
        result: `Draws`, or anything with `choices` [chains, draws, ...] and `stats`.
        markov: whether they are Markov chains; by default where their stats speak of acceptance.
    """
    names, x = scalars(result.choices, 2)
    stats = result.stats
    markov = "acceptance_rate" in stats or "diverging" in stats if markov is None else markov
    flat = x.reshape(-1, x.shape[-1])
    columns = moments(flat, np.full(len(flat), 1 / len(flat)))
    facts: dict[str, Any] = {"chains": x.shape[0], "draws": x.shape[1]}
    if markov:
        parts = [_mixing(x[..., i : i + CHUNK]) for i in range(0, x.shape[-1], CHUNK)]
        found = {c: np.concatenate([p[c] for p in parts]) for c in parts[0]} if parts else {}
        columns |= found
        if found:
            columns["mcse"] = columns["sd"] / np.sqrt(columns.pop("ess_mean"))
        verdict = _judge_chains(names, x, columns, stats, facts)
    else:
        verdict = _judge_draws(x, stats, facts)
    title = f"{result.model.name}: {x.shape[0]} chains of {x.shape[1]} draws"
    return Summary(title, names, columns, verdict, facts)


def _mixing(x: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: getattr(mixing, name)(x) for name in ("ess_mean", "ess_bulk", "ess_tail", "r_hat")
    }


def _judge_chains(
    names: list[str], x: np.ndarray, columns: Any, stats: Any, facts: dict[str, Any]
) -> Verdict:
    wrong, unknown, right = [], [], []
    chains = x.shape[0]
    if not np.isfinite(x).all():
        bad = names[int(np.flatnonzero(~np.isfinite(x).all((0, 1)))[0])]
        wrong.append(f"draws of {bad} are not finite")
    r_hat = columns.get("r_hat", np.full(1, np.nan))
    if np.isnan(r_hat).all():
        unknown.append(f"{x.shape[1]} draws a chain are too few to judge")
    else:
        at = int(np.nanargmax(r_hat))
        says = f"R-hat is {r_hat[at]:.3f} at {names[at]}"
        (right if r_hat[at] <= R_HAT else wrong).append(
            f"{says}, at most" if r_hat[at] <= R_HAT else f"{says}, above {R_HAT}: not mixed"
        )
        facts["r_hat"] = float(r_hat[at])
        for tail in ("bulk", "tail"):
            ess = columns[f"ess_{tail}"]
            at = int(np.nanargmin(ess))
            enough = ess[at] >= ESS * chains
            says = f"the {tail} effective sample size of {names[at]} is {ess[at]:.0f}"
            (right if enough else wrong).append(
                f"{says}, at least" if enough else f"{says}, below {ESS} a chain: more draws"
            )
            facts[f"ess_{tail}"] = float(ess[at])
    if chains == 1:
        unknown.append("one chain has no other to be compared with")
    if "diverging" in stats:
        facts["divergences"] = count = int(np.sum(stats["diverging"]))
        said = f"{count} of {np.size(stats['diverging'])} trajectories diverged (a higher target "
        said += "acceptance, or another parameterisation)"
        (wrong if count else right).append(said if count else "no trajectory diverged")
    if "energy" in stats and np.ndim(stats["energy"]) == 2 and np.shape(stats["energy"])[1] > 2:
        facts["e_bfmi"] = low = float(np.min(mixing.e_bfmi(stats["energy"])))
        if low < BFMI:
            wrong.append(
                f"E-BFMI is {low:.2f}, below {BFMI}: heavy tails (another parameterisation)"
            )
    return Verdict.of(wrong, unknown, right)


def _judge_draws(x: np.ndarray, stats: Any, facts: dict[str, Any]) -> Verdict:
    """Draws that are no Markov chain: by the k-hat of their weights, if they have one."""
    if not np.isfinite(x).all():
        return Verdict.of(["some draws are not finite"], [], [])
    if "khat" not in stats:
        return Verdict.of([], ["nothing is known of how near these draws are to the posterior"], [])
    facts["khat"] = khat = float(stats["khat"])
    limit = khat_threshold(x.shape[0] * x.shape[1])
    if khat <= limit:
        return Verdict.of([], [], [f"k-hat {khat:.2f} is within {limit:.2f}"])
    return Verdict.of([f"k-hat {khat:.2f} is above {limit:.2f} (vx.nuts)"], [], [])
