"""Operations as Pallas kernels: Mosaic TPU, and Mosaic GPU for Hopper and newer.

Importing this package adds the implementations "pallas" to their operations; Pallas itself is
imported when one of them is lowered. A kernel that accumulates has no derivative of Pallas's own,
so each comes with its adjoint, or the plain form's derivative runs. Not Triton, whose Pallas
backend JAX removes.

| operation | file | on TPU | on Hopper |
|---|---|---|---|
| covariance_matmul | `covariance` | value, adjoint | value, adjoint |
| quantized_matmul | `quantized` | value | value |
| hmm_filter (batches) | `hmm` | value, adjoint | value, adjoint |

`capability` says for which GPUs code is lowered.
"""

from . import covariance, hmm, quantized
from .capability import cuda_capability

__all__ = ["covariance", "hmm", "quantized", "cuda_capability"]
