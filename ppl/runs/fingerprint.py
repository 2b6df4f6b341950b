"""What a run is a run of, as a dict that can be compared and written down.

A run may be continued if the same key would lead the same program on the same data through the
same states. So the fingerprint has the form of the state, the key, the data, and the digest of the
compiled program's text, which holds the objective, the optimizer and all constants in them. The
number of steps is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import is_key, to_host

SHOWN = 6  # differences in an error
PLACE = ("jax", "platform", "devices")  # where they differ, so may the text of a same program


def form(tree: Any) -> dict[str, str]:
    """Path -> type and shape of every array; of what is no array, what it says of itself."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "(itself)": _shown(x) for path, x in leaves}


def _shown(x: Any) -> str:
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"{x.dtype}{list(x.shape)}"
    if x is None or isinstance(x, (bool, int, float, complex, str, bytes)):
        return repr(x)
    named = x if hasattr(x, "__qualname__") else type(x)
    return f"{named.__module__}.{named.__qualname__}"


def digest_of(tree: Any) -> str:
    """sha256 of the arrays of a tree, of those that this process can read as a whole."""
    found = hashlib.sha256()
    for x in jax.tree.leaves(tree):
        if not (x.is_fully_addressable or x.is_fully_replicated):
            continue
        found.update(np.ascontiguousarray(to_host(x)).view(np.uint8).data)
    return found.hexdigest()


def fingerprint(
    *,
    state: Any,
    rest: Any,
    key: jax.Array,
    batch_size: int | None,
    data: Any,
    fixed_data: bool,
    devices: int,
    program: Callable[[], str],
) -> dict[str, Any]:
    """See the module.

    Args:
        state: the step's arrays, an `InferenceState`.
        rest: its leaves that are not arrays.
        key: the run's key.
        batch_size: data points a step.
        data: the data, or one batch of an iterator.
        fixed_data: whether these are all the data.
        devices: on how many devices.
        program: the compiled program's text.
    """
    impl = jax.random.key_impl(key) if is_key(key) else "raw"
    return {
        "params": form(state.params),
        "memory": form(state.memory),
        "other leaves": form(rest),
        "key": f"{impl} {to_host(key).tolist()}",
        "batch size": batch_size,
        "data": form(data),
        "data's sha256": digest_of(data) if fixed_data else None,
        "float64": bool(jnp.result_type(float) == np.float64),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "devices": devices,
        "program": hashlib.sha256(program().encode()).hexdigest(),
    }


def differences(then: dict[str, Any], now: dict[str, Any], same_program: bool) -> list[str]:
    """What a checkpoint and this run differ in; empty if the one may continue the other."""
    found = []
    for name, mine in now.items():
        other = then.get(name)
        if name in (*PLACE, "program") or other == mine:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            found += [
                f"{name}{at}: {other.get(at, 'not there')} in the checkpoint, "
                f"{mine.get(at, 'not there')} now"
                for at in [*other, *(mine.keys() - other.keys())]
                if other.get(at) != mine.get(at)
            ]
        elif name.endswith("sha256"):
            found.append("the data: the same shapes, other values")
        else:
            found.append(f"{name}: {other} in the checkpoint, {mine} now")
    comparable = all(then.get(name) == now[name] for name in PLACE)
    if not found and same_program and comparable and then.get("program") != now["program"]:
        found.append("the program: another objective or optimizer, or other constants in them")
    return [*found[:SHOWN], *([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])]
