"""For which NVIDIA GPUs code is lowered: what is there, or what the user says.

    with kernels.cuda_capability("9.0"):          # export for Hopper from a machine without GPUs
        blob = kernels.export(f, x)
    VARAX_CUDA_CAPABILITY=9.0 python script.py    # the same for a whole process

Without a word of the user's and without a CUDA device the Mosaic GPU kernels refuse, and XLA's
forms are lowered, which run on every GPU. The context is a part of the key of JAX's caches, so
functions that were compiled outside of it are compiled anew; the variable is read whenever code is
lowered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax

from .. import _jax
from ..errors import KernelValueError

VARIABLE = "VARAX_CUDA_CAPABILITY"
NEEDED = (9, 0)  # Hopper: asynchronous copies of tiles, products of warpgroups
WGMMA = 9  # those products are of this major version alone; Blackwell has others

_context = _jax.user_context(None)


@contextlib.contextmanager
def cuda_capability(version: str | None) -> Iterator[None]:
    """Lower for GPUs of a compute capability, such as "9.0", whatever devices there are.

    Args:
        version: "major.minor"; None: what is there.

    Raises:
        KernelValueError: not a version.
    """
    if version is not None:
        _parsed(version)
    with _context(version):
        yield


def capability() -> tuple[int, int] | None:
    """The compute capability to lower for, the least where devices differ; None if nobody knows."""
    said = _context.value or os.environ.get(VARIABLE)
    if said:
        return _parsed(said)
    try:
        devices = jax.devices("cuda")
    except RuntimeError:  # there are none
        return None
    return min(_parsed(device.compute_capability) for device in devices)


def too_old(*, wgmma: bool = False) -> str | None:
    """Why not to use Mosaic GPU kernels, or None; `wgmma`: they need products of warpgroups."""
    found = capability()
    if found is None:
        return f"needs to know the GPU: kernels.cuda_capability or {VARIABLE}"
    shown = ".".join(map(str, found))
    if found < NEEDED:
        return f"needs compute capability 9.0 (Hopper), not {shown}"
    if wgmma and found[0] != WGMMA:
        return f"needs compute capability 9.x (Hopper's matrix units), not {shown}"
    return None


def no_integer_products() -> str | None:
    """Why not to multiply int8 on the TPUs at hand, or None: v4 and older have no units for it."""
    try:
        kinds = sorted({device.device_kind for device in jax.devices("tpu")})
    except RuntimeError:  # there are none
        return None
    old = [kind for kind in kinds if kind in ("TPU v2", "TPU v3", "TPU v4")]
    return f"needs matrix units for int8, which a {old[0]} has not" if old else None


def _parsed(version: str) -> tuple[int, int]:
    major, _, minor = str(version).partition(".")
    if not (major.isdigit() and (minor or "0").isdigit()):
        raise KernelValueError(
            "This is not a compute capability.", expected='"major.minor"', got=repr(version)
        )
    return int(major), int(minor or 0)
