"""`result.summary()`: what was inferred, and whether to trust it.

A guide is judged by

    k-hat <= min(1 - 1 / log10 S, 0.7)            Vehtari et al. 2024: S weights tell something
    |mean - reweighted mean| <= 0.1 sd            its own moments are those that the weights give;
    0.85 <= sd / reweighted sd <= 1.15            not asked where the table is reweighted itself
    the objective has settled                     `convergence`

and Markov chains as in `chains.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ...transforms.errors import VaraxError
from ..errors_posterior import WeightsError
from ..measure import Measure
from .chains import summarize_draws
from .convergence import TOLERANCE, Convergence, convergence
from .draws import DRAWS, Weighted, default_key, guide_of, model_of, size_of, weigh
from .signal import reach, signal_to_noise
from .table import Summary, Verdict, moments, scalars

SHIFT, RATIO = 0.1, (0.85, 1.15)
HELD, FEWEST = 50_000_000, 1_000  # numbers in the draws of a summary; draws all the same


def summarize(result: Any, **options: Any) -> Summary:
    """The summary of a `FitResult` (options of `summarize_fit`) or of `Draws`."""
    return (summarize_draws if hasattr(result, "choices") else summarize_fit)(result, **options)


def summarize_fit(
    result: Any,
    *,
    importance: bool = False,
    draws: int | None = None,
    key: jax.Array | None = None,
    tolerance: float = TOLERANCE,
    gradients: int = 64,
) -> Summary:
    """Moments and quantiles under a fitted guide, and a verdict.

    Columns: `mean`, `sd`, `mcse` (Monte Carlo standard error of the mean, of the draws that the
    summary takes, not of the guide's distance from the posterior), `q5`, `median`, `q95`, `snr`
    (signal to noise of the objective's gradient in the parameters that reach the choice).

    Args:
        result: a `FitResult` that knows its model and guide.
        importance: weight the draws by their smoothed importance weights.
        draws: of the guide; 10,000 where it is None, fewer if they would not fit in memory.
        key: of the draws; where it is None a fixed one, the same as that of `result.khat`.
        tolerance: a change of the objective that does not matter, in its unit.
        gradients: for `snr`, which is left out where it is 0.

    Raises:
        CapabilityError: the result does not know its model or guide.
        WeightsError: `importance`, and the weights are not finite.
    """
    model, guide = model_of(result, "summary"), guide_of(result, "summary")
    draw, signal = jax.random.split(default_key() if key is None else key)
    if draws is None:
        draws = min(DRAWS, max(FEWEST, HELD // size_of(guide)))
    found = weigh(model, guide, draw, draws)
    names, x = scalars(found.choices, 1)
    n = len(x)
    settled = convergence(objective_column(result), tolerance)
    facts: dict[str, Any] = {"convergence": settled, "draws": n}
    even = np.full(n, 1 / n)
    try:
        w = np.exp(found.smoothed)
        facts |= _weight_facts(found)
        verdict = _judge_guide(found, names, x, w, settled, reweighted=importance)
    except WeightsError as error:
        if importance:
            raise
        line = str(error).splitlines()
        got = next(x.split(":", 1)[1].strip() for x in line if x.strip().startswith("got:"))
        w, verdict = even, Verdict.of([f"its importance weights are unusable, {got}"], [], [])
    columns = moments(x, w if importance else even)
    if gradients:
        columns["snr"] = _signals(result, names, signal, gradients)
    kind = "reweighted draws" if importance else "draws"
    title = f"{model.name}: {n} {kind} of the guide"
    if "elbo" in facts:
        title += f", ELBO {facts['elbo']:.5g} ± {facts['elbo_mcse']:.2g}"
    return Summary(title, names, columns, verdict, facts)


def objective_column(result: Any) -> np.ndarray:
    """The history of the objective; of the guide's own, or the first, where there are several."""
    columns = result._columns
    name = next((n for n in ("objective", "guide") if n in columns), next(iter(columns)))
    return columns[name]


def _weight_facts(found: Weighted) -> dict[str, Any]:
    log_w = found.log_weights
    finite = log_w[np.isfinite(log_w)]
    whole = len(finite) == len(log_w)
    top = finite.max()
    return {
        "khat": found.khat,
        "khat_threshold": found.threshold,
        "elbo": float(log_w.mean()) if whole else -np.inf,
        "elbo_mcse": float(log_w.std(ddof=1) / np.sqrt(len(log_w))) if whole else np.nan,
        "log_evidence": float(top + np.log(np.exp(log_w - top).mean())),
        "ess": float(1 / np.exp(2 * found.smoothed).sum()),
    }


def _judge_guide(
    found: Weighted,
    names: list[str],
    x: np.ndarray,
    w: np.ndarray,
    settled: Convergence,
    *,
    reweighted: bool,
) -> Verdict:
    wrong, right = [], []
    if not found.khat <= found.threshold:
        wrong.append(
            f"k-hat {found.khat:.2f} is above {found.threshold:.2f}, the guide misses part of the "
            "posterior and weights cannot mend it (a richer guide, another parameterisation, "
            "or vx.nuts)"
        )
    else:
        right.append(f"k-hat {found.khat:.2f} is within {found.threshold:.2f}")
        if not reweighted:
            if outside := np.isneginf(found.log_weights).mean():
                wrong.append(f"{outside:.1%} of the guide is outside the model's support")
            against, for_ = _moved(names, x, w)
            wrong += against
            right += for_
    if settled.settled is False:
        wrong.append(str(settled))
    elif settled.steps:
        right.append(str(settled))
    return Verdict.of(wrong, [], right)


def _moved(names: list[str], x: np.ndarray, w: np.ndarray) -> tuple[list[str], list[str]]:
    """What reweighting does to means and standard deviations: reasons against, reasons for."""
    mean, sd = x.mean(0), x.std(0)
    new_mean = w @ x
    new_sd = np.sqrt(w @ (x - new_mean) ** 2)
    varies = (sd > 0) & (new_sd > 0)
    if not varies.any():
        return [], []
    shift = np.where(varies, np.abs(new_mean - mean) / np.where(varies, new_sd, 1), 0.0)
    ratio = np.where(varies, sd / np.where(varies, new_sd, 1), 1.0)
    at, far = int(shift.argmax()), int(np.abs(np.log(ratio)).argmax())
    moves = f"reweighting moves the mean of {names[at]} by {shift[at]:.2g} sd"
    scale = f"the sd of {names[far]} is {ratio[far]:.2f} times that of the reweighted draws"
    if shift[at] <= SHIFT and RATIO[0] <= ratio[far] <= RATIO[1]:
        return [], [f"reweighting moves no mean by more than {shift[at]:.2g} sd"]
    said = [moves] if shift[at] > SHIFT else []
    said += [] if RATIO[0] <= ratio[far] <= RATIO[1] else [scale]
    return [f"{' and '.join(said)} (importance=True in summary and sample corrects it)"], []


def _signals(result: Any, names: list[str], key: jax.Array, gradients: int) -> np.ndarray:
    """Per scalar, the signal to noise of the site that it belongs to; NaN where there is none."""
    guide: Callable[[Any], Any] = result.guide
    nothing = np.full(len(names), np.nan)
    if not callable(guide):
        return nothing

    def elbo(params: Any) -> Any:
        model: Any = result.model if isinstance(result.model, Measure) else result.model(params)
        trace: Any = guide(params).simulate()
        return model.log_density(trace.choices) - trace.log_density

    own = isinstance(getattr(guide, "model", None), Measure)
    objective = guide.elbo if own else elbo  # an automatic guide's is of lower variance
    estimate, pattern = jax.random.split(key)
    try:
        moments = signal_to_noise(objective, result.params, estimate, gradients)
        by_site = {a: moments.of(m) for a, m in reach(guide, result.params, pattern).items()}
    except VaraxError:  # no gradient of this guide is unbiased: there is no signal to speak of
        return nothing
    return np.array([by_site.get(name.split("[")[0], np.nan) for name in names])
