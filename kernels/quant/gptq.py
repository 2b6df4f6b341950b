"""GPTQ: round one input after another, and let the later ones make up for the errors so far.

Frantar, Ashkboos, Hoefler and Alistarh (2022), GPTQ. The error of a layer on inputs X [M, K] is
|| X (W - Q) ||^2 = sum_n e_n^T H e_n with H = X^T X and e_n the error of output n. With U upper
triangular and U^T U = H^-1, rounding input j with the error d changes the inputs i > j by
- d U_ji / U_jj, the best that they can do: an inverse Cholesky factor holds all steps at once.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from ..errors import KernelShapeError, KernelValueError
from .quantizers import Array, Grid, Scale

BLOCK = 128  # inputs that are done before the rest of the matrix is told


def gptq(
    grid: Grid,
    w: Array,
    moment: Array,
    group: int,
    by: Scale,
    *,
    damping: float = 0.01,
    by_activity: bool = True,
    kept: Array | None = None,
) -> Array:
    """Codes for weights [N, K], by the second moment of the inputs.

    Scales are given, those of the weights as they are, so that inputs may come in any order. Less
    error than of rounding to the nearest is the rule but no law; `quantize_matrix` keeps the better
    of the two for each output.

    Args:
        grid: what codes mean.
        w: float64[N, K], by outputs.
        moment: float64[K, K], X^T X / M of calibration inputs, symmetric.
        group: inputs that share a scale, or 0 for all.
        by: scales [N, groups].
        damping: added to the diagonal, in its mean.
        by_activity: begin with the inputs of largest second moment, while many others can still
            make up for them; False: in their own order.
        kept: bool[N, K], weights that are stored exactly beside (outliers): they have no error.

    Returns:
        codes uint8[N, K].

    Raises:
        KernelShapeError: the moment does not fit.
        KernelValueError: the moment is not finite, or not positive (semi)definite.
    """
    outputs, inputs = w.shape
    hessian = _damped(moment, inputs, damping)
    order = np.argsort(-np.diag(hessian), kind="stable") if by_activity else np.arange(inputs)
    factor = inverse_factor(hessian[np.ix_(order, order)])
    group_of = np.arange(inputs) // (group or max(inputs, 1))
    codes = np.zeros((outputs, inputs), np.uint8)
    left = w[:, order]  # what the inputs that are to come shall represent
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = np.zeros((outputs, stop - start))
        for j in range(start, stop):
            scale = by[:, group_of[order[j]]]
            code = grid.round(left[:, j, None], scale)
            error = left[:, j] - grid.values(code, scale)[:, 0]
            if kept is not None:
                error = np.where(kept[:, order[j]], 0.0, error)
            codes[:, order[j]] = code[:, 0]
            errors[:, j - start] = error / factor[j, j]
            left[:, j + 1 : stop] -= errors[:, j - start, None] * factor[j, j + 1 : stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def inverse_factor(h: Array) -> Array:
    """The upper triangular U with U^T U = h^-1, without forming the inverse.

    Raises:
        KernelValueError: h is not positive definite.
    """
    # h = R R^T with R upper triangular is a Cholesky factorisation from the far end; U = R^-1
    try:
        r = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise KernelValueError(
            "The second moment of the inputs is not positive definite.",
            expected="X^T X of calibration inputs",
            got=f"a least eigenvalue of {np.linalg.eigvalsh(h)[0]:.3g}",
            fix="more damping: Scheme(damping=0.1), or calibration inputs of a sensible scale",
        ) from None
    return solve_triangular(r, np.eye(len(h)), lower=False)


def errors_on_inputs(error: Array, moment: Array) -> Array:
    """Mean square error of each output [N], for errors of weights [N, K]."""
    return np.einsum("nk,nk->n", error @ moment, error)


def _damped(moment: Array, inputs: int, damping: float) -> Array:
    moment = np.asarray(moment, np.float64)
    if moment.shape != (inputs, inputs):
        raise KernelShapeError(
            "The second moment of the inputs does not fit the weights.",
            expected=[inputs, inputs],
            got=list(moment.shape),
        )
    if not np.isfinite(moment).all():
        raise KernelValueError(
            "The second moment of the inputs is not finite.",
            expected="calibration inputs without NaN or infinity",
        )
    mean = np.diag(moment).mean() if inputs else 1.0
    return moment + (damping * mean if mean > 0 else 1.0) * np.eye(inputs)
