"""What the public functions of linear-Gaussian chains do with their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, NotPositiveDefiniteError

LOW = ("bfloat16", "float16")  # computed in float32


def prepared(
    y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any, b: Any, d: Any, mask: Any
) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    """The operands of the operation, in one dtype, and what takes results back to the caller's.

    Raises:
        KernelShapeError, KernelDtypeError, NotPositiveDefiniteError: as the public functions say.
    """
    given = {"y": y, "A": A, "Q": Q, "H": H, "R": R, "m0": m0, "P0": P0, "b": b, "d": d}
    of, back = floating({k: x for k, x in given.items() if x is not None})
    if of["m0"].ndim != 1 or of["m0"].shape[0] < 1:
        raise KernelShapeError(
            "The initial mean is not a vector.", expected="m0[n], n >= 1", got=f"m0{_shape(m0)}"
        )
    n = of["m0"].shape[0]
    if of["y"].ndim == 1:  # one number at a time
        of["y"] = of["y"][:, None]
        of["H"] = of["H"][..., None, :] if of["H"].shape[-2:-1] != (1,) or n == 1 else of["H"]
        of["R"] = of["R"][..., None, None] if of["R"].shape[-2:] != (1, 1) else of["R"]
        if "d" in of and (of["d"].ndim == 0 or of["d"].shape[-1] != 1):
            of["d"] = of["d"][..., None]
        mask = None if mask is None else jnp.asarray(mask)[..., None]
    if of["y"].ndim != 2 or of["y"].shape[1] < 1:
        raise KernelShapeError(
            "The observations are not a series.", expected="y[t] or y[t, m]", got=f"y{_shape(y)}"
        )
    steps, m = of["y"].shape
    moves = max(steps - 1, 0)
    of.setdefault("b", jnp.zeros(n, of["m0"].dtype))
    of.setdefault("d", jnp.zeros(m, of["m0"].dtype))
    sizes = {"n": n, "m": m, "t": steps, "t - 1": moves}
    for name, core, time in (
        ("A", "nn", "t - 1"), ("Q", "nn", "t - 1"), ("b", "n", "t - 1"), ("P0", "nn", None),
        ("H", "mn", "t"), ("R", "mm", "t"), ("d", "m", "t"),
    ):  # fmt: skip
        fits(name, of[name], core, time, sizes)
    for name in ("Q", "R", "P0"):
        positive(name, of[name])
    seen = observed(mask, steps, m)
    return (*(of[k] for k in ("y", "A", "Q", "H", "R", "m0", "P0", "b", "d")), seen), back


def floating(given: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """The arrays in their common dtype (float32 for narrower ones), and the way back.

    Raises:
        KernelDtypeError: an array of complex numbers, or of no numbers.
    """
    arrays = {k: jnp.asarray(x) for k, x in given.items()}
    for name, x in arrays.items():
        if jnp.issubdtype(x.dtype, jnp.complexfloating) or x.dtype == bool:
            raise KernelDtypeError(
                f"{name} is not an array of real numbers.", expected="a float", got=x.dtype.name
            )
    common = jnp.result_type(*arrays.values(), jnp.float32 if not _has_float(arrays) else 0.0)
    dtype = jnp.dtype(jnp.float32) if common.name in LOW else common
    return {k: x.astype(dtype) for k, x in arrays.items()}, lambda x: x.astype(common)


def fits(name: str, x: Any, core: str, time: str | None, sizes: dict[str, int]) -> None:
    """An array has the shape `core`, with a time axis in front or without.

    Raises:
        KernelShapeError: it has not.
    """
    shape = tuple(sizes[c] for c in core)
    allowed = [shape] + ([(sizes[time], *shape)] if time else [])
    if x.shape not in allowed:
        letters = ", ".join(core)
        options = [f"{name}[{letters}]"] + ([f"{name}[{time}, {letters}]"] if time else [])
        raise KernelShapeError(
            f"{name} does not fit the other arrays.",
            expected=" or ".join(options)
            + ", "
            + ", ".join(f"{k} = {v}" for k, v in sizes.items()),
            got=f"{name}{_shape(x)}",
        )


def positive(name: str, matrices: Any) -> None:
    """Covariances with known values are symmetric and have no negative leading minor.

    Raises:
        NotPositiveDefiniteError: one has, or is not symmetric; NaN is let through.
    """
    if _jax.is_traced(matrices) or matrices.size == 0:
        return
    all_of = np.asarray(matrices, np.float64).reshape(-1, *matrices.shape[-2:])
    resolution = float(jnp.finfo(matrices.dtype).eps) * 16 * all_of.shape[-1]
    size = np.abs(all_of).max((-1, -2), keepdims=True)
    uneven = np.abs(all_of - np.swapaxes(all_of, -1, -2)) > 1e4 * resolution * size
    if uneven.any():
        at, i, j = np.argwhere(uneven)[0]
        raise NotPositiveDefiniteError(
            f"{name}{_at(matrices, at)} is not symmetric.",
            expected="a covariance",
            got=f"[{i}, {j}] = {all_of[at, i, j]:.6g}, [{j}, {i}] = {all_of[at, j, i]:.6g}",
            fix=f"({name} + {name}.T) / 2, if the difference is rounding",
        )
    for k in range(1, all_of.shape[-1] + 1):
        least = np.linalg.eigvalsh(np.where(np.isfinite(all_of), all_of, 0)[:, :k, :k])[:, 0]
        bad = (least < -resolution * size[:, 0, 0]) & np.isfinite(all_of).all((-1, -2))
        if bad.any():
            at = int(np.argmax(bad))
            raise NotPositiveDefiniteError(
                f"{name}{_at(matrices, at)} is not positive semi-definite.",
                expected="no negative eigenvalue",
                got=f"{least[at]:.4g} in its leading {k} x {k} minor",
                fix=f"add {-least[at]:.2g} or more to the diagonal, if that is rounding",
            )


def observed(mask: Any, steps: int, m: int) -> Any:
    """The mask as `[m]` or `[t, m]`.

    Raises:
        KernelShapeError, KernelDtypeError: it is neither, or not of truth values.
    """
    if mask is None:
        return jnp.ones(m, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise KernelDtypeError("The mask has no truth values.", expected="bool", got=mask.dtype)
    if mask.shape == (steps,) and steps != m:
        mask = mask[:, None]
    if mask.ndim == 2 and mask.shape in ((steps, 1), (steps, m)):
        return jnp.broadcast_to(mask, (steps, m))
    if mask.shape == (m,):
        return mask
    raise KernelShapeError(
        "The mask does not fit the observations.",
        expected=f"mask[t], mask[t, m] or mask[m], t = {steps}, m = {m}",
        got=f"mask{_shape(mask)}",
    )


def _has_float(arrays: dict[str, Any]) -> bool:
    return any(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays.values())


def _shape(x: Any) -> str:
    return f"[{', '.join(map(str, jnp.shape(x)))}]"


def _at(matrices: Any, at: int) -> str:
    return f"[{at}]" if matrices.ndim > 2 else ""
