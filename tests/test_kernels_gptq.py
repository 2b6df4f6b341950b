"""GPTQ against repeated least squares and against rounding; how the moments it needs are seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from varax.kernels.errors import KernelShapeError, KernelValueError
from varax.kernels.quant import Scheme, quantize_matrix
from varax.kernels.quant.gptq import errors_on_inputs, gptq, inverse_factor
from varax.kernels.quant.observe import Moments, observe
from varax.kernels.quant.quantizers import fit_groups, grid_of, round_groups, values_of_groups

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    global RNG
    RNG = np.random.default_rng(0)


def matrix(inputs=77, outputs=10, seed=0):
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


def test_inverse_factor():
    h = np.cov(RNG.normal(size=(12, 40)))
    u = inverse_factor(h)
    np.testing.assert_allclose(u.T @ u, np.linalg.inv(h), rtol=1e-9)
    np.testing.assert_array_equal(np.tril(u, -1), 0)
    with pytest.raises(KernelValueError, match=r"(?s)not positive definite.*eigenvalue of -1"):
        inverse_factor(np.diag([1.0, -1.0]))


def by_least_squares(w, moment, grid, by, order):
    """GPTQ without its algebra: after each rounding the rest is solved for anew."""
    left, codes = w.copy(), np.zeros(w.shape, np.uint8)
    for step, j in enumerate(order):
        scale = by[:, 0]
        codes[:, j] = grid.round(left[:, j, None], scale)[:, 0]
        error = left[:, j] - grid.values(codes[:, j, None], scale)[:, 0]
        rest = order[step + 1 :]
        left[:, rest] += np.linalg.solve(
            moment[np.ix_(rest, rest)], moment[rest, j][:, None] * error
        ).T
    return codes


@pytest.mark.parametrize("by_activity", [True, False])
def test_gptq_is_repeated_least_squares(by_activity):
    w, x = RNG.normal(size=(5, 60)), RNG.normal(size=(200, 60)) @ RNG.normal(size=(60, 60))
    moment = x.T @ x / 200
    grid = grid_of(Scheme(bits=3))
    by = fit_groups(grid, w, 0)
    codes = gptq(grid, w, moment, 0, by, damping=0.0, by_activity=by_activity)
    order = np.argsort(-np.diag(moment)) if by_activity else np.arange(60)
    exact = by_least_squares(w, moment + 1e-15 * np.eye(60), grid, by, order)
    assert (codes == exact).mean() > 0.995  # ties of rounding may go either way


REGRESSIONS = ("digits", "wine", "breast_cancer", "diabetes")


def regression(name):
    """Least squares on scikit-learn's data: inputs [M, K], and weights [K, N]."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = x / (x.std(0) + 1e-3)
    targets = np.eye(10)[y] if name == "digits" else np.stack([y, y**2], 1)
    ridge = x.T @ x + 1e-2 * len(x) * np.eye(x.shape[1])
    return x, np.linalg.solve(ridge, x.T @ targets).astype(np.float32)


@pytest.mark.thin(4)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_gptq_is_at_most_rounding_on_regressions(name, bits):
    x, w = regression(name)
    moment = x.T @ x / len(x)
    found = [
        np.linalg.norm(
            x @ (np.asarray(quantize_matrix(w, s, moment=moment).dequantize()) - w), axis=0
        )
        for s in (Scheme(bits=bits, method="gptq"), Scheme(bits=bits))
    ]
    assert (found[0] <= found[1] * (1 + 1e-5)).all()
    assert len(w) < 20 or found[0].sum() < 0.8 * found[1].sum()  # few inputs: little to make up


def test_gptq_itself_is_better_than_rounding_without_its_safety_net():
    for name in ("digits", "breast_cancer"):
        x, w = regression(name)
        moment, wide = x.T @ x / len(x), w.T.astype(np.float64)
        grid = grid_of(Scheme(bits=3))
        by = fit_groups(grid, wide, 64)
        nearest = values_of_groups(grid, round_groups(grid, wide, 64, by), 64, by)
        found = values_of_groups(grid, gptq(grid, wide, moment, 64, by), 64, by)
        loss = [errors_on_inputs(v - wide, moment).sum() for v in (found, nearest)]
        assert loss[0] < 0.5 * loss[1]
        # a broken twin: compensation with the wrong sign is worse than none
        u = inverse_factor(moment + 0.01 * np.diag(moment).mean() * np.eye(len(moment)))
        wrong = wide + (wide - nearest) @ np.triu(u / np.diag(u)[:, None], 1)
        codes = round_groups(grid, wrong, 64, by)
        twin = values_of_groups(grid, codes, 64, by)
        assert errors_on_inputs(twin - wide, moment).sum() > loss[0]


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(bits=3, method="gptq", grid="lloyd_max"),
        Scheme(bits=3, method="gptq", rotate=True, group=32),
        Scheme(bits=3, method="gptq", symmetric=False, outliers=0.02),
    ],
    ids=str,
)
def test_gptq_with_every_grid_rotation_and_outliers(scheme):
    x = RNG.normal(size=(300, 20)) @ RNG.normal(size=(20, 77))
    w, moment = matrix(), x.T @ x / 300
    plain = Scheme(bits=3, grid=scheme.grid, symmetric=scheme.symmetric, outliers=scheme.outliers)
    error = [
        np.linalg.norm(x @ (np.asarray(quantize_matrix(w, s, moment=moment).dequantize()) - w))
        for s in (scheme, plain)
    ]
    assert error[0] < 0.7 * error[1]


def test_gptq_of_inputs_that_never_were_and_of_wrong_moments():
    w, scheme = matrix(), Scheme(method="gptq")
    nothing = quantize_matrix(w, scheme, moment=np.zeros((77, 77)))
    assert np.isfinite(np.asarray(nothing.dequantize())).all()
    with pytest.raises(KernelShapeError, match="second moment of the inputs does not fit"):
        quantize_matrix(w, scheme, moment=np.eye(76))
    with pytest.raises(KernelValueError, match="second moment of the inputs is not finite"):
        quantize_matrix(w, scheme, moment=np.full((77, 77), np.nan))


# ---- observing


def _corner(x):
    """[20, 6] as [6, 4, 5]."""
    return x.reshape(4, 5, 6).transpose(2, 0, 1)


TRANSFORMED = [
    ("vmap", lambda f, x: jax.vmap(f)(x)),
    ("jit of vmap", lambda f, x: jax.jit(jax.vmap(f))(x)),
    ("vmap of jit", lambda f, x: jax.vmap(jax.jit(f))(x)),
    ("vmap of vmap", lambda f, x: jax.vmap(jax.vmap(f, 1), 1)(_corner(x))),
    ("scan", lambda f, x: jax.lax.map(f, x)),
    ("vmap of grad", lambda f, x: jax.vmap(jax.grad(f))(x)),
    ("jit of grad", lambda f, x: jax.jit(jax.grad(lambda x: jax.vmap(f)(x).sum()))(x)),
]


@pytest.mark.parametrize(("name", "run"), TRANSFORMED, ids=[name for name, _ in TRANSFORMED])
def test_moments_are_seen_through_transformations(name, run):
    x = jnp.asarray(RNG.normal(size=(20, 6)), jnp.float32)
    moments = Moments()
    out = run(lambda v: jnp.tanh(observe(moments, "layer", v)).sum(), x)
    jax.block_until_ready(out)
    np.testing.assert_allclose(out, run(lambda v: jnp.tanh(v).sum(), x), rtol=1e-6)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(moments["layer"], wide.T @ wide / 20, rtol=1e-5)
