"""Sum- and max-product on factor graphs of discrete variables.

    graph = FactorGraph(unary, ((pairs, tables), (triples, more_tables)))
    sum_product(graph).marginals         # exact on trees, loopy belief propagation elsewhere
    jax.grad(lambda g: sum_product(g).log_partition)(graph)

p(x) is proportional to exp(sum_v unary[v, x_v] + sum_f tables[f, x_f]). Messages are iterated to a
fixed point m = F(m), damped if asked, and derivatives are those of the fixed point, not of the
iterations: dm = (I - F')^{-1} dF, by the same damped iteration on the linear equation (or on its
transpose). The Bethe log partition function is stationary in the messages, so that its first
derivatives are the marginals (Yedidia, Freeman & Weiss 2005), without any equation to solve.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from .chain_steps import blocked_sum
from .graph_checks import check_options, checked_graph
from .graph_messages import (
    beliefs,
    exponentials,
    joint,
    messages_operation,
    products,
    solve_operation,
    sweep,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FactorGraph:
    """A factor graph, all of it arrays: another graph of the same sizes compiles nothing.

    Attributes:
        unary: log weights of the states of each variable, [V, K]; -inf for states that a
            variable does not have.
        factors: for each size r of factors, (variables [F, r], tables [F, K, ..., K]): which
            variables, and the log weights of their joint states. One table [K, ..., K] may serve
            all factors of a group.
    """

    unary: Any
    factors: tuple[tuple[Any, Any], ...] = ()

    def log_weight(self, states: Any) -> jax.Array:
        """The unnormalised log probability of an assignment: [V] -> []."""
        graph = checked_graph("FactorGraph.log_weight", self)
        states = jnp.asarray(states)
        total = blocked_sum(jnp.take_along_axis(graph.unary, states[:, None], 1)[:, 0])
        for variables, tables in graph.factors:
            index = (jnp.arange(len(variables)), *jnp.moveaxis(states[variables], 1, 0))
            total = total + blocked_sum(tables[index])
        return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumProduct:
    """What sum-product found.

    Attributes:
        marginals: p(x_v), [V, K].
        factor_marginals: p(x_f) of the factors of each group, [F, K, ..., K].
        log_partition: the Bethe log partition function, [].
        iterations: how many sweeps were made.
        residual: the largest change of a message in the last of them.
    """

    marginals: jax.Array
    factor_marginals: tuple[jax.Array, ...]
    log_partition: jax.Array
    iterations: jax.Array
    residual: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaxProduct:
    """What max-product found.

    Attributes:
        assignment: a state for each variable, [V] int32; of equals the first. Exact on trees where
            the most likely assignment is unique.
        log_weight: of that assignment, unnormalised, []; it has the assignment's derivative.
        max_marginals: max over all other variables of the probability, relative to the largest of
            each variable, [V, K]; has no derivative.
        iterations, residual: as for sum-product.
    """

    assignment: jax.Array
    log_weight: jax.Array
    max_marginals: jax.Array
    iterations: jax.Array
    residual: jax.Array


def sum_product(
    graph: FactorGraph, *, iterations: int = 1000, tolerance: float = 1e-6, damping: float = 0.0
) -> SumProduct:
    """Marginals and log partition function by belief propagation.

    Exact on trees, after as many sweeps as the tree's diameter. Under `jax.vmap` a batch of graphs
    is one call. Messages are kept as probabilities: what is below the
    smallest number of the dtype is 0.

    Args:
        graph: the factor graph.
        iterations: the most sweeps.
        tolerance: stop when no message (a probability) changed by more.
        damping: part of the old message in the new one, in [0, 1).

    Raises:
        KernelShapeError, KernelDtypeError: arrays that do not fit, or are not what they should be.
        KernelValueError: an index out of range or twice in a factor (checked where the values
            are known, not under jit), or options out of range.
    """
    graph, options = checked_graph("sum_product", graph), _options(iterations, tolerance, damping)
    dtype, graph = graph.unary.dtype, _widened(graph)
    messages, done, residual = _fixed_point(graph, options)
    nodes, tables = _marginals(graph, messages)
    found = SumProduct(nodes, tables, _log_partition(graph, messages), done, residual)
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == graph.unary.dtype else x, found)


def max_product(
    graph: FactorGraph, *, iterations: int = 1000, tolerance: float = 1e-6, damping: float = 0.0
) -> MaxProduct:
    """The most likely assignment by max-product belief propagation.

    Args, errors: as for `sum_product`.
    """
    graph, options = checked_graph("max_product", graph), _options(iterations, tolerance, damping)
    dtype, graph = graph.unary.dtype, _widened(graph)
    still = jax.tree.map(jax.lax.stop_gradient, graph)
    *messages, done, residual = messages_operation(*_flat(still), maximum=True, **options)
    logs, zeros, _ = products(still.unary, still.factors, messages)
    relative = beliefs(logs, zeros)[0]
    best = jnp.argmax(relative, 1).astype(jnp.int32)
    weight = graph.log_weight(best)
    return MaxProduct(best, weight.astype(dtype), relative.astype(dtype), done, residual)


def _options(iterations: int, tolerance: float, damping: float) -> dict[str, Any]:
    check_options(iterations, tolerance, damping)
    return {"iterations": iterations, "tolerance": float(tolerance), "damping": float(damping)}


def _widened(graph: FactorGraph) -> FactorGraph:
    dtype = graph.unary.dtype
    working = jnp.float32 if dtype.name in ("bfloat16", "float16") else dtype
    return jax.tree.map(lambda x: x.astype(working) if x.dtype == dtype else x, graph)


def _flat(graph: FactorGraph) -> list[Any]:
    return [graph.unary, *(x for group in graph.factors for x in group)]


def _fixed_point(graph: FactorGraph, options: dict[str, Any]) -> Any:
    """Messages with implicit derivatives, the number of sweeps, the last change."""
    still = jax.tree.map(jax.lax.stop_gradient, graph)
    *found, done, residual = messages_operation(*_flat(still), maximum=False, **options)

    def change(messages: Any) -> Any:
        new = sweep(graph.unary, graph.factors, messages, maximum=False)
        return [n - m for n, m in zip(new, messages, strict=True)]

    def solve(_: Any, b: Any, transposed: bool) -> Any:
        """x with matvec(x) = b, matvec = F' - I."""
        given = (*_flat(still), *found, *b)
        return list(solve_operation(*given, transposed=transposed, **options))

    def tangent_solve(matvec: Any, b: Any) -> Any:
        there, back = (functools.partial(solve, transposed=t) for t in (False, True))
        return jax.lax.custom_linear_solve(matvec, b, there, transpose_solve=back)

    if any(m.size for m in found):
        found = jax.lax.custom_root(change, found, lambda _, x: x, tangent_solve)
    return tuple(found), done, residual


