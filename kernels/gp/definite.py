"""What to say of a matrix without a Cholesky factor: which minor, how much jitter would do."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import KernelShapeError, NotPositiveDefiniteError


def square(name: str, a: Any) -> None:
    """Check that the last two axes of `a` are equally long.

    Raises:
        KernelShapeError: they are not.
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise KernelShapeError(f"{name} must be square.", expected="[..., n, n]", got=list(a.shape))


def not_definite(a: Any, where: str, otherwise: str) -> NotPositiveDefiniteError:
    """The error for one matrix [n, n] of finite numbers whose factorisation failed."""
    matrix = np.asarray(a)
    matrix = (matrix + matrix.T) / 2
    minor = leading_minor(matrix)
    jitter = enough(matrix)
    mean = float(np.mean(np.diag(matrix)))
    relative = f", {jitter / mean:.1g} of the mean of the diagonal" if mean > 0 else ""
    return NotPositiveDefiniteError(
        f"{where} is not positive definite.",
        expected="positive leading minors",
        got=f"the leading minor of order {minor} of {len(matrix)} is not ({matrix.dtype})",
        fix=f"add {jitter:.1g} to the diagonal{relative} (the least that will do), or {otherwise}",
    )


def leading_minor(a: np.ndarray) -> int:
    """The least order at which the factorisation fails."""
    good, bad = 0, len(a)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _factors(a[:middle, :middle]) else (good, middle)
    return bad


def enough(a: np.ndarray) -> float:
    """What must be added to the diagonal, to one digit and rounded up."""
    values = np.linalg.eigvalsh(a.astype(np.float64))
    jitter = max(-values[0], np.finfo(a.dtype).eps * max(abs(values[-1]), np.finfo(a.dtype).tiny))
    while True:
        jitter = _one_digit(jitter)
        if _factors(a + np.asarray(jitter, a.dtype) * np.eye(len(a), dtype=a.dtype)):
            return jitter
        jitter *= 1.2


def _one_digit(x: float) -> float:
    unit = 10.0 ** np.floor(np.log10(x))
    return float(f"{np.ceil(x / unit) * unit:.1g}")


def _factors(a: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(np.linalg.cholesky(a)).all())
    except np.linalg.LinAlgError:
        return False
