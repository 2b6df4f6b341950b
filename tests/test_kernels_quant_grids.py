"""Grids against the literature, rotations against the matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats
from scipy.special import ndtri

from varax.kernels import quant
from varax.kernels.errors import KernelShapeError, KernelValueError
from varax.kernels.quant.rotate import blocks

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    global RNG
    RNG = np.random.default_rng(0)


# ---- grids


@pytest.mark.parametrize(
    ("levels", "best", "even"),
    # Max (1960), tables 1 and 2, to the digits that are right there
    [(2, 0.3634, 0.3634), (4, 0.11748, 0.11885), (8, 0.03455, 0.03744), (16, 0.00950, 0.01154)],
)
def test_distortions_are_those_of_the_literature(levels, best, even):
    digits = 4 if levels == 2 else 5
    assert round(quant.distortion(quant.lloyd_max(levels)), digits) == best
    assert round(quant.distortion(quant.uniform(levels)), digits) == even


def test_lloyd_max_levels_of_the_literature():
    np.testing.assert_allclose(quant.lloyd_max(4), [-1.5104, -0.4528, 0.4528, 1.5104], atol=5e-5)
    np.testing.assert_allclose(quant.lloyd_max(8)[4:], [0.2451, 0.7560, 1.3439, 2.1520], atol=6e-5)


@pytest.mark.parametrize("levels", [1, 2, 3, 5, 16, 17, 256])
def test_every_lloyd_max_level_is_the_mean_of_its_cell(levels):
    grid = quant.lloyd_max(levels)
    borders = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    means = [stats.truncnorm.mean(a, b) for a, b in itertools.pairwise(borders)]
    assert grid.shape == (levels,) and (np.diff(grid) > 0).all()
    np.testing.assert_allclose(grid, means, atol=1e-9)
    np.testing.assert_array_equal(grid, -grid[::-1])


def test_distortion_is_the_integral():
    grid = np.array([-1.7, -0.2, 0.1, 2.5])

    def integrand(x):
        return np.min((x - grid) ** 2) * stats.norm.pdf(x)

    corners = (grid[1:] + grid[:-1]) / 2
    exact, _ = integrate.quad(integrand, -12, 12, points=corners, limit=200)
    np.testing.assert_allclose(quant.distortion(grid), exact, rtol=1e-9)
    assert quant.distortion([0.0]) == 1.0


def test_nf4_is_what_its_definition_gives():
    """Quantiles of the normal: 7 below zero, 8 above, the outermost at 0.9677083."""
    above = -ndtri(1 - np.linspace(0.9677083, 0.5, 9)[:-1])
    below = ndtri(1 - np.linspace(0.9677083, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above])) / above.max()
    np.testing.assert_allclose(quant.NF4, levels, atol=2e-7)


def test_grids_need_levels():
    for grid in (quant.lloyd_max, quant.uniform):
        for wrong in (0, 2.5):
            with pytest.raises(KernelValueError, match="whole number of levels"):
                grid(wrong)


# ---- rotation


@pytest.mark.parametrize("n", [1, 2, 64])
def test_hadamard_is_the_orthonormal_matrix_and_its_own_inverse(n):
    matrix = linalg.hadamard(n) / np.sqrt(n)
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(3, n)))
        np.testing.assert_allclose(quant.hadamard(x), x @ matrix, atol=1e-14)
        np.testing.assert_allclose(quant.hadamard(quant.hadamard(x)), x, atol=1e-14)


@pytest.mark.parametrize(("n", "block"), [(1, 64), (13, 8), (200, 64), (5, 1), (0, 8)])
def test_rotation_is_orthonormal_and_inverted(n, block):
    signs = quant.rotation_signs(n, seed=3)
    with jax.enable_x64(True):
        q = np.asarray(quant.rotate(jnp.eye(n), signs, block=block))
        np.testing.assert_allclose(q @ q.T, np.eye(n), atol=1e-14)
        back = quant.unrotate(jnp.asarray(q), signs, block=block)
        np.testing.assert_allclose(back, np.eye(n), atol=1e-14)
    assert sum(blocks(n, block)) == n
    at = 0
    for size in blocks(n, block):  # nothing leaves its block
        assert size <= block and np.all(q[at : at + size, :at] == 0)
        at += size


def test_rotation_is_exact_on_integers_and_transforms():
    x = jnp.asarray(RNG.integers(-8, 8, (3, 64)), jnp.float32)
    signs = quant.rotation_signs(64, 0)
    y = quant.rotate(x, signs, block=16)  # 1 / sqrt(16) is a power of two: no rounding at all
    np.testing.assert_array_equal(quant.unrotate(y, signs, block=16), x)
    one = jax.jit(jax.vmap(lambda x: quant.rotate(x, signs, block=16)))(x)
    np.testing.assert_array_equal(one, y)
    gradient = jax.grad(lambda x: (quant.rotate(x, signs, block=16) ** 2).sum() / 2)(x)
    np.testing.assert_allclose(gradient, x, rtol=1e-6)


def test_rotation_errors():
    with pytest.raises(KernelShapeError, match="power of two"):
        quant.hadamard(jnp.ones(12))
    with pytest.raises(KernelValueError, match="blocks of a power of two"):
        quant.rotate(jnp.ones(12), jnp.ones(12), block=12)
    with pytest.raises(KernelShapeError, match="signs of a rotation"):
        quant.rotate(jnp.ones(12), jnp.ones(11), block=4)
