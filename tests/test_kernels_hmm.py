"""Discrete chains: against all paths, against the definition, and what they refuse."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pytest
from kernel_cases_hmm import (
    CASES,
    IN_PARALLEL,
    SMOOTHER_CASES,
    SMOOTHER_IN_PARALLEL,
    VITERBI_CASES,
    chain,
)
from scipy.special import logsumexp, ndtri

from varax import kernels
from varax.kernels import native
from varax.kernels.errors import KernelDtypeError, KernelShapeError, KernelValueError
from varax.kernels.mp import hmm_filter, hmm_sample, hmm_smoother, hmm_viterbi
from varax.kernels.mp.chain_filter import filter_definition, filter_operation

FALSE_ALARM = 1e-6

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(native.missing() is not None, reason="no native library")
)
EVERY = ["xla", "parallel", NATIVE]


def operands(steps=6, states=3, dtype=jnp.float64, **options):
    arrays = chain(steps, states, **options)(np.random.default_rng(7))
    return [jnp.asarray(a, dtype) for a in arrays]


# Every case in one precision and, quickly, half of them in the other one too.
TRIED = [
    *((case, np.float32) for case in CASES + SMOOTHER_CASES),
    *((case, np.float64) for case in CASES[1::2] + SMOOTHER_CASES[::2]),
]


@pytest.mark.thin(16)
@pytest.mark.parametrize("implementation", [NATIVE])
@pytest.mark.parametrize(("case", "dtype"), TRIED, ids=str)
def test_filter_and_smoother(case, implementation, dtype):
    with jax.enable_x64(True):
        kernel_checks.check(case, implementation, dtype)


@pytest.mark.thin(8)
@pytest.mark.parametrize("case", IN_PARALLEL + SMOOTHER_IN_PARALLEL, ids=str)
def test_filter_and_smoother_in_parallel(case):
    with jax.enable_x64(True):
        kernel_checks.check(case, "parallel", np.float32)


@pytest.mark.thin(7)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("implementation", [NATIVE])
@pytest.mark.parametrize("case", VITERBI_CASES, ids=str)
def test_viterbi(case, implementation, dtype):
    with jax.enable_x64(True):
        kernel_checks.check(case, implementation, dtype)
        (path, *_), _ = kernel_checks.evaluated(case, implementation, dtype)
        (same, *_), _ = kernel_checks.evaluated(case, "xla", dtype)
        np.testing.assert_array_equal(path, same)


def enumerated(initial, transitions, logs):
    """Every path and its log probability."""
    steps, states = logs.shape
    paths = np.array(list(itertools.product(range(states), repeat=steps)))
    with np.errstate(divide="ignore"):
        score = np.log(initial)[paths[:, 0]] + sum(logs[n, paths[:, n]] for n in range(steps))
        for n in range(1, steps):
            a = transitions if transitions.ndim == 2 else transitions[n - 1]
            score = score + np.log(a)[paths[:, n - 1], paths[:, n]]
    return paths, score


@pytest.mark.thin(2)
@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("varying", [False, True])
def test_all_paths(implementation, varying):
    using = kernels.using(hmm_filter=implementation, hmm_smoother=implementation)
    with jax.enable_x64(True), using:
        initial, transitions, logs = operands(varying=varying, sparse=True)
        given = [np.asarray(x) for x in (initial, transitions, logs)]
        paths, score = enumerated(*given)
        weights = np.exp(score - logsumexp(score))
        evidence, smoothed, counts = hmm_smoother(initial, transitions, logs)
        np.testing.assert_allclose(evidence, logsumexp(score), rtol=1e-12)
        same, filtered = hmm_filter(initial, transitions, logs)
        np.testing.assert_allclose(same, evidence)
        for n in range(6):
            truth = np.bincount(paths[:, n], weights, minlength=3)
            np.testing.assert_allclose(smoothed[n], truth, atol=1e-12)
            so_far, score_so_far = enumerated(*given[:2], given[2][: n + 1])
            weights_so_far = np.exp(score_so_far - logsumexp(score_so_far))
            truth = np.bincount(so_far[:, n], weights_so_far, minlength=3)
            np.testing.assert_allclose(filtered[n], truth, atol=1e-12)
        pairs = np.zeros((5, 3, 3))
        for n in range(5):
            np.add.at(pairs[n], (paths[:, n], paths[:, n + 1]), weights)
        np.testing.assert_allclose(counts, pairs if varying else pairs.sum(0), atol=1e-12)
        path, best = hmm_viterbi(initial, transitions, logs)
        np.testing.assert_array_equal(path, paths[score.argmax()])
        np.testing.assert_allclose(best, score.max(), rtol=1e-12)


@pytest.mark.parametrize("implementation", ["xla", NATIVE])
def test_ties_go_to_small_states_from_the_end(implementation):
    with kernels.using(hmm_viterbi=implementation):
        path, score = hmm_viterbi(jnp.ones(2) / 2, jnp.ones((2, 2)) / 2, jnp.zeros((3, 2)))
        np.testing.assert_array_equal(path, [0, 0, 0])
        np.testing.assert_allclose(score, 3 * np.log(0.5), rtol=1e-6)
        logs = jnp.array([[0.0, 1.0], [1.0, 0.0]])  # 0-0, 1-0 and 1-1: 1, 2, 1; and 1-0 wins
        np.testing.assert_array_equal(
            hmm_viterbi(jnp.ones(2) / 2, jnp.ones((2, 2)) / 2, logs)[0], [1, 0]
        )


@pytest.mark.parametrize("implementation", ["xla", NATIVE])
def test_viterbi_derivative_is_that_of_the_path(implementation):
    with jax.enable_x64(True), kernels.using(hmm_viterbi=implementation):
        initial, transitions, logs = operands()
        slopes = jax.grad(lambda *a: hmm_viterbi(*a)[1], (1, 2))(initial, transitions, logs)
        path = np.asarray(hmm_viterbi(initial, transitions, logs)[0])
        counts = np.zeros((3, 3))
        np.add.at(counts, (path[:-1], path[1:]), 1)
        np.testing.assert_allclose(slopes[0] * transitions, counts, atol=1e-12)
        np.testing.assert_array_equal(slopes[1], np.eye(3)[path])


def frequencies(draw):
    """Whether draws of whole paths have the posterior's frequencies (n = 50,000)."""
    initial, transitions, logs = operands(4, 2, jnp.float32, sparse=False, scale=1.0)
    _, score = enumerated(*(np.asarray(x, np.float64) for x in (initial, transitions, logs)))
    exact = np.exp(score - logsumexp(score))
    n = 50_000
    drawn = np.asarray(draw(jax.random.key(3), initial, transitions, logs, shape=(n,)))
    found = np.bincount(drawn @ (2 ** np.arange(3, -1, -1)), minlength=16) / n
    z = (found - exact) / np.sqrt(exact * (1 - exact) / n)
    return (abs(z) < -ndtri(FALSE_ALARM / (2 * len(exact)))).all()


