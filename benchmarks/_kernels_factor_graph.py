"""Belief propagation on an Ising grid: against a stencil of jnp.roll-like shifts, and PGMax."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels.mp import FactorGraph, max_product, sum_product

SWEEPS = 200


def grid(n: int) -> np.ndarray:
    """The edges of an n x n grid."""
    index = np.arange(n * n).reshape(n, n)
    right = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1)
    return np.concatenate([right, np.stack([index[:-1].ravel(), index[1:].ravel()], 1)])


def stencil(unary: Any, coupling: Any, maximum: bool = False) -> Any:
    """Messages as log odds on the grid, four shifted arrays: what one writes for this graph alone.

    exp(coupling s_i s_j): a message is 2 atanh(tanh(coupling) tanh(cavity / 2)), and of maxima
    |cavity / 2 + coupling| - |cavity / 2 - coupling|.
    """
    n = int(unary.shape[0] ** 0.5)
    field = (unary[:, 1] - unary[:, 0]).reshape(n, n)

    def through(cavity: Any) -> Any:
        if maximum:
            return abs(cavity / 2 + coupling) - abs(cavity / 2 - coupling)
        return 2 * jnp.arctanh(jnp.tanh(coupling) * jnp.tanh(cavity / 2))

    def sweep(_: Any, messages: Any) -> Any:
        left, right, up, down = messages  # from the left neighbour, ...
        belief = field + left + right + up + down
        return (
            jnp.pad(through(belief - right)[:, :-1], ((0, 0), (1, 0))),
            jnp.pad(through(belief - left)[:, 1:], ((0, 0), (0, 1))),
            jnp.pad(through(belief - down)[:-1], ((1, 0), (0, 0))),
            jnp.pad(through(belief - up)[1:], ((0, 1), (0, 0))),
        )

    messages = jax.lax.fori_loop(0, SWEEPS, sweep, (jnp.zeros_like(field),) * 4)
    odds = (field + sum(messages)).reshape(-1)
    both = jnp.stack([-odds, odds], 1)
    return jnp.exp(jnp.minimum(both, 0)) if maximum else jax.nn.sigmoid(both)


def _restore_what_pgmax_uses() -> None:
    """Names that JAX has dropped since PGMax 0.6."""
    for name in ("tree_map", "tree_leaves"):
        if not hasattr(jax, name):
            setattr(jax, name, getattr(jax.tree_util, name))
    if not hasattr(jax.lib, "xla_bridge"):
        backend = types.SimpleNamespace(platform=jax.default_backend())
        jax.lib.xla_bridge = types.SimpleNamespace(get_backend=lambda: backend)


def _pgmax(n: int, coupling: float, maximum: bool) -> Callable[[Any], Any] | None:
    """PGMax's loopy belief propagation; None where it is not installed, said where it fails."""
    if importlib.util.find_spec("pgmax") is None:
        return None
    try:
        _restore_what_pgmax_uses()
        from pgmax import fgraph, fgroup, infer, vgroup

        variables = vgroup.NDVarArray(num_states=2, shape=(n, n))
        graph = fgraph.FactorGraph(variable_groups=variables)
        table = coupling * np.array([[1.0, -1.0], [-1.0, 1.0]])
        pairs = [[variables[i // n, i % n], variables[j // n, j % n]] for i, j in grid(n)]
        graph.add_factors(
            fgroup.PairwiseFactorGroup(variables_for_factors=pairs, log_potential_matrix=table)
        )
        inferer = infer.build_inferer(graph.bp_state, backend="bp")

        def run(unary: Any) -> Any:
            arrays = inferer.init(evidence_updates={variables: unary.reshape(n, n, 2)})
            temperature = 0.0 if maximum else 1.0
            arrays = inferer.run(arrays, num_iters=SWEEPS, damping=0.0, temperature=temperature)
            beliefs = inferer.get_beliefs(arrays)
            if not maximum:
                beliefs = infer.get_marginals(beliefs)
            found = next(iter(beliefs.values())).reshape(n * n, 2)
            return jnp.exp(found - found.max(1, keepdims=True)) if maximum else found

        run(jnp.zeros((n * n, 2)))
    except Exception as error:  # its internals on a newer JAX: a row less, and a line that says so
        print(f"  PGMax is left out: {type(error).__name__}: {error}", flush=True)
        return None
    return run


def ising_entry(n: int, *, maximum: bool = False) -> Entry:
    """Marginals after 200 sweeps of an n x n grid."""
    coupling = 0.3
    pairs = grid(n)

    def varax(unary: Any) -> Any:
        table = coupling * jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        graph = FactorGraph(unary, ((pairs, table),))
        if maximum:
            return max_product(graph, iterations=SWEEPS, tolerance=0.0).max_marginals
        return sum_product(graph, iterations=SWEEPS, tolerance=0.0).marginals

    def make() -> dict[str, Callable[[], Any]]:
        rng = np.random.default_rng(0)
        unary = jnp.asarray(rng.standard_normal((n * n, 2)), jnp.float32)
        found: dict[str, Any] = {"varax": varax}
        found["plain XLA"] = lambda unary: stencil(unary, coupling, maximum)
        if (peer := _pgmax(n, coupling, maximum)) is not None:
            found["PGMax"] = peer
        return {name: _call(jax.jit(f), unary) for name, f in found.items()}

    what = "max-product" if maximum else "sum-product"
    updates = SWEEPS * 2 * len(pairs)
    return Entry("factor_graph", what, f"{n}x{n} K=2", make, flops=20.0 * updates)


def gradient_entry(n: int) -> Entry:
    """A sum of squares of the marginals, and its gradient in all unaries and the coupling.

    varax differentiates the fixed point; the stencil goes back through its sweeps.
    """
    pairs = grid(n)

    def varax(unary: Any, coupling: Any) -> Any:
        table = coupling * jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        return sum_product(FactorGraph(unary, ((pairs, table),)), iterations=SWEEPS).marginals

    def of_squares(f: Any) -> Any:
        return jax.value_and_grad(lambda *at: (f(*at) ** 2).sum(), (0, 1))

    def make() -> dict[str, Callable[[], Any]]:
        unary = np.random.default_rng(0).standard_normal((n * n, 2))
        given = jnp.asarray(unary, jnp.float32), jnp.float32(0.3)
        forms = {"varax": varax, "plain XLA": stencil}
        return {name: _call(jax.jit(of_squares(f)), *given) for name, f in forms.items()}

    return Entry("factor_graph", "sum-product, value and gradient", f"{n}x{n} K=2", make)


def _call(f: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(f(*given))


def entries(quick: bool) -> list[Entry]:
    """All of them, or short ones."""
    n = 30 if quick else 100
    return [ising_entry(n), gradient_entry(n), ising_entry(n, maximum=True)]
