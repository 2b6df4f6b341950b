"""Which implementation runs: the first that does not refuse, or the one that was forced.

    with kernels.using("xla"): ...                      # every operation
    with kernels.using(kalman_filter="native"): ...     # one of them
    VARAX_KERNELS=xla python script.py                  # the whole process
    VARAX_KERNELS=kalman_filter=native,hmm_filter=xla python script.py

What is forced is a part of the key of JAX's caches, so a compiled function is compiled anew. For
the platforms that a forced implementation does not exist on, nothing changes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .. import _jax
from ..errors import ImplementationRefusedError, NoSuchImplementationError
from .implementation import Call, Implementation

VARIABLE = "VARAX_KERNELS"
ALL = "*"

Forced = tuple[tuple[str, str], ...]  # (operation or ALL, implementation); the last one counts

_context = _jax.user_context(())


@contextlib.contextmanager
def using(name: str | None = None, /, **by_operation: str) -> Iterator[None]:
    """Force implementations: `name` for all operations, `operation=name` for one.

    An operation that has no implementation of the name given for all keeps its own choice; a name
    that no operation has, or that one given by name has not, is an error.

    Raises:
        NoSuchImplementationError: no such operation or implementation.
        ImplementationRefusedError: on use, if the forced implementation does not serve the call.
    """
    given = ([(ALL, name)] if name is not None else []) + list(by_operation.items())
    with _context((*_context.value, *_known(given))):
        yield


def forced_for(operation: str) -> str | None:
    """The implementation that is forced for an operation here and now."""
    found = None
    for key, name in (*_environment(os.environ.get(VARIABLE, "")), *_context.value):
        if key == operation or (key == ALL and name in _names(operation)):
            found = name
    return found


def choose(
    operation: str,
    implementations: Sequence[Implementation],
    call: Call,
    forced: str | None,
    *,
    adjoint: bool = False,
) -> Implementation:
    """The implementation that serves the call.

    Raises:
        ImplementationRefusedError: none does.
    """
    candidates = on_platform(implementations, call.platform)
    of_name = [i for i in candidates if i.name == forced]
    if of_name and (not adjoint or any(i.adjoint is not None for i in of_name)):
        candidates = of_name
    else:
        forced = None
    reasons = [(i, i.reason_against(call, adjoint=adjoint)) for i in candidates]
    for implementation, reason in reasons:
        if reason is None:
            return implementation
    raise ImplementationRefusedError(
        f"{operation} has no implementation for this call"
        + (f" among those forced ({forced})." if forced else "."),
        expected="an implementation that serves it",
        got="; ".join(f"{i.name}: {reason}" for i, reason in reasons),
        fix=f"leave the choice open (no `using`, no {VARIABLE})" if forced else None,
    )


def on_platform(implementations: Sequence[Implementation], platform: str) -> list[Implementation]:
    """Those that exist on a platform."""
    return [i for i in implementations if not i.platforms or platform in i.platforms]


def _names(operation: str) -> list[str]:
    from .operation import OPERATIONS

    return [i.name for i in OPERATIONS[operation].implementations]


def _known(given: Sequence[tuple[str, str]]) -> Forced:
    from .operation import OPERATIONS

    everywhere = sorted({i.name for o in OPERATIONS.values() for i in o.implementations})
    for key, name in given:
        if key != ALL and key not in OPERATIONS:
            raise NoSuchImplementationError(
                f"There is no operation {key}.", expected=", ".join(sorted(OPERATIONS)), got=key
            )
        names = everywhere if key == ALL else _names(key)
        if name not in names:
            raise NoSuchImplementationError(
                "No operation has this implementation." if key == ALL else f"{key} has not this.",
                expected=", ".join(dict.fromkeys(names)),
                got=name,
                fix="varax.kernels.explain(f, *args) lists the implementations behind f",
            )
    return tuple(given)


@functools.lru_cache
def _environment(text: str) -> Forced:
    given: list[tuple[str, Any]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, name = item.rpartition("=")
        given.append((key or ALL, name))
    return _known(given)
