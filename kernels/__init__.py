"""varax.kernels: array operations whose speed decides the speed of structured inference.

A kernel maps arrays to arrays and knows nothing of programs, sites or measures. Each has a short
definition in jax.numpy, and faster implementations that compute the same function or refuse
with a reason. This layer imports no other layer of varax.

`frame` is what they share (read `frame/__init__.py` first), `native` the C++ library, `mp`
message passing, `gp` Gaussian processes, `quant` quantized products, `pallas` the forms for GPUs
and TPUs.
"""

from . import errors
from .artifact import export, load
from .frame import Call, Implementation, Operation, explain, using
from .gp import (
    covariance_matmul,
    nearest_neighbour_weights,
    ordered_neighbours,
    safe_cholesky,
    small_cholesky,
    small_cholesky_solve,
    small_triangular_solve,
    vecchia_log_likelihood,
)
from .mp import (
    FactorGraph,
    hmm_filter,
    hmm_sample,
    hmm_smoother,
    hmm_viterbi,
    kalman_filter,
    kalman_log_likelihood,
    kalman_sample,
    kalman_smoother,
    matern_log_likelihood,
    matern_transitions,
    max_product,
    sum_product,
)
from .quant import (
    NF4,
    Outliers,
    PackedWeights,
    Scheme,
    hadamard,
    lloyd_max,
    quantize_matrix,
    quantized_matmul,
    rotate,
    unrotate,
)

from .pallas import cuda_capability  # isort: skip  adds its forms to the operations above

__all__ = [
    "NF4",
    "Call",
    "FactorGraph",
    "Implementation",
    "Operation",
    "Outliers",
    "PackedWeights",
    "Scheme",
    "covariance_matmul",
    "cuda_capability",
    "errors",
    "explain",
    "export",
    "hadamard",
    "hmm_filter",
    "hmm_sample",
    "hmm_smoother",
    "hmm_viterbi",
    "kalman_filter",
    "kalman_log_likelihood",
    "kalman_sample",
    "kalman_smoother",
    "lloyd_max",
    "load",
    "matern_log_likelihood",
    "matern_transitions",
    "max_product",
    "nearest_neighbour_weights",
    "ordered_neighbours",
    "quantize_matrix",
    "quantized_matmul",
    "rotate",
    "safe_cholesky",
    "small_cholesky",
    "small_cholesky_solve",
    "small_triangular_solve",
    "sum_product",
    "unrotate",
    "using",
    "vecchia_log_likelihood",
]
