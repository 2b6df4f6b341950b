"""Schemes; rounding to the nearest against search over all levels, and the law of its error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from varax import errors
from varax.kernels import quant
from varax.kernels.errors import KernelDtypeError, KernelShapeError, KernelValueError
from varax.kernels.quant import Scheme, quantize_matrix
from varax.kernels.quant.quantizers import (
    Affine,
    Levels,
    fit_groups,
    grid_of,
    round_groups,
    values_of_groups,
)

# ---- schemes


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bits": 5}, "Unknown width"),
        ({"bits": True}, "Unknown width"),
        ({"group": 48}, "Unknown group size"),
        ({"method": "rtn"}, "Unknown method"),
        ({"grid": "normal"}, "Unknown grid"),
        ({"activations": "int4"}, "Unknown dtype"),
        ({"bits": 8, "grid": "lloyd_max"}, "at most 16 levels"),
        ({"grid": "nf4", "bits": 3}, "NF4 has 4 bits"),
        ({"grid": "nf4", "symmetric": False}, "Only integers have zero points"),
        ({"grid": (0.0,) * 3}, "no levels of a grid"),
        ({"grid": (1.0, np.nan)}, "no levels of a grid"),
        ({"grid": tuple(range(5)), "bits": 2}, "no levels of a grid"),
        ({"outliers": 1.0}, "part of the weights"),
        ({"damping": -1.0}, "not negative"),
    ],
)
def test_schemes_are_checked(fields, match):
    with pytest.raises(KernelValueError, match=match):
        Scheme(**fields)


def test_a_scheme_is_a_value():
    assert Scheme(grid=np.array([1.0, -1.0])) == Scheme(grid=(1, -1))
    assert len({Scheme(), Scheme(bits=4), Scheme(bits=3)}) == 2
    assert Scheme(skip="layers/*").skips("layers/0") and not Scheme().skips("layers/0")
    assert Scheme(method="higgs").rotated and Scheme(method="higgs").grid_name == "lloyd_max"
    shown = str(Scheme(method="higgs", bits=3, outliers=0.01))
    assert shown == "3 bits, lloyd_max, higgs, groups of 64, 1.0% outliers; float32 activations"


# ---- rounding to the nearest

SCHEMES = [
    Scheme(bits=8, group=32),
    Scheme(bits=4, group=0, symmetric=False),
    Scheme(bits=3, group=64, clip=False),
    Scheme(bits=2, group=32, symmetric=False, clip=False),
    Scheme(bits=3, group=32, grid="uniform"),
    Scheme(bits=4, group=128, grid="nf4"),
    Scheme(bits=2, group=32, grid=(-1.0, 0.0, 1.0)),
    Scheme(bits=4, group=32, method="higgs"),
    Scheme(bits=4, group=32, outliers=0.02),
]


def matrix(inputs=77, outputs=10, seed=0):
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_weight_has_the_nearest_of_its_levels(scheme):
    """Codes are packed and unpacked on the way: by brute force over all levels."""
    w = matrix()
    found = quantize_matrix(w, scheme)
    packed = found.weights
    if scheme.rotated:
        w = np.asarray(quant.rotate(jnp.asarray(w.T), found.signs, block=found.block)).T
    codes = np.asarray(packed.unpack())
    every = np.arange(2**scheme.bits)
    scales = np.repeat(np.asarray(packed.scales), packed.group or 77, axis=0)[:77]
    if packed.codebook is not None:
        means = np.asarray(packed.codebook)[:, None, None] * scales
    elif packed.zeros is not None:
        zeros = np.repeat(np.asarray(packed.zeros), packed.group or 77, axis=0)[:77]
        means = (every[:, None, None] - zeros.astype(float)) * scales
    else:
        means = (every[:, None, None] - 2.0 ** (scheme.bits - 1)) * scales
    error = np.abs(means - w)
    mine = np.take_along_axis(error, codes[None].astype(int), 0)[0]
    kept = np.zeros(w.shape, bool)
    if packed.outliers is not None:
        kept = np.asarray(packed.outliers.to_dense(w.shape)) != 0
        assert kept.sum() == round(0.02 * w.size)
        np.testing.assert_allclose(np.asarray(packed.dequantize())[kept], w[kept], rtol=1e-6)
    assert (mine <= error.min(0) + 1e-6)[~kept].all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_on_the_grid_stays(scheme):
    """Quantizing again changes nothing, where a grid can be told from weights."""
    if scheme.rotated or scheme.outliers or scheme.bits == 8:
        pytest.skip("scales are not unique")
    first = quantize_matrix(matrix(), scheme).dequantize()
    again = quantize_matrix(first, scheme).dequantize()
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6 * float(jnp.abs(first).max()))


@pytest.mark.parametrize("grid", [Levels(np.arange(-4, 4)), Levels(quant.NF4), Affine(3)])
def test_scales_are_near_the_best(grid):
    """Of the scales on a fine mesh, none has much less error than the one that was found."""
    w = np.random.default_rng(0).normal(size=(6, 32)) + 0.3
    by = grid.fit(w)
    found = ((w - grid.values(grid.round(w, by), by)) ** 2).sum(-1)
    best = np.full(6, np.inf)
    for scale in np.linspace(-4, 4, 1601)[:, None] * np.ones(6):
        for zero in range(8) if isinstance(grid, Affine) else [None]:
            z = None if zero is None else np.full(6, zero, np.uint8)
            trial = type(by)(scale, z)
            best = np.minimum(best, ((w - grid.values(grid.round(w, trial), trial)) ** 2).sum(-1))
    assert (found <= 1.1 * best).all() and found.sum() <= 1.03 * best.sum()


def test_clipping_and_importance_pay():
    w = matrix(256, 40).T.astype(np.float64)
    grid = grid_of(Scheme(bits=3))
    weights = np.where(np.arange(256) % 5 == 0, 10.0, 0.1)

    def loss(by, importance):
        error = w - values_of_groups(grid, round_groups(grid, w, 64, by), 64, by)
        return (importance * error**2).sum()

    plain, covering = fit_groups(grid, w, 64), fit_groups(grid, w, 64, clip=False)
    weighted = fit_groups(grid, w, 64, weights)
    assert loss(plain, 1.0) < 0.9 * loss(covering, 1.0)
    assert loss(weighted, weights) < 0.95 * loss(plain, weights)


def test_higgs_reaches_the_distortion_of_its_grid_for_any_weights():
    """Heavy tails cost plain rounding dearly; rotated, what remains is the normal distortion."""
    w = np.random.default_rng(1).standard_t(2.5, size=(512, 64)).astype(np.float32)

    def relative(scheme):
        error = np.asarray(quantize_matrix(w, scheme).dequantize()) - w
        return (error**2).sum() / (w**2).sum()

    for bits in (2, 3, 4):
        ideal = quant.distortion(quant.lloyd_max(2**bits))
        higgs = relative(Scheme(bits=bits, group=128, method="higgs"))
        assert higgs < 1.25 * ideal
        assert higgs < 0.75 * relative(Scheme(bits=bits, group=128))


def test_outliers_pay():
    w = np.random.default_rng(1).standard_t(2.5, size=(512, 64)).astype(np.float32)
    error = [
        np.linalg.norm(np.asarray(quantize_matrix(w, Scheme(outliers=part)).dequantize()) - w)
        for part in (0.0, 0.005, 0.02)
    ]
    assert error[1] < 0.9 * error[0] and error[2] < 0.9 * error[1]


@pytest.mark.thin(3)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_quantizing_does_not_depend_on_the_unit(scheme, scale):
    w = matrix()
    error = [
        np.linalg.norm(np.asarray(quantize_matrix(w * np.float32(s), scheme).dequantize()) / s - w)
        for s in (1.0, scale)
    ]
    np.testing.assert_allclose(error[1], error[0], rtol=1e-3)


@pytest.mark.thin(5)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (33, 1)])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_small_and_empty_matrices(scheme, shape):
    for w in (np.ones(shape, np.float32), np.zeros(shape, np.float32)):
        found = quantize_matrix(w, scheme).dequantize()
        assert found.shape == shape
        np.testing.assert_allclose(found, w, atol=0.4)
    assert not np.any(found)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights(dtype):
    w = jnp.asarray(matrix(), dtype)
    wide = quantize_matrix(w.astype(jnp.float32), Scheme()).dequantize()
    np.testing.assert_array_equal(quantize_matrix(w, Scheme()).dequantize(), wide)


def test_matrices_are_checked():
    w = matrix()
    with pytest.raises(KernelShapeError, match="is a matrix"):
        quantize_matrix(w[0], Scheme())
    with pytest.raises(KernelDtypeError, match="Weights are floats"):
        quantize_matrix(w.astype(int), Scheme())
    bad = w.copy()
    bad[3, 4] = np.inf
    with pytest.raises(KernelValueError, match=r"(?s)Weights are finite.*\[3, 4\]: inf"):
        quantize_matrix(bad, Scheme())
    with pytest.raises(KernelValueError, match="outside of jit"):
        jax.jit(lambda w: quantize_matrix(w, Scheme()).dequantize())(w)
    with pytest.raises(KernelValueError, match="GPTQ needs calibration"):
        quantize_matrix(w, Scheme(method="gptq"))
    assert issubclass(KernelValueError, errors.VaraxError)
