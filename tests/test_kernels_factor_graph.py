"""Factor graphs: exact on trees, derivatives of fixed points, the native loop, what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pytest
from kernel_cases_factor_graph import CASES, SOLVE_CASES, grid
from scipy.special import logsumexp

from varax import kernels
from varax.kernels import native
from varax.kernels.errors import KernelDtypeError, KernelShapeError, KernelValueError
from varax.kernels.mp import FactorGraph, max_product, sum_product

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(native.missing() is not None, reason="no native library")
)
SLOWLY = [NATIVE, pytest.param("xla", marks=pytest.mark.slow)]


@pytest.mark.thin(6)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("implementation", [NATIVE])
@pytest.mark.parametrize("case", CASES + SOLVE_CASES, ids=str)
def test_messages_and_their_equations(case, implementation, dtype):
    with jax.enable_x64(True):
        kernel_checks.check(case, implementation, dtype)


def tree(rng, states=3):
    """A tree of five variables with a forbidden pair and a state that a variable lacks."""
    unary = rng.standard_normal((5, states))
    tables = rng.standard_normal((4, states, states))
    unary[2, 1] = tables[1, 0, 0] = -np.inf
    return FactorGraph(unary, ((np.array([[0, 1], [1, 2], [3, 1], [4, 3]]), tables),))


def triples(rng):
    """A tree with factors over three variables and over one."""
    return FactorGraph(
        rng.standard_normal((5, 2)),
        (
            (np.array([[0, 1, 2], [2, 3, 4]]), rng.standard_normal((2, 2, 2))),
            (np.array([[1], [3]]), rng.standard_normal((2, 2))),
        ),
    )


def enumerated(graph):
    """Every assignment, and the logarithm of its weight."""
    variables, states = graph.unary.shape
    all_of_them = np.array(list(itertools.product(range(states), repeat=variables)))
    weights = np.sum([graph.unary[v, all_of_them[:, v]] for v in range(variables)], 0)
    for scope, tables in graph.factors:
        for f, variables_of_f in enumerate(scope):
            table = tables[f] if tables.ndim > scope.shape[1] else tables
            weights = weights + table[tuple(all_of_them[:, variables_of_f].T)]
    return all_of_them, weights


@pytest.mark.parametrize(
    ("make", "implementation"),
    [(tree, "xla"), pytest.param(tree, *NATIVE.values, marks=NATIVE.marks), (triples, "xla")],
)
def test_exact_on_trees(make, implementation):
    graph = make(np.random.default_rng(0))
    x, weights = enumerated(graph)
    p = np.exp(weights - logsumexp(weights))
    one_hot = np.eye(graph.unary.shape[1])[x]  # [assignments, V, K]
    with jax.enable_x64(True), kernels.using(factor_graph=implementation):
        found = jax.jit(sum_product)(graph)
        np.testing.assert_allclose(found.log_partition, logsumexp(weights), rtol=1e-12)
        np.testing.assert_allclose(found.marginals, np.tensordot(p, one_hot, 1), atol=1e-12)
        scope = graph.factors[0][0][0]
        table = np.zeros(found.factor_marginals[0].shape[1:])
        np.add.at(table, tuple(x[:, scope].T), p)
        np.testing.assert_allclose(found.factor_marginals[0][0], table, atol=1e-12)
        assert found.residual <= 1e-6
        best = jax.jit(max_product)(graph)
        np.testing.assert_array_equal(best.assignment, x[weights.argmax()])
        np.testing.assert_allclose(best.log_weight, weights.max(), rtol=1e-12)
        np.testing.assert_allclose(graph.log_weight(x[5]), weights[5], rtol=1e-12)


@pytest.mark.parametrize("implementation", SLOWLY)
def test_derivatives_on_a_tree(implementation):
    """log Z: first derivatives are marginals, second ones covariances."""
    graph = tree(np.random.default_rng(1), 2)
    x, weights = enumerated(graph)
    p = np.exp(weights - logsumexp(weights))
    one_hot = np.eye(2)[x].reshape(len(x), -1)
    mean = p @ one_hot
    covariance = (one_hot * p[:, None]).T @ one_hot - np.outer(mean, mean)

    def log_partition(unary):
        return sum_product(FactorGraph(unary, graph.factors), tolerance=1e-13).log_partition

    both = {"factor_graph": implementation, "factor_graph_solve": implementation}
    with jax.enable_x64(True), kernels.using(**both):
        unary = jnp.asarray(graph.unary)
        along = jnp.asarray(np.random.default_rng(2).standard_normal(unary.shape))
        slope = jax.jit(lambda x, v: jax.jvp(jax.grad(log_partition), (x,), (v,)))
        first, second = slope(unary, along)
        np.testing.assert_allclose(first.ravel(), mean, atol=1e-12)
        np.testing.assert_allclose(second.ravel(), covariance @ along.ravel(), atol=1e-10)


@pytest.mark.parametrize("implementation", SLOWLY)
def test_implicit_derivatives_on_a_loop(implementation):
    rng = np.random.default_rng(2)
    pairs = grid(3)
    unary, tables = rng.standard_normal((9, 2)), 0.5 * rng.standard_normal((12, 2, 2))
    along = rng.standard_normal((12, 2, 2))

    @jax.jit
    def f(tables):
        graph = FactorGraph(unary, ((pairs, tables),))
        return (sum_product(graph, tolerance=1e-14, damping=0.2).marginals ** 2).sum()

    both = {"factor_graph": implementation, "factor_graph_solve": implementation}
    with jax.enable_x64(True), kernels.using(**both):
        slope = (jax.jit(jax.grad(f))(jnp.asarray(tables)) * along).sum()
        h = 1e-5
        finite = (f(tables + h * along) - f(tables - h * along)) / (2 * h)
        np.testing.assert_allclose(slope, finite, rtol=1e-7)
        forward = jax.jit(lambda t, v: jax.jvp(f, (t,), (v,))[1])(tables, along)
        np.testing.assert_allclose(forward, slope, rtol=1e-10)


def test_damping_finds_the_same_fixed_point():
    rng = np.random.default_rng(3)
    graph = FactorGraph(rng.standard_normal((16, 2)), ((grid(4), 0.3 * np.eye(2)),))
    plain = jax.jit(sum_product)(graph)
    damped = jax.jit(functools.partial(sum_product, damping=0.5))(graph)
    np.testing.assert_allclose(plain.marginals, damped.marginals, atol=1e-5)
    assert damped.iterations > plain.iterations


def test_a_batch_of_graphs():
    rng = np.random.default_rng(4)
    unary = jnp.asarray(rng.standard_normal((3, 9, 2)), jnp.float32)
    pairs, tables = grid(3), jnp.asarray(rng.standard_normal((12, 2, 2)), jnp.float32)

    @jax.jit
    def f(unary, tables):
        return sum_product(FactorGraph(unary, ((pairs, tables),)), damping=0.3).marginals

    batch = jax.jit(jax.vmap(f, (0, None)))(unary, tables)
    for b in range(3):
        np.testing.assert_allclose(batch[b], f(unary[b], tables), atol=2e-6)


def test_another_graph_compiles_nothing():
    traced = []

    @jax.jit
    def f(graph):
        traced.append(graph)
        return sum_product(graph, damping=0.3).marginals

    for seed in range(2):
        pairs = np.random.default_rng(seed).permutation(grid(3))
        f(FactorGraph(jnp.zeros((9, 2)), ((jnp.asarray(pairs), jnp.ones((12, 2, 2))),)))
    assert len(traced) == 1


@pytest.mark.parametrize("implementation", ["xla", NATIVE])
def test_nan_and_narrow_floats(implementation):
    graph = FactorGraph(jnp.zeros((4, 2)).at[0, 0].set(jnp.nan), ((grid(2), jnp.eye(2)),))
    with kernels.using(factor_graph=implementation):
        found = jax.jit(functools.partial(sum_product, iterations=5))(graph)
        assert jnp.isnan(found.log_partition)
        for at in ((0, 0), (1, 0), (0, 1)):
            tables = jnp.ones((4, 2, 2)).at[2].set(jnp.eye(2).at[at].set(jnp.nan))
            bad = FactorGraph(jnp.zeros((4, 2)), ((grid(2), tables),))
            for operation in (sum_product, max_product):
                found = jax.jit(functools.partial(operation, iterations=5, damping=0.1))(bad)
                assert jnp.isnan(found.residual)
        narrow = FactorGraph(
            jnp.ones((4, 2), jnp.bfloat16), ((grid(2), jnp.eye(2, dtype=jnp.bfloat16)),)
        )
        assert jax.eval_shape(sum_product, narrow).marginals.dtype == jnp.bfloat16


@pytest.mark.skipif(native.missing() is not None, reason="no native library")
def test_an_index_out_of_range_under_jit_is_an_error():
    f = jax.jit(
        lambda pairs: sum_product(FactorGraph(jnp.zeros((3, 2)), ((pairs, jnp.eye(2)),))).marginals
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="index is out of range"):
        jax.block_until_ready(f(jnp.array([[0, 3]])))


UNARY, PAIRS, TABLES = np.zeros((4, 2)), grid(2), np.zeros((4, 2, 2))
REFUSED = [
    (KernelShapeError, r"unary of shape \[V, K\]", FactorGraph(np.zeros(3))),
    (KernelShapeError, "at least one state", FactorGraph(np.zeros((3, 0)))),
    (KernelShapeError, "a row for each factor", FactorGraph(UNARY, ((PAIRS[0], TABLES),))),
    (
        KernelShapeError,
        r"tables of shape \[4, 2, 2\], or \[2, 2\]",
        FactorGraph(UNARY, ((PAIRS, TABLES[:3]),)),
    ),
    (
        KernelValueError,
        r"out of range[\s\S]*0 to 3[\s\S]*9 in factor 0",
        FactorGraph(UNARY, ((PAIRS + 9, TABLES),)),
    ),
    (KernelValueError, "one variable twice", FactorGraph(UNARY, ((0 * PAIRS, TABLES),))),
    (KernelDtypeError, "are indices", FactorGraph(UNARY, ((PAIRS * 1.0, TABLES),))),
    (KernelDtypeError, "unary must be real", FactorGraph(UNARY * 1j)),
]


@pytest.mark.parametrize(("error", "match", "graph"), REFUSED)
@pytest.mark.parametrize("function", [sum_product, max_product])
def test_refused(function, error, match, graph):
    with pytest.raises(error, match=match):
        function(graph)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"damping": 1.0}, "damping"),
        ({"iterations": -1}, "not negative"),
        ({"tolerance": -1.0}, "not negative"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(KernelValueError, match=match):
        sum_product(FactorGraph(UNARY, ((PAIRS, TABLES),)), **options)


def test_general_tables_are_served_by_xla():
    text = str(
        kernels.explain(
            lambda u: sum_product(dataclasses.replace(triples(np.random.default_rng(0)), unary=u)),
            jnp.zeros((5, 2)),
        )
    )
    assert "not native: has pairwise factors only" in text
