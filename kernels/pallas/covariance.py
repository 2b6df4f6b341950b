"""The Pallas forms of `covariance_matmul`: Mosaic TPU, Mosaic GPU.

What is elementwise in the points (scaling by length scales, circles of the periodic covariance)
stays with XLA, which differentiates it; the kernels see points between which the squared distance
counts. Backends need two functions: `matvec`, K v, and `pull`, the derivative in the points of one
side.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation
from ..gp.covariance import operation
from .capability import too_old
from .limits import only_float32, some_size_is_zero
from .profiles import embedded, parameter

# The most dimensions of the points, as the kernels see them, and vectors.
TPU_LIMITS = (32, 512)
GPU_LIMITS = (16, 64)


def form(backend: str, name: str = "pallas", platform: str = "", interpret: Any = None) -> Any:
    """The implementation for "tpu" or "cuda"; on another platform where it is interpreted."""
    limits = TPU_LIMITS if backend == "tpu" else GPU_LIMITS

    def refuse(call: Call) -> str | None:
        old = too_old() if backend == "cuda" and interpret is None else None
        return old or only_float32(call) or some_size_is_zero(call) or _too_large(call, limits)

    @functools.cache
    def kernels() -> Any:  # imported when something is lowered: Pallas takes a while to import
        module = importlib.import_module(f".covariance_{_FILES[backend]}", __package__)
        more = {} if interpret is None else {"interpret": interpret}
        return functools.partial(module.matvec, **more), functools.partial(module.pull, **more)

    def value(call: Call, *operands: Any) -> Any:
        f = functools.partial(_value, kernels()[0], call.statics["kind"])
        return (_mapped(f, call)(*operands),), ()

    def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        f = functools.partial(_adjoint, *kernels(), call.statics["kind"])
        return _mapped(f, call, True)(*operands, cotangents[0])

    return Implementation(name, (platform or backend,), value, adjoint, refuse=refuse)


_FILES = {"tpu": "tpu", "cuda": "gpu"}


def _mapped(f: Callable[..., Any], call: Call, *more: bool) -> Callable[..., Any]:
    """`f` over the batch axis, as one more axis of the kernel's grid."""
    if call.batch is None:
        return f
    return jax.vmap(f, [0 if has else None for has in (*call.batched, *more)])


def _value(
    matvec: Any, kind: str, x: Any, y: Any, v: Any, scale: Any, variance: Any, extra: Any
) -> Any:
    a, b = embedded(kind, x, y, scale, extra)
    return variance * matvec(kind, a, b, v, parameter(kind, extra))


def _adjoint(
    matvec: Any,
    pull: Any,
    kind: str,
    *operands: Any,
) -> tuple[Any, ...]:
    """Cotangents of all operands: two products' worth of kernels a side, and a transposed product.

    With u = K^T c at unit variance: that of v is variance u, that of the variance sum(u v).
    """
    x, y, v, scale, variance, extra, c = operands
    (a, b), unembed = jax.vjp(functools.partial(embedded, kind), x, y, scale, extra)
    alpha = parameter(kind, extra)
    u = matvec(kind, b, a, c, alpha)
    of_a, of_alpha = pull(kind, a, b, c, v, alpha)
    of_b, _ = pull(kind, b, a, v, c, alpha)
    dx, dy, of_scale, of_extra = unembed((variance * of_a, variance * of_b))
    if kind == "rational_quadratic":
        of_extra = variance * jnp.sum(of_alpha)
    return dx, dy, variance * u, of_scale, jnp.sum(u * v), of_extra


def _too_large(call: Call, limits: tuple[int, int]) -> str | None:
    dimension = call.operands[0].shape[1] * (2 if call.statics["kind"] == "periodic" else 1)
    columns = call.operands[2].shape[1]
    if dimension > limits[0]:
        return f"has points of at most {limits[0]} dimensions, not {dimension}"
    if columns > limits[1]:
        return f"has at most {limits[1]} vectors, not {columns}"
    return None


for _backend in _FILES:
    operation.add(form(_backend))