@pytest.mark.parametrize("implementation", ["xla", NATIVE])
def test_sample(implementation):
    def from_marginals(key, *chain, shape):
        smoothed = hmm_smoother(*chain)[1]
        return jax.random.categorical(key, jnp.log(smoothed), shape=(*shape, 4))

    with kernels.using(hmm_sample=implementation):
        assert frequencies(hmm_sample)
    assert not frequencies(from_marginals)  # right step by step, wrong as paths


@pytest.mark.skipif(native.missing() is not None, reason="no native library")
@pytest.mark.parametrize("varying", [False, True])
def test_samples_are_those_of_the_definition(varying):
    with jax.enable_x64(True):
        given = operands(30, 5, varying=varying, sparse=True)
        found = {}
        for name in ("xla", "native"):
            with kernels.using(hmm_sample=name):
                found[name] = hmm_sample(jax.random.key(0), *given, shape=(4, 3))
        assert found["xla"].shape == (4, 3, 30) and found["xla"].dtype == jnp.int32
        np.testing.assert_array_equal(found["xla"], found["native"])
        batch = jax.vmap(lambda key: hmm_sample(key, *given))(
            jax.random.split(jax.random.key(1), 5)
        )
        assert batch.shape == (5, 30)


@pytest.mark.parametrize(
    "implementation", [NATIVE, pytest.param("parallel", marks=pytest.mark.slow)]
)
def test_second_derivatives_are_the_definitions(implementation):
    with jax.enable_x64(True):
        given = operands(5, 2)
        along = operands(5, 2, scale=1.0)

        @functools.partial(jax.jit, static_argnums=0)
        def second(f, *at):
            slope = jax.grad(lambda *at: f(*at)[0], (1, 2))
            return jax.jvp(slope, at, tuple(along))[1]

        with kernels.using(hmm_filter=implementation):
            found = second(filter_operation, *given)
        for a, b in zip(found, second(filter_definition, *given), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.thin(2)
@pytest.mark.parametrize("implementation", EVERY)
def test_impossible_data(implementation):
    with kernels.using(hmm_filter=implementation):
        given = operands(9, 4, jnp.float32, impossible=True)
        evidence, filtered = hmm_filter(*given)
        assert evidence == -jnp.inf
        assert (filtered[4:] == 0).all() and (filtered[:4].sum(1) > 0.99).all()
        slopes = jax.grad(lambda *a: hmm_filter(*a)[0], (0, 1, 2))(*given)
        assert all(jnp.isfinite(s).all() for s in slopes)
    with kernels.using(hmm_smoother=implementation):
        evidence, smoothed, _ = hmm_smoother(*given)
        assert evidence == -jnp.inf and (smoothed[4:] == 0).all()
        slopes = jax.grad(lambda *a: sum(x.sum() for x in hmm_smoother(*a)[1:]), (0, 1, 2))(*given)
        assert all(jnp.isfinite(s).all() for s in slopes)


@pytest.mark.thin(2)
@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_propagates(implementation, which):
    given = operands(9, 4, jnp.float32)
    given[which] = given[which].at[(0,) * given[which].ndim].set(jnp.nan)
    with kernels.using(hmm_filter=implementation):
        assert jnp.isnan(hmm_filter(*given)[0])
    with kernels.using(hmm_smoother=implementation):
        assert jnp.isnan(hmm_smoother(*given)[0])
    if implementation != "parallel":
        with kernels.using(hmm_viterbi=implementation):
            path, score = hmm_viterbi(*given)
            assert jnp.isnan(score) and (path == 0).all()


@pytest.mark.parametrize("implementation", [NATIVE, pytest.param("xla", marks=pytest.mark.slow)])
def test_a_million_steps_in_float32(implementation):
    rng = np.random.default_rng(0)
    n = 1_000_000
    a = np.array([[0.9, 0.1], [0.3, 0.7]])
    logs = (rng.standard_normal((n, 1)) * [0.0, 1.0] - 0.7).astype(np.float32)
    products, total = np.exp(logs.astype(np.float64))[:, :, None] * a, 0.0
    while len(products) > 1:  # of neighbours, each scaled to a maximum of one
        if len(products) % 2:
            products = np.concatenate([products, np.eye(2)[None]])
        products = products[::2] @ products[1::2]
        size = products.max((1, 2), keepdims=True)
        products, total = products / size, total + np.log(size).sum()
    total += np.log(np.full(2, 0.5) @ products[0].sum(1))
    with kernels.using(hmm_filter=implementation):
        found = hmm_filter(jnp.ones(2) / 2, jnp.asarray(a, jnp.float32), jnp.asarray(logs))[0]
    assert abs(found - total) < 0.3  # of 7e5 nats, whose float32 neighbours are 0.06 apart


def test_narrow_floats_are_computed_in_float32():
    given = operands(30, 4, jnp.bfloat16)
    evidence, filtered = hmm_filter(*given)
    assert evidence.dtype == filtered.dtype == jnp.bfloat16
    truth = filter_operation(*(x.astype(jnp.float32) for x in given))
    np.testing.assert_array_equal(evidence, truth[0].astype(jnp.bfloat16))
    assert jax.grad(lambda x: hmm_filter(given[0], given[1], x)[0])(given[2]).dtype == jnp.bfloat16


PROGRAM = """
import jax, numpy as np, hashlib
from varax.kernels.mp import hmm_filter, hmm_viterbi
rng = np.random.default_rng(0)
for states in (3, 16, 33):
    a = rng.dirichlet(np.ones(states), size=states).astype(np.float32)
    x = (3 * rng.standard_normal((5, 70, states))).astype(np.float32)
    p = np.full(states, 1 / states, np.float32)
    f = jax.vmap(jax.value_and_grad(lambda x: hmm_filter(p, a, x)[0]))
    out = [np.asarray(o) for o in (*f(x), *jax.vmap(lambda x: hmm_viterbi(p, a, x))(x))]
    print(hashlib.sha256(b"".join(o.tobytes() for o in out)).hexdigest(), *out[0])
"""


def _in_a_process(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(native.missing() is not None, reason="no native library")
def test_threads_and_instruction_sets():
    usual = _in_a_process()
    one = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    assert _in_a_process(XLA_FLAGS=one, NPROC="1") == usual
    for level in ("portable", "avx2"):
        for (_, *found), (_, *truth) in zip(_in_a_process(VARAX_ISA=level), usual, strict=True):
            np.testing.assert_allclose(np.float64(found), np.float64(truth), rtol=2e-6)


THIRDS = np.full((3, 3), 1 / 3)
REFUSED = [
    (KernelShapeError, "log likelihoods are a matrix", (np.ones(3) / 3, THIRDS, np.zeros(3))),
    (KernelShapeError, "jax.vmap over a batch", (np.ones(3) / 3, THIRDS, np.zeros((2, 4, 3)))),
    (KernelShapeError, "at least one state", (np.ones(0), np.ones((0, 0)), np.zeros((4, 0)))),
    (
        KernelShapeError,
        "initial distribution does not fit",
        (np.ones(2) / 2, THIRDS, np.zeros((4, 3))),
    ),
    (
        KernelShapeError,
        r"\[3, 3\], or \[3, 3, 3\]",
        (np.ones(3) / 3, np.ones((3, 2)), np.zeros((4, 3))),
    ),
    (
        KernelValueError,
        "transitions must sum to one",
        (np.ones(3) / 3, 2 * THIRDS, np.zeros((4, 3))),
    ),
    (
        KernelValueError,
        r"2 in row \[1\]",
        (np.ones(2) / 2, np.array([[0.5, 0.5], [1, 1]]), np.zeros((4, 2))),
    ),
    (KernelValueError, "initial must sum to one", (np.ones(3), THIRDS, np.zeros((4, 3)))),
    (
        KernelValueError,
        r"negative probability[\s\S]*-0.5 at \[0, 0\]",
        (np.ones(2) / 2, np.array([[-0.5, 1.5], [0, 1]]), np.zeros((4, 2))),
    ),
    (
        KernelDtypeError,
        "log_likelihoods must be real",
        (np.ones(3) / 3, THIRDS, np.zeros((4, 3)) * 1j),
    ),
]


@pytest.mark.parametrize(("error", "match", "given"), REFUSED)
@pytest.mark.parametrize("function", [hmm_filter, hmm_smoother, hmm_viterbi])
def test_refused(function, error, match, given):
    with pytest.raises(error, match=match):
        function(*given)


def test_sample_refuses_too():
    with pytest.raises(KernelValueError, match="hmm_sample: transitions must sum to one"):
        hmm_sample(jax.random.key(0), np.ones(2) / 2, np.ones((2, 2)), np.zeros((4, 2)))


def test_platforms():
    text = str(kernels.explain(hmm_filter, *operands(5, 3, jnp.float32)))
    assert "cuda  parallel" in text and "tpu   parallel" in text
