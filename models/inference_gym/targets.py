"""The targets by the gym's names: a model and its data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import varax as vx

from .brownian_motion import brownian_motion, brownian_motion_unknown_scales
from .cox_process import cox_process
from .data import load, unknown
from .eight_schools import eight_schools
from .german_credit import logistic_regression, probit_regression, sparse_logistic_regression
from .item_response import item_response
from .lorenz import lorenz_bridge, lorenz_bridge_unknown_scales
from .stochastic_volatility import returns, stochastic_volatility

SMALL = 100  # days


def _brownian_motion_unknown_scales() -> vx.Measure:
    return brownian_motion_unknown_scales(load("brownian_motion")["observed_locs"])


def _lorenz_bridge_unknown_scales() -> vx.Measure:
    data = load("lorenz")
    return lorenz_bridge_unknown_scales(data["observed_values"], data["step_size"])


def _volatility(days: int | None = None, *, logarithms: bool = False) -> vx.Measure:
    prices = load("sp500")["closing_prices"]
    return stochastic_volatility(returns(np.log(prices) if logarithms else prices, days))


TARGETS: dict[str, Callable[[], vx.Measure]] = {
    "brownian_motion_missing_middle_observations": lambda: brownian_motion(
        **load("brownian_motion")
    ),
    "brownian_motion_unknown_scales_missing_middle_observations": _brownian_motion_unknown_scales,
    "convection_lorenz_bridge": lambda: lorenz_bridge(**load("lorenz")),
    "convection_lorenz_bridge_unknown_scales": _lorenz_bridge_unknown_scales,
    "eight_schools": lambda: eight_schools(**load("eight_schools")),
    "german_credit_numeric_logistic_regression": lambda: logistic_regression(
        **load("german_credit")
    ),
    "german_credit_numeric_probit_regression": lambda: probit_regression(**load("german_credit")),
    "german_credit_numeric_sparse_logistic_regression": lambda: sparse_logistic_regression(
        **load("german_credit")
    ),
    "stochastic_volatility_log_sp500": lambda: _volatility(logarithms=True),
    "stochastic_volatility_log_sp500_small": lambda: _volatility(SMALL, logarithms=True),
    "stochastic_volatility_sp500": lambda: _volatility(),
    "stochastic_volatility_sp500_small": lambda: _volatility(SMALL),
    "synthetic_item_response_theory": lambda: item_response(**load("item_response")),
    "synthetic_log_gaussian_cox_process": lambda: cox_process(**load("cox_process")),
}


def target(name: str) -> vx.Measure:
    """The model of a target, given its data: a measure over its parts.

    Raises:
        UnknownTargetError: with the names that are near.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]()
