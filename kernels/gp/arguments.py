"""What the public functions of this folder do with their arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError
from .profiles import EXTRA, KINDS

HALVES = ("bfloat16", "float16")


def floats(*arrays: Any) -> tuple[list[jax.Array], Any]:
    """The arrays in the dtype that is computed in, and the dtype of the results.

    Halves are computed in float32; integers are floats of the default width.

    Raises:
        KernelDtypeError: an array is complex or no number.
    """
    given = [a if isinstance(a, (jax.Array, float, int)) else jnp.asarray(a) for a in arrays]
    dtype = jnp.result_type(*given)
    if jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_):
        dtype = jnp.result_type(float)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise KernelDtypeError("The operands must be real.", expected="floats", got=dtype)
    inner = jnp.float32 if str(dtype) in HALVES else dtype
    return [jnp.asarray(a, inner) for a in given], dtype


def points(name: str, x: jax.Array, d: int | None = None) -> None:
    """Check that `x` is [n, d].

    Raises:
        KernelShapeError: it is not.
    """
    if x.ndim != 2 or (d is not None and x.shape[1] != d):
        raise KernelShapeError(
            f"{name} must hold one point in each row.",
            expected=f"[n, {'d' if d is None else d}]",
            got=list(x.shape),
            fix=f"{name}[:, None] for points on a line" if x.ndim == 1 else None,
        )


def hyperparameters(
    kind: str, d: int, length_scale: jax.Array, variance: jax.Array, given: dict[str, Any]
) -> tuple[jax.Array, Any]:
    """Length scales as [d], and the kind's further parameter (1.0 if it has none).

    Raises:
        KernelValueError: an unknown kind; a parameter that is missing, not the kind's or not
            positive.
        KernelShapeError: length scales that are neither a scalar nor [d], parameters not scalar.
    """
    if kind not in KINDS:
        raise KernelValueError("There is no such covariance.", expected=", ".join(KINDS), got=kind)
    wanted = EXTRA.get(kind)
    for name, value in given.items():
        if (value is not None) != (name == wanted):
            missing = value is None
            raise KernelValueError(
                f"The {kind} covariance {'needs' if missing else 'has no'} {name}.",
                fix=f"give {name}=..." if missing else f"leave {name} out",
            )
    if length_scale.shape not in ((), (d,)):
        raise KernelShapeError(
            "There is one length scale, or one for each dimension.",
            expected=f"[] or [{d}]",
            got=list(length_scale.shape),
        )
    extra = 1.0 if wanted is None else given[wanted]
    for name, value in (("variance", variance), (wanted or "extra", extra)):
        if jnp.shape(value) != ():
            raise KernelShapeError(f"{name} must be a scalar.", got=list(jnp.shape(value)))
    positive("length_scale", length_scale)
    positive("variance", variance, zero=True)
    if wanted is not None:
        positive(wanted, extra)
    return jnp.broadcast_to(length_scale, (d,)), extra


def positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Check that a parameter is positive where it has a value; NaN passes, and propagates.

    Raises:
        KernelValueError: it is not.
    """
    if _jax.is_traced(value):
        return
    concrete = np.asarray(value, np.float64)
    bad = concrete < 0 if zero else concrete <= 0
    if bad.any():
        raise KernelValueError(
            f"{name} must be {'zero or positive' if zero else 'positive'}.",
            got=concrete.tolist(),
            fix="sample or optimise its logarithm" if not zero else None,
        )
