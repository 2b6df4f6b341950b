"""Grids against the literature, rotations against the matrix, quantizers against search and law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats
from scipy.special import ndtri

from varax import errors
from varax.kernels import quant
from varax.kernels.errors import KernelDtypeError, KernelShapeError, KernelValueError
from varax.kernels.quant import Scheme, quantize_matrix
from varax.kernels.quant.gptq import errors_on_inputs, gptq, inverse_factor
from varax.kernels.quant.observe import Moments, observe
from varax.kernels.quant.quantizers import (
    Affine,
    Levels,
    fit_groups,
    grid_of,
    round_groups,
    values_of_groups,
)
from varax.kernels.quant.rotate import blocks

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    global RNG
    RNG = np.random.default_rng(0)


FLOAT32_STEP = 2.0**-23

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
    w = RNG.normal(size=(6, 32)) + 0.3
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


# ---- GPTQ


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
    w, x = RNG.normal(size=(5, 150)), RNG.normal(size=(400, 150)) @ RNG.normal(size=(150, 150))
    moment = x.T @ x / 400
    grid = grid_of(Scheme(bits=3))
    by = fit_groups(grid, w, 0)
    codes = gptq(grid, w, moment, 0, by, damping=0.0, by_activity=by_activity)
    order = np.argsort(-np.diag(moment)) if by_activity else np.arange(150)
    exact = by_least_squares(w, moment + 1e-15 * np.eye(150), grid, by, order)
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
