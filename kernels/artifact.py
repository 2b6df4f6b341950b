"""Functions as files: one artifact for CPU, CUDA and TPU, made on any machine.

    blob = kernels.export(f, x, y)                   # for ("cpu", "cuda", "tpu")
    g = kernels.load(blob)                           # elsewhere, another day
    g(x, y)

What is chosen for each platform is what `explain` says. On CPU that is XLA's plain operations
unless `native=True`, so that an artifact needs JAX alone: native kernels are calls into a library,
which must be installed where the artifact runs, and about whose stability over versions JAX makes
no promise. Mosaic kernels are serialised into the artifact by their compilers; those for GPUs only
if it is said for which (`cuda_capability`), or XLA's forms are exported, which run on all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from . import native as native_library
from .errors import NativeBuildError
from .frame.implementation import PLATFORMS

MOSAIC = ("tpu_custom_call", "mosaic_gpu_v2", "mosaic_gpu")  # Mosaic TPU's and GPU's calls
NOT_PORTABLE = "would tie the artifact to an installed library: kernels.export(..., native=True)"


def export(
    f: Callable[..., Any],
    *args: Any,
    platforms: Sequence[str] = PLATFORMS,
    native: bool = False,
    vjp_order: int = 0,
) -> bytes:
    """`f` for arguments of these shapes and dtypes, compiled nowhere yet, as bytes.

    Args:
        f: a function of arrays.
        args: arrays, or `jax.ShapeDtypeStruct`s, or pytrees of them.
        platforms: for which it is lowered: "cpu", "cuda", "tpu".
        native: use varax's C++ kernels on CPU, instead of XLA's plain operations.
        vjp_order: how many times `load`'s function can be differentiated in reverse.

    Raises:
        NativeBuildError: `native`, but there is no native library.
        ImportError: `flatbuffers` is missing, which JAX's serialization needs.
    """
    from jax import export as jax_export

    if native and native_library.missing() is not None:
        raise NativeBuildError(
            f"The native library {native_library.missing()}.", fix="export with native=False"
        )
    checks = [_custom_call(name) for name in (*MOSAIC, *native_library.handlers())]
    with contextlib.nullcontext() if native else native_library.refused(NOT_PORTABLE):
        exported = jax_export.export(
            jax.jit(f), platforms=tuple(platforms), disabled_checks=checks
        )(*args)
        return bytes(exported.serialize(vjp_order=vjp_order))


def load(blob: bytes | bytearray) -> Callable[..., Any]:
    """The function that `export` made bytes of, for the platform that it is called on.

    Raises:
        ImportError: `flatbuffers` is missing.
    """
    from jax import export as jax_export

    native_library.library()  # registers the handlers, if the artifact has some
    return jax_export.deserialize(bytearray(blob)).call


def _custom_call(name: str) -> Any:
    from jax import export as jax_export

    return jax_export.DisabledSafetyCheck.custom_call(name)
