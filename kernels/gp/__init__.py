"""Gaussian processes: covariance products, small Cholesky factors, nearest neighbours."""

from .covariance import covariance_matmul
from .safe import safe_cholesky
from .small import small_cholesky, small_cholesky_solve, small_triangular_solve
from .vecchia import nearest_neighbour_weights, ordered_neighbours, vecchia_log_likelihood

__all__ = [
    "covariance_matmul",
    "safe_cholesky",
    "small_cholesky",
    "small_cholesky_solve",
    "small_triangular_solve",
    "nearest_neighbour_weights",
    "ordered_neighbours",
    "vecchia_log_likelihood",
]
