"""What sum- and max-product ask of a factor graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..errors import KernelDtypeError, KernelShapeError, KernelValueError


def checked_graph(name: str, graph: Any) -> Any:
    """The graph with one dtype, integer indices and a table for every factor."""
    unary = jnp.asarray(graph.unary)
    if unary.ndim != 2 or unary.shape[1] == 0:
        raise KernelShapeError(
            f"{name}: unary is a matrix, of at least one state.",
            expected="unary of shape [V, K], K > 0",
            got=unary.shape,
        )
    given = [(jnp.asarray(v), jnp.asarray(t)) for v, t in graph.factors]
    for what, x in [("unary", unary), *(("tables", t) for _, t in given)]:
        if jnp.issubdtype(x.dtype, jnp.complexfloating) or x.dtype == bool:
            raise KernelDtypeError(f"{name}: {what} must be real.", expected="floats", got=x.dtype)
    dtype = jnp.result_type(unary, *(t for _, t in given))
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    factors = tuple(_group(name, i, *group, unary.shape) for i, group in enumerate(given))
    factors = tuple((v, t.astype(dtype)) for v, t in factors)
    return dataclasses.replace(graph, unary=unary.astype(dtype), factors=factors)


def _group(name: str, i: int, variables: Any, tables: Any, shape: tuple[int, ...]) -> Any:
    count, states = shape
    where = f"factors[{i}]"
    if not jnp.issubdtype(variables.dtype, jnp.integer):
        raise KernelDtypeError(
            f"{name}: the variables of {where} are indices.", expected="int", got=variables.dtype
        )
    if variables.ndim != 2 or variables.shape[1] == 0:
        raise KernelShapeError(
            f"{name}: the variables of {where} are a matrix, a row for each factor.",
            expected="variables of shape [F, r], r > 0",
            got=variables.shape,
        )
    many, size = variables.shape
    table = (states,) * size
    if tables.shape not in (table, (many, *table)):
        raise KernelShapeError(
            f"{name}: the tables of {where} do not fit its variables and their states.",
            expected=f"tables of shape {[many, *table]}, or {list(table)} for all",
            got=tables.shape,
        )
    if not _jax.is_traced(variables):
        _check_indices(name, where, np.asarray(variables), count)
    return variables.astype(jnp.int32), jnp.broadcast_to(tables, (many, *table))


def _check_indices(name: str, where: str, variables: np.ndarray, count: int) -> None:
    wrong = (variables < 0) | (variables >= count)
    if wrong.any():
        f, p = (int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise KernelValueError(
            f"{name}: a variable's index in {where} is out of range.",
            expected=f"0 to {count - 1}",
            got=f"{variables[f, p]} in factor {f}, place {p}",
        )
    ordered = np.sort(variables, 1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if twice.any():
        f = int(np.argmax(twice))
        raise KernelValueError(
            f"{name}: a factor of {where} has one variable twice.",
            expected="different variables in a factor",
            got=f"{variables[f].tolist()} in factor {f}",
            fix="a smaller factor, with the diagonal of the table",
        )


def check_options(iterations: int, tolerance: float, damping: float) -> None:
    """Refuse options out of range."""
    if iterations < 0 or not tolerance >= 0:
        raise KernelValueError(
            "Belief propagation: iterations and tolerance are not negative.",
            expected="iterations >= 0, tolerance >= 0",
            got=f"{iterations}, {tolerance}",
        )
    if not 0 <= damping < 1:
        raise KernelValueError(
            "Belief propagation: damping is the part of the old message that is kept.",
            expected="0 <= damping < 1",
            got=damping,
        )
