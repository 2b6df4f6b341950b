"""The native library: C++ through XLA's FFI, loaded with ctypes on first use.

    native.library()      # the library, or None
    native.missing()      # why there is none, or None
    native.call("varax_kalman_filter_f32", [shape], *operands, steps=3)

`VARAX_NATIVE_LIBRARY` names another file to load, such as a build with sanitizers; `VARAX_ISA`
(portable, avx2, avx512) caps the instruction set.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from .. import _jax
from ..errors import NativeBuildError
from ..frame.implementation import Adjoint, Call, Implementation, Value
from .build import LIBRARY

LEVELS = ("portable", "avx2", "avx512")
_FIX = "install a C++ compiler and varax again, or `python kernels/native/build.py` in a checkout"
_refused = _jax.user_context(None)


def path() -> Path:
    """The file that is loaded."""
    return Path(os.environ.get("VARAX_NATIVE_LIBRARY", LIBRARY))


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    file = path()
    if not file.exists():
        return None, "was not built when varax was installed (varax doctor)"
    try:
        library = ctypes.CDLL(str(file))
        library.varax_handlers.restype = ctypes.c_char_p
        for name in library.varax_handlers().decode().split():
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except (OSError, AttributeError) as error:
        return None, f"could not be loaded: {error}"
    return library, None


def library() -> ctypes.CDLL | None:
    """The native library with its handlers registered, or None."""
    return _loaded()[0]


def missing() -> str | None:
    """Why there is no native library, or None if there is one."""
    return _loaded()[1]


def handlers() -> list[str]:
    """The names of its handlers."""
    found = library()
    return [] if found is None else found.varax_handlers().decode().split()


def instruction_set() -> str | None:
    """The instruction set that its kernels use here."""
    found = library()
    return None if found is None else LEVELS[found.varax_level()]


def call(name: str, results: Any, *operands: Any, **attributes: Any) -> Any:
    """Call a handler: `results` are `jax.ShapeDtypeStruct`s, attributes NumPy scalars or arrays.

    Raises:
        NativeBuildError: there is no native library.
    """
    if library() is None:
        raise NativeBuildError(f"The native library {missing()}.", got=path(), fix=_FIX)
    return jax.ffi.ffi_call(name, results)(*operands, **attributes)


@contextlib.contextmanager
def refused(reason: str) -> Iterator[None]:
    """Native implementations refuse, with this reason; other platforms choose as ever."""
    with _refused(reason):
        yield


def native(
    value: Value,
    adjoint: Adjoint | None = None,
    *,
    dtypes: Sequence[str] = ("float32", "float64"),
    refuse: Callable[[Call], str | None] | None = None,
    refuse_adjoint: Callable[[Call], str | None] | None = None,
) -> Implementation:
    """An implementation "native", which refuses other dtypes, and where there is no library."""

    def against(call: Call) -> str | None:
        if _refused.value is not None:
            return _refused.value
        if library() is None:
            _say_once()
            return missing()
        floats = {d for d in call.dtypes if d.startswith(("float", "bfloat"))}
        if not floats <= set(dtypes):
            return f"has {', '.join(dtypes)}, not {', '.join(sorted(floats - set(dtypes)))}"
        return refuse(call) if refuse is not None else None

    more = {} if refuse_adjoint is None else {"refuse_adjoint": refuse_adjoint}
    return Implementation("native", ("cpu",), value, adjoint, refuse=against, **more)


@functools.cache
def _say_once() -> None:
    message = f"varax's native kernels: the library {missing()}; XLA is used. To mend: {_FIX}."
    warnings.warn(message, stacklevel=2)
