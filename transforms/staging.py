"""Staging: run a program once and keep it as a jaxpr, random choices included."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Collection
from typing import Any

import jax

from ..kernels.source import is_user_file
from . import _jax
from .errors import TracedBranchError, show_address
from .site import Address, site_p

Program = Callable[[], Any]  # no arguments: what it needs is in its closure


@dataclasses.dataclass(frozen=True)
class Staged:
    """A program as equations, with what its arrays are put back into."""

    jaxpr: Any
    consts: list[Any]
    tree: Any
    statics: list[Any]  # non-array outputs, with None in the place of each array

    def rebuild(self, outs: list[Any]) -> Any:
        """The program's value from the jaxpr's outputs."""
        left = iter(outs)
        leaves = [next(left) if s is _HOLE else s for s in self.statics]
        return jax.tree.unflatten(self.tree, leaves)


_HOLE = object()
_forward = jax.make_user_context(frozenset())  # `jax.jit` traces anew where it is another


def drawn_forward() -> frozenset[Address]:
    """The addresses at which the program that is being staged draws noise, see `pushforward`."""
    return _forward.value


def stage(program: Program, forward: Collection[Address] = ()) -> Staged:
    """Trace `program()` to a jaxpr. Its closure may hold tracers of any outer transformation.

    Args:
        program: a program.
        forward: addresses of draws that are computed from their noise (`pushforward.py`). Programs
            that are staged inside have none.

    Raises:
        TracedBranchError: Python control flow (`if`, `int()`, `range()`) needed a traced value.
    """
    tree, statics = None, []

    def flat() -> list[Any]:
        nonlocal tree, statics
        try:
            with _forward(frozenset(forward)):
                leaves, tree = jax.tree.flatten(program())
        except _jax.CONCRETIZATION_ERRORS as error:  # here, where JAX has not cut the traceback
            raise _traced_branch(error) from error
        except TypeError as error:  # a traced shape, a traced number in an f-string
            if "concrete" in str(error) or "__format__" in str(error):
                raise _traced_branch(error) from error
            raise
        arrays = [_is_arraylike(x) for x in leaves]
        statics = [_HOLE if a else x for a, x in zip(arrays, leaves, strict=True)]
        return [x for a, x in zip(arrays, leaves, strict=True) if a]

    jaxpr, consts = _jax.opened(jax.make_jaxpr(flat)())
    return Staged(jaxpr, consts, tree, statics)


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, (bool, int, float, complex)) or hasattr(x, "dtype")


def _traced_branch(error: Exception) -> TracedBranchError:
    tracer, line = None, "unknown line"
    for frame, lineno in traceback.walk_tb(error.__traceback__):
        for name in ("self", "tracer", "arr", "x"):
            candidate = frame.f_locals.get(name)
            tracer = candidate if _jax.is_traced(candidate) else tracer
        code = frame.f_code
        if is_user_file(code.co_filename):
            line = f"{code.co_filename}:{lineno} ({code.co_name})"
    behind = [params["site"].address for params in _jax.params_behind(tracer, site_p)]
    shown = ", ".join(show_address(a) for a in dict.fromkeys(behind))
    return TracedBranchError(
        "Python control flow needs the value of a traced array, which is not known while the "
        "program is staged.",
        address=shown or None,
        expected="a Python value, or a shape",
        got=f"an array of shape {getattr(tracer, 'shape', '?')} "
        + (f"computed from the random choice {shown}" if shown else "known only at run time"),
        where=line,
        fix="use jax.lax.cond or jnp.where for `if`, jax.lax.scan or fori_loop for loops, "
        "or pass the value as a Python number",
    )
