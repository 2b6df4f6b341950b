"""Pairwise factor graphs: the cases that the native loop is checked on."""

import functools

import jax
import numpy as np
from kernel_checks import Case

from varax.kernels.mp.graph_messages import messages_operation, solve_operation


def grid(n):
    """The edges of an n x n grid."""
    index = np.arange(n * n).reshape(n, n)
    right = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1)
    return np.concatenate([right, np.stack([index[:-1].ravel(), index[1:].ravel()], 1)])


def star(n):
    return np.stack([np.full(n - 1, 2), np.delete(np.arange(n), 2)], 1)


def graph(variables, states, pairs, *, scale=1.0, batch=(), zeros=False):
    def arrays(rng):
        unary = scale * rng.standard_normal((*batch, variables, states))
        tables = scale * rng.standard_normal((*batch, len(pairs), states, states))
        if zeros:
            tables[..., 0, -1] = -np.inf
            unary[..., ::3, -1] = -np.inf
        return unary, pairs.astype(np.int32), tables

    return arrays


def case(name, arrays, *, axes=None, iterations=7, tolerance=0.0, damping=0.0, maximum=False):
    run = functools.partial(
        messages_operation,
        iterations=iterations,
        tolerance=tolerance,
        damping=damping,
        maximum=maximum,
    )
    # The last change of a message is a difference of rounded numbers: not compared.
    f = lambda *operands: run(*operands)[:2]  # noqa: E731
    return Case(name, "factor_graph", f if axes is None else jax.vmap(f, axes), arrays)


def solve_case(name, of_graph, *, axes=None, transposed=False, damping=0.0, gone=False):
    """Linear equations at any messages, also such as exclude a state."""
    run = functools.partial(
        solve_operation, iterations=7, tolerance=0.0, damping=damping, transposed=transposed
    )

    def arrays(rng):
        unary, pairs, tables = of_graph(rng)
        front, states = (*tables.shape[:-2], 2), unary.shape[-1]
        messages = rng.dirichlet(np.ones(states), size=front)
        if gone:
            messages[..., ::2, 0, 0] = 0
        return unary, pairs, tables, messages, rng.standard_normal((*front, states))

    return Case(name, "factor_graph_solve", run if axes is None else jax.vmap(run, axes), arrays)


NONE = np.zeros((0, 2))
CASES = [
    case("grid", graph(36, 2, grid(6))),
    case("grid-max", graph(36, 3, grid(6)), maximum=True),
    case("grid-damped", graph(25, 5, grid(5)), damping=0.3),
    case("grid-zeros", graph(36, 4, grid(6), zeros=True)),
    case("grid-steep", graph(16, 2, grid(4), scale=15.0)),
    case("star", graph(12, 3, star(12))),
    case("one-state", graph(9, 1, grid(3))),
    case("none", graph(3, 2, NONE)),
    case("no-sweeps", graph(9, 2, grid(3)), iterations=0),
    case("vmap", graph(9, 2, grid(3), batch=(5,)), axes=(0, None, 0)),
]

SOLVE_CASES = [
    solve_case("grid", graph(36, 2, grid(6))),
    solve_case("grid-back", graph(36, 3, grid(6)), transposed=True),
    solve_case("grid-damped", graph(25, 5, grid(5)), damping=0.3),
    solve_case("grid-zeros", graph(36, 4, grid(6), zeros=True), gone=True),
    solve_case("grid-zeros-back", graph(36, 4, grid(6), zeros=True), gone=True, transposed=True),
    solve_case("star-back", graph(12, 3, star(12)), transposed=True),
    solve_case("one-state", graph(9, 1, grid(3))),
    *(
        solve_case(
            f"vmap-{back}",
            graph(9, 2, grid(3), batch=(5,)),
            axes=(0, None, 0, 0, 0),
            transposed=back,
        )
        for back in (False, True)
    ),
]
