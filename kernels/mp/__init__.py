"""Message passing: linear-Gaussian chains, discrete chains, factor graphs."""

from .factor_graph import FactorGraph, MaxProduct, SumProduct, max_product, sum_product
from .hmm import hmm_filter, hmm_sample, hmm_smoother, hmm_viterbi
from .kalman_filter import Filtered, kalman_filter, kalman_log_likelihood
from .kalman_sample import kalman_sample
from .kalman_smoother import Smoothed, kalman_smoother
from .matern import matern_log_likelihood
from .matern_transitions import transitions as matern_transitions

__all__ = [
    "FactorGraph",
    "Filtered",
    "MaxProduct",
    "Smoothed",
    "SumProduct",
    "hmm_filter",
    "hmm_sample",
    "hmm_smoother",
    "hmm_viterbi",
    "kalman_filter",
    "kalman_log_likelihood",
    "kalman_sample",
    "kalman_smoother",
    "matern_log_likelihood",
    "matern_transitions",
    "max_product",
    "sum_product",
]
