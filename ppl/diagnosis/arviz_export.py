"""To ArviZ, for its plots and leave-one-out comparisons: both generations of it.

    ArviZ 0.x    InferenceData
    ArviZ 1.x    xarray's DataTree

A variable is called by its address with dots, `local.z`: slashes mean groups in a DataTree.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from ...kernels.source import user_line
from ...transforms.choices import flatten
from ...transforms.errors import MissingExtraError
from ...transforms.predictive import observed
from .draws import default_key, guide_of, model_of, require_draws, weigh
from .predictive import log_likelihood, observed_values, predict_at


def to_arviz(
    result: Any,
    *,
    draws: int = 1000,
    key: jax.Array | None = None,
    predictive: bool = True,
    likelihood: bool = True,
) -> Any:
    """ArviZ's `InferenceData` on 0.x, a `DataTree` on 1.x.

    Groups: `posterior`; `sample_stats` (of a fit `log_weight`, log p - log q, unsmoothed; of a
    sampler what it recorded for each draw); where the model observes anything `observed_data`,
    `posterior_predictive` and `log_likelihood` (one number for each element of an observation).

    Args:
        result: a `FitResult`, whose guide is drawn from as one chain, or `Draws`.
        draws: of a fit's guide.
        key: of the draws; a fixed one where it is None.
        predictive, likelihood: whether these groups are wanted.

    Raises:
        MissingExtraError: ArviZ is not installed.
        CapabilityError: the result does not know its model or guide.
    """
    arviz = require_arviz()
    model = model_of(result, "to_arviz")
    key = default_key() if key is None else key
    draw, predict, score = jax.random.split(key, 3)
    if hasattr(result, "choices"):
        choices, stats = result.choices, _by_draw(result)
    else:
        require_draws(draws)
        found = weigh(model, guide_of(result, "to_arviz"), draw, draws)
        choices = jax.tree.map(lambda x: x[None], found.choices)
        stats = {"log_weight": found.log_weights[None]}
    groups: dict[str, dict[str, Any]] = {"posterior": _variables(choices), "sample_stats": stats}
    if known := observed(model.program):
        groups["observed_data"] = _variables(observed_values(model))
        if predictive:
            drawn = _variables(predict_at(model, choices, predict))
            seen = {".".join(a) for a in known}
            groups["posterior_predictive"] = {a: x for a, x in drawn.items() if a in seen}
        if likelihood:
            groups["log_likelihood"] = _variables(log_likelihood(model, choices, score))
    groups = {name: group for name, group in groups.items() if group}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups)
    return arviz.from_dict(**groups)


def require_arviz() -> Any:
    """ArviZ, imported when it is needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0, which works too
            import arviz
    except ImportError as error:
        raise MissingExtraError(
            "Exporting to ArviZ needs ArviZ.",
            expected="the extra `arviz`",
            where=user_line(),
            fix='pip install "varax[arviz]"',
        ) from error
    return arviz


def _by_draw(result: Any) -> dict[str, np.ndarray]:
    """The stats that have a value for each draw."""
    lead = next((np.shape(x)[:2] for x in flatten(result.choices).values()), None)
    return {
        name: np.asarray(x)
        for name, x in result.stats.items()
        if np.ndim(x) >= 2 and np.shape(x)[:2] == lead
    }


def _variables(choices: Any) -> dict[str, np.ndarray]:
    return {".".join(a): np.asarray(x) for a, x in flatten(choices).items()}