def _marginals(graph: FactorGraph, messages: Any) -> tuple[Any, tuple[Any, ...]]:
    logs, zeros, sent = products(graph.unary, graph.factors, messages)
    nodes = beliefs(logs, zeros)[0]
    tables = [joint(t, n) for (_, t), n in zip(graph.factors, sent, strict=True)]
    return _over_sum(nodes, (1,)), tuple(_over_sum(t, tuple(range(1, t.ndim))) for t in tables)


def _over_sum(x: Any, axes: tuple[int, ...]) -> Any:
    total = x.sum(axes, keepdims=True)
    return x / jnp.where(total == 0, 1, total)


@jax.custom_jvp
def _log_partition(graph: FactorGraph, messages: Any) -> Any:
    """log Z = sum_v log Z_v + sum_f log Z_f - sum_(f, v) log Z_fv, for messages of any scale."""
    logs, zeros, sent = products(graph.unary, graph.factors, messages)
    nodes, top = beliefs(logs, zeros)
    total = blocked_sum(jnp.log(nodes.sum(-1)) + top)
    for (_, tables), m, n in zip(graph.factors, messages, sent, strict=True):
        axes = tuple(range(1, tables.ndim))
        _, shift = exponentials(tables, axes)
        total = total + blocked_sum(jnp.log(joint(tables, n).sum(axes)) + shift.reshape(-1))
        # a message and its counterpart that have no state in common: the factor says -inf already
        edge = (m * n).sum(-1)
        total = total - blocked_sum(jnp.log(jnp.where(edge == 0, 1, edge)).reshape(-1))
    return total


@_log_partition.defjvp
def _log_partition_jvp(primals: Any, tangents: Any) -> Any:
    (graph, messages), (moved, _) = primals, tangents
    nodes, tables = _marginals(graph, messages)
    slope = _expected(nodes, moved.unary)
    for p, (_, tangent) in zip(tables, moved.factors, strict=True):
        slope = slope + _expected(p, tangent)
    return _log_partition(graph, messages), slope


def _expected(p: Any, x: Any) -> Any:
    return blocked_sum((p * x).reshape(-1))
