"""Variational objectives: short programs over a model `p`, a guide `q` and data.

They are programs themselves: give them to `vx.fit`, differentiate them with `vx.grad`, write your
own in the same way. `varax.objectives.table()` lists them with what their value is.
"""

from .aggregated import KLTerms, decompose_kl, dip_i, dip_ii, log_aggregated, tc_elbo
from .bottleneck import cauchy_schwarz, cs_bottleneck, cs_information, cs_prediction, vib
from .bounds import ciwae, cubo, elbo, exp_cubo, iwelbo, miwae, renyi
from .chi2 import forward_chi2, vis
from .distances import imq, infovae, mmd, rbf, sliced_wasserstein
from .gradients import dreg, sticking_the_landing, vimco
from .groups import piwae, pwake, qwake, sleep_guide, wake_guide, wake_model, wake_sleep, wake_wake
from .information import donsker_varadhan, infonce, jensen_shannon, nwj, smile
from .nested import diwhvi, hvi, iwhvi, vsmc
from .simulation import DIVERGENCES, f_divergence, forward_kl
from .tags import Kind, Table, table, tagged
from .tempered import (
    autogen,
    beta_elbo,
    capacity,
    cold_elbo,
    cyclical_annealing,
    data_emphasised_elbo,
    linear_annealing,
    logistic_annealing,
    tempered_elbo,
)
from .terms import ElboTerms, elbo_terms
from .weights import log_mean_exp, log_weight, log_weights

__all__ = [
    # bounds on the evidence
    "elbo",
    "iwelbo",
    "miwae",
    "ciwae",
    "renyi",
    "cubo",
    "exp_cubo",
    # of guides with auxiliary choices
    "hvi",
    "iwhvi",
    "diwhvi",
    "vsmc",
    # with other gradients
    "sticking_the_landing",
    "dreg",
    "vimco",
    # one scalar for each parameter group
    "piwae",
    "wake_model",
    "wake_guide",
    "wake_wake",
    "sleep_guide",
    "wake_sleep",
    "pwake",
    "qwake",
    # divergences of guide and posterior
    "forward_kl",
    "f_divergence",
    "DIVERGENCES",
    "forward_chi2",
    "vis",
    # weighted terms
    "beta_elbo",
    "tempered_elbo",
    "cold_elbo",
    "data_emphasised_elbo",
    "autogen",
    "capacity",
    "linear_annealing",
    "logistic_annealing",
    "cyclical_annealing",
    # terms of a minibatch
    "decompose_kl",
    "tc_elbo",
    "log_aggregated",
    "KLTerms",
    "dip_i",
    "dip_ii",
    "mmd",
    "rbf",
    "imq",
    "infovae",
    "sliced_wasserstein",
    # information
    "donsker_varadhan",
    "nwj",
    "infonce",
    "smile",
    "jensen_shannon",
    "vib",
    "cauchy_schwarz",
    "cs_information",
    "cs_prediction",
    "cs_bottleneck",
    # for objectives of one's own
    "log_weight",
    "log_weights",
    "log_mean_exp",
    "elbo_terms",
    "ElboTerms",
    "tagged",
    "table",
    "Kind",
    "Table",
]
