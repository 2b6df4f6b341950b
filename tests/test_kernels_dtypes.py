"""Narrow floats: computed in float32, given back as they came; values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases_factor_graph import grid

from varax.kernels import gp, mp
from varax.kernels.quant import PackedWeights, quantized_matmul

RNG = np.random.default_rng(0)
POINTS, TIMES = RNG.standard_normal((9, 2)), np.cumsum(RNG.random(9))
ROOT = RNG.standard_normal((3, 4, 6))
NEIGHBOURS = np.stack([np.arange(9) - 1, np.arange(9) - 2], 1).clip(-1)
PACKED = PackedWeights.from_codes(
    RNG.integers(0, 16, (32, 5)), np.float32(RNG.random((1, 5))), bits=4, group=32
)
MODEL = (0.5 * np.eye(2), np.eye(2), np.ones(2), 0.5, np.zeros(2), np.eye(2))
LOGS = RNG.standard_normal((9, 4))


def tables(unary, table):
    graph = mp.FactorGraph(unary, ((grid(3), table),))
    return mp.sum_product(graph, iterations=5).marginals


def weights(x, length_scale):
    return gp.nearest_neighbour_weights("matern32", x, NEIGHBOURS, length_scale=length_scale)


CASES = {
    "kalman_log_likelihood": (mp.kalman_log_likelihood, (TIMES, *MODEL)),
    "kalman_filter": (mp.kalman_filter, (TIMES, *MODEL)),
    "kalman_smoother": (mp.kalman_smoother, (TIMES, *MODEL)),
    "many series": (
        jax.vmap(mp.kalman_log_likelihood, (0,) + (None,) * 6),
        (RNG.standard_normal((5, 9)), *MODEL),
    ),
    "matern_log_likelihood": (
        lambda t, y, v: mp.matern_log_likelihood(t, y, "3/2", v, 1.0, 0.3),
        (TIMES, np.sin(TIMES), 1.2),
    ),
    "hmm_filter": (mp.hmm_filter, (np.eye(4)[0], np.full((4, 4), 0.25), LOGS)),
    "sum_product": (tables, (RNG.standard_normal((9, 2)), RNG.standard_normal((12, 2, 2)))),
    "covariance_matmul": (
        lambda x, v: gp.covariance_matmul("matern52", x, x, v, length_scale=0.7),
        (POINTS, LOGS),
    ),
    "small_cholesky": (gp.small_cholesky, (ROOT @ ROOT.swapaxes(1, 2) + np.eye(4),)),
    "nearest_neighbour_weights": (weights, (POINTS, 0.8)),
    "quantized_matmul": (
        lambda x: quantized_matmul(x, PACKED, "float32"),
        (RNG.standard_normal((4, 32)),),
    ),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", CASES)
def test_narrow_floats_are_computed_in_float32(name, dtype):
    f, arrays = CASES[name]
    narrow = [jnp.asarray(a, dtype) for a in arrays]
    wide = [a.astype(jnp.float32) for a in narrow]

    def both(*at):
        out, pull = jax.vjp(f, *at)
        rng = np.random.default_rng(1)
        along = lambda x: jnp.asarray(rng.integers(-3, 4, x.shape), x.dtype)  # noqa: E731
        return out, pull(jax.tree.map(along, out))

    found, exact = jax.jit(both)(*narrow), jax.jit(both)(*wide)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert a.dtype == dtype
        # Each result is rounded once; of a gradient, each of the terms that it is a sum of.
        bound = 4 * float(jnp.finfo(dtype).eps)
        gap = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert gap <= bound * np.abs(np.asarray(b, np.float64)).max()
