"""The Pallas forms of hmm_filter, interpreted, by the rule that all implementations obey."""

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pallas_forms
import pytest
from kernel_cases_hmm import chain, excluding, filter_case

from varax import kernels
from varax.kernels.mp import hmm_filter, hmm_smoother
from varax.kernels.mp.chain_filter import filter_operation
from varax.kernels.mp.chain_smoother import smoother_operation
from varax.kernels.pallas import cuda_capability, hmm

SHARED = (None, None, 0)
FILTER = jax.vmap(filter_operation, SHARED)


def batch(steps, states, chains, **more):
    return chain(steps, states, batch=((), (), (chains,)), **more)


def several(arrays, chains):
    """The same chain several times, its likelihoods a little different."""

    def made(rng):
        initial, transitions, logs = arrays(rng)
        return initial, transitions, logs + rng.standard_normal((chains, *logs.shape))

    return made


SMALL = filter_case("small", batch(3, 2, 2), SHARED)
CASES = [
    filter_case("shared", batch(20, 3, 5), SHARED),
    filter_case("sparse", batch(12, 6, 3, sparse=True), SHARED),
    filter_case("each-initial", chain(9, 4, batch=((3,), (), (3,))), (0, None, 0)),
    filter_case("two-blocks", batch(70, 7, 130), SHARED),
    filter_case("excluding", several(excluding(30, 5), 2), SHARED),
    filter_case("one", batch(1, 1, 1), SHARED),
    filter_case("shared-likelihoods", chain(7, 2, batch=((4,), (), ())), (0, None, None)),
    filter_case("impossible", several(chain(8, 3, impossible=True), 2), SHARED),
]


@pytest.mark.thin(8)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tpu_kernel_equals_the_definition(case):
    with jax.enable_x64(True), pallas_forms.interpreted_tpu(hmm) as name:
        kernel_checks.check(case, name, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("case", [SMALL, *CASES], ids=str)
def test_the_gpu_kernel_equals_the_definition(case):
    operands = case.arrays(np.random.default_rng(0))
    with jax.enable_x64(True):
        pallas_forms.check_interpreted_gpu(hmm, operands, tuple(a == 0 for a in case.axes))


def test_the_smoother_is_by_the_same_kernels():
    given = [jnp.asarray(a, jnp.float32) for a in batch(9, 3, 4)(np.random.default_rng(0))]
    smoothers = jax.vmap(hmm_smoother, SHARED)
    by_pallas = hmm.smoother(hmm.form("tpu", "pallas_interpreted", "cpu", interpret=True))
    smoother_operation.add(by_pallas)
    try:
        with kernels.using(hmm_smoother=by_pallas.name):
            found = jax.jit(smoothers)(*given)
    finally:
        smoother_operation.implementations.remove(by_pallas)
    with kernels.using(hmm_smoother="xla"):
        for a, b in zip(found, smoothers(*given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    batches = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3,), (3, 3), (64, 9, 3))]
    assert "tpu   pallas" in str(kernels.explain(smoothers, *batches))


def test_filtered_probabilities_have_derivatives_too():
    """The adjoint with a cotangent of one output alone, for each chain on its own."""
    given = [jnp.asarray(a, jnp.float32) for a in batch(6, 3, 4)(np.random.default_rng(0))]
    along = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)), jnp.float32)

    def slope(transitions, logs):
        return jax.grad(lambda a: (along * filter_operation(given[0], a, logs)[1]).sum())(
            transitions
        )

    slopes = {}
    with pallas_forms.interpreted_tpu(hmm) as name:
        for form in (name, "xla"):
            with kernels.using(hmm_filter=form):
                slopes[form] = jax.jit(jax.vmap(slope, (None, 0)))(*given[1:])
    assert slopes["xla"].shape == (4, 3, 3)
    np.testing.assert_allclose(slopes[name], slopes["xla"], rtol=1e-4, atol=1e-5)


def test_a_nan_stays_in_its_chain():
    given = [jnp.asarray(a, jnp.float32) for a in batch(9, 4, 3)(np.random.default_rng(0))]
    with pallas_forms.interpreted_tpu(hmm) as name, kernels.using(hmm_filter=name):
        evidence, filtered = FILTER(*given[:2], given[2].at[1, 5, 2].set(jnp.nan))
    assert (np.isnan(evidence) == [False, True, False]).all()
    assert np.isnan(filtered[1, 5:]).all() and np.isfinite(filtered[1, :5]).all()
    assert np.isfinite(filtered[::2]).all()


def test_what_is_refused():
    def reasons(chains=40, states=3, dtype=jnp.float32, platform="tpu", axes=SHARED, varying=False):
        many = (4,) if varying else ()
        shapes = [(states,), (*many, states, states), (5, states)]
        structs = [
            jax.ShapeDtypeStruct((chains, *s) if axis == 0 else s, dtype)
            for s, axis in zip(shapes, axes, strict=True)
        ]
        f = hmm_filter if 0 not in axes else jax.vmap(hmm_filter, axes)
        (use,) = kernels.explain(f, *structs, platform=platform).uses
        return use.reasons[platform]["pallas"]

    assert reasons() is None
    assert "at least 32 chains" in reasons(chains=31)
    assert "not one chain" in reasons(axes=(None, None, None))
    assert "at most 256 states, not 257" in reasons(states=257)
    assert "transitions that all chains and steps share" in reasons(axes=(None, 0, 0))
    assert "transitions that all chains and steps share" in reasons(varying=True)
    with jax.enable_x64(True):
        assert "float32, not float64" in reasons(dtype=jnp.float64)
    assert "needs to know the GPU" in reasons(platform="cuda")
    with cuda_capability("9.0"):
        assert reasons(platform="cuda") is None
        assert "at most 8 states, not 9" in reasons(platform="cuda", states=9)
