"""Arrays in a folder, by Orbax, bit for bit: what it does not store, and what it asks for.

Orbax stores NumPy's own types. Random keys are stored as their data, types that only JAX has
(bfloat16, float8, int4) as unsigned integers of the same bits, and arrays without elements not at
all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import MissingExtraError


def save(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write host arrays, by name, into a new folder.

    Raises:
        OSError, ValueError: the file system refused (Orbax's storage raises the latter).
    """
    stored = {name: x.view(_bits(x.dtype)) for name, x in arrays.items() if x.size}
    ocp = orbax()
    with _checkpointer(ocp) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(stored))


def load(folder: Path, like: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, np.ndarray]:
    """Read arrays whose shapes and types are known, by name."""
    ocp = orbax()
    names = [name for name, (shape, _) in like.items() if 0 not in shape]
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    item = {name: 0 for name in names}
    with _checkpointer(ocp) as checkpointer:
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy)
        found = checkpointer.restore(folder, args=args)
    arrays = {}
    for name, (shape, kind) in like.items():
        raw = np.asarray(found[name]) if name in found else np.zeros(shape, _bits(kind))
        arrays[name] = raw.view(kind).reshape(shape)
    return arrays


def to_host(x: jax.Array) -> np.ndarray:
    """A device array as NumPy; of random keys, their data."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def to_device(value: np.ndarray, like: Any) -> jax.Array:
    """The inverse, with the type and the sharding of `like`."""
    array = jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
    return (
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if is_key(like) else array
    )


def is_key(x: Any) -> bool:
    """Whether this is an array of random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _bits(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "biufc" else np.dtype(f"u{dtype.itemsize}")


def orbax() -> Any:
    """Orbax, imported when the first checkpoint is written or read.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise MissingExtraError(
            "Checkpoints need Orbax.",
            expected="the package orbax-checkpoint",
            got=str(error),
            where=user_line(),
            fix='pip install "varax[checkpoint]"',
        ) from error
    return ocp


@contextmanager
def _checkpointer(ocp: Any) -> Iterator[Any]:
    """One for this process alone: it waits for no other, which on several hosts write nothing."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="varax",
    )
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True  # what goes wrong is raised, and told once
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        log.disabled = before
