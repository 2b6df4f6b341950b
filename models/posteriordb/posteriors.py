"""The posteriors by name: a data set and a model, `DATA-MODEL`."""

from __future__ import annotations

import inspect
from typing import Any

import varax as vx

from .data import Reference, load, reference, unknown
from .earnings import earn_height, logearn_height
from .eight_schools import eight_schools_centered, eight_schools_noncentered
from .gp import gp_pois_regr, gp_regr
from .hmm import hmm_example
from .kidiq import kidscore_interaction, kidscore_interaction_z, kidscore_momiq
from .linear import blr, diamonds
from .lotka_volterra import lotka_volterra
from .mesquite import logmesquite_logvas, mesquite
from .mixture import low_dim_gauss_mix
from .nes import nes
from .time_series import arK, arma11, garch11

POSTERIORS: dict[str, tuple[str, vx.Model]] = {
    "arK-arK": ("arK", arK),
    "arma-arma11": ("arma", arma11),
    "diamonds-diamonds": ("diamonds", diamonds),
    "earnings-earn_height": ("earnings", earn_height),
    "earnings-logearn_height": ("earnings", logearn_height),
    "eight_schools-eight_schools_centered": ("eight_schools", eight_schools_centered),
    "eight_schools-eight_schools_noncentered": ("eight_schools", eight_schools_noncentered),
    "garch-garch11": ("garch", garch11),
    "gp_pois_regr-gp_pois_regr": ("gp_pois_regr", gp_pois_regr),
    "gp_pois_regr-gp_regr": ("gp_pois_regr", gp_regr),
    "hmm_example-hmm_example": ("hmm_example", hmm_example),
    "hudson_lynx_hare-lotka_volterra": ("hudson_lynx_hare", lotka_volterra),
    "kidiq-kidscore_interaction": ("kidiq", kidscore_interaction),
    "kidiq-kidscore_momiq": ("kidiq", kidscore_momiq),
    "kidiq_with_mom_work-kidscore_interaction_z": ("kidiq_with_mom_work", kidscore_interaction_z),
    "low_dim_gauss_mix-low_dim_gauss_mix": ("low_dim_gauss_mix", low_dim_gauss_mix),
    "mesquite-logmesquite_logvas": ("mesquite", logmesquite_logvas),
    "mesquite-mesquite": ("mesquite", mesquite),
    "nes1972-nes": ("nes1972", nes),
    "nes2000-nes": ("nes2000", nes),
    "sblrc-blr": ("sblrc", blr),
}
SAME = {"eight_schools-eight_schools_centered": "eight_schools-eight_schools_noncentered"}


def posterior(name: str) -> vx.Measure:
    """The model given its data: a measure over the parameters.

    Raises:
        UnknownPosteriorError: with the names that are near.
    """
    return model_of(name)(**data_of(name))


def model_of(name: str) -> vx.Model:
    """The model of a posterior, without data."""
    return _find(name)[1]


def data_of(name: str) -> dict[str, Any]:
    """The data of a posterior that its model asks for, by argument."""
    data, model = _find(name)
    given = load(data)
    return {argument: given[argument] for argument in inspect.signature(model).parameters}


def reference_of(name: str) -> Reference:
    """The reference of a posterior; the two forms of eight schools share theirs."""
    _find(name)
    return reference(SAME.get(name, name))


def _find(name: str) -> tuple[str, vx.Model]:
    if name not in POSTERIORS:
        raise unknown("posterior", name, POSTERIORS)
    return POSTERIORS[name]
