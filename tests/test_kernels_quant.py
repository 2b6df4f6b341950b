"""Packed weights and their products: exact where integers are, the same everywhere."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pytest
from kernel_cases_quant import CASES, weights_of

import varax
from varax import kernels
from varax.kernels import errors, native
from varax.kernels.quant import NF4, Outliers, PackedWeights, quantized_matmul
from varax.kernels.quant.layout import BITS, GROUPS, group_count, pack, unpack
from varax.kernels.quant.product import exact_sums

ALL = [
    (case, name)
    for case in CASES
    for name in kernel_checks.implementations_of(case.operation)
    if name != "native" or not native.missing()
]
NATIVE = ["xla"] if native.missing() else ["xla", "native"]


@pytest.mark.thin(4)
@pytest.mark.parametrize(("case", "name"), ALL, ids=str)
def test_implementations_agree(case, name):
    with jax.enable_x64(True):
        kernel_checks.check(case, name, jnp.float32)


SHAPES = [(32, (65, 33)), (0, (1, 1)), (0, (130, 16)), (64, (0, 3)), (128, (3, 0))]
MORE = [(group, shape) for group in GROUPS for shape in [(65, 33), (0, 3), (3, 0), (1, 1)]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("these", [SHAPES, pytest.param(MORE, marks=pytest.mark.slow)])
def test_unpack_inverts_pack(bits, these):
    rng = np.random.default_rng(bits)
    for group, shape in these:
        codes = rng.integers(0, 2**bits, shape)
        there = jax.jit(lambda codes, group=group: pack(codes, bits, group))
        packed = there(codes)
        again = jax.jit(lambda packed, shape=shape: unpack(packed, bits, shape))(packed)
        np.testing.assert_array_equal(again, codes)
        # Packing what was unpacked gives the same bytes, padding and all.
        np.testing.assert_array_equal(there(np.asarray(again, codes.dtype)), packed)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["symmetric", "zeros", "codebook"])
def test_what_packed_weights_mean(bits, kind):
    if kind == "codebook" and bits == 8:
        pytest.skip("8 bits have no codebook")
    rng = np.random.default_rng(0)
    shape, group = (100, 9), 32
    w = weights_of(rng, shape, bits, group)
    given = {} if kind == "symmetric" else {kind: w[kind]}
    sparse = Outliers.from_coordinates([3, 99, 3], [8, 0, 8], [1.0, 2.0, 4.0], 9)
    weights = PackedWeights.from_codes(
        w["codes"], w["scales"], bits=bits, group=group, outliers=sparse, **given
    )
    g = np.arange(100) // group
    grid = {
        "symmetric": w["codes"] - 2 ** (bits - 1),
        "zeros": w["codes"] - w["zeros"][g],
        "codebook": w["codebook"][w["codes"] % len(w["codebook"])],
    }[kind]
    dense = grid * w["scales"][g]
    dense[3, 8] += 5.0
    dense[99, 0] += 2.0
    np.testing.assert_allclose(weights.dequantize(), dense, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(weights.unpack(), w["codes"])
    x = rng.standard_normal((4, 100)).astype(np.float32)
    np.testing.assert_allclose(quantized_matmul(x, weights), x @ dense, rtol=1e-4, atol=1e-4)


def rounded(x):
    """The int8 rule by hand: integers and steps."""
    step = abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    return np.clip(np.round(x / step), -127, 127).astype(np.int64), step


def by_integers(x, w, kind, bits, group):
    """The definition of int8 products in int64 and float32, each step rounded once."""
    q, step = rounded(x)
    grid = w["codes"] - 2 ** (bits - 1)
    g = np.arange(x.shape[1]) // (group or x.shape[1])
    if kind == "zeros":
        grid = w["codes"] - w["zeros"][g]
    if kind == "codebook":
        entries, unit = rounded(w["codebook"].astype(np.float32)[None])
        grid, step = entries[0][w["codes"]], step * unit
    total = np.zeros((len(x), grid.shape[1]), np.float32)
    for i, scale in enumerate(w["scales"].astype(np.float32)):
        total = total + scale * (q[:, g == i] @ grid[g == i]).astype(np.float32)
    return total * step


EXACT = [
    (8, 128, "symmetric", (1, 300, 40)),
    (8, 0, "zeros", (5, 1100, 20)),
    (4, 32, "symmetric", (8, 100, 130)),
    (4, 0, "codebook", (66, 70, 17)),
    (4, 64, "zeros", (3, 200, 64)),
    (3, 64, "codebook", (2, 130, 33)),
    (2, 128, "symmetric", (9, 200, 16)),
]


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(("bits", "group", "kind", "size"), EXACT)
def test_integer_products_are_exact(bits, group, kind, size, name):
    rng = np.random.default_rng(bits + group)
    rows, inputs, outputs = size
    w = weights_of(rng, (inputs, outputs), bits, group)
    given = {} if kind == "symmetric" else {kind: w[kind]}
    if kind == "codebook":
        given = {"codebook": w["codebook"].astype(np.float32)}
    scales = w["scales"].astype(np.float32)
    weights = PackedWeights.from_codes(w["codes"], scales, bits=bits, group=group, **given)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    expected = by_integers(x, w, kind, bits, group)
    with kernels.using(quantized_matmul=name):
        out = quantized_matmul(x, weights, "int8")
    if name == "native" or (group == 0 and kind != "codebook"):
        np.testing.assert_array_equal(out, expected)  # to the last bit
    else:  # XLA scales and adds up the groups in an order of its own
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6 * abs(expected).max())


def test_sums_are_exact_at_the_largest_values():
    q = np.full((1, 1500), 127)
    grid = np.full((1500, 2), 255)
    grid[:, 1] *= -1
    for group in (0, 128):
        sums = exact_sums(jnp.asarray(q), jnp.asarray(grid), group)
        np.testing.assert_array_equal(np.asarray(sums, np.int64).sum(0), q @ grid)
    weights = PackedWeights.from_codes(
        np.full((1500, 2), 255), np.ones((1, 2)), bits=8, group=0, zeros=np.zeros((1, 2), int)
    )
    for name in NATIVE:
        for sign in (1, -1):
            with kernels.using(quantized_matmul=name):
                out = quantized_matmul(jnp.full((1, 1500), 127.0 * sign), weights, "int8")
            assert (out == sign * np.float32(127 * 255 * 1500)).all()


PROGRAM = """
import hashlib, numpy as np, jax.numpy as jnp
from kernel_cases_quant import weights_of
from varax import kernels
from varax.kernels.quant import PackedWeights, quantized_matmul
INTEGERS = [(8, 0, "int8"), (4, 128, "int8"), (3, 32, "int8")]
for bits, group, activations in [*INTEGERS, (4, 128, "float32")]:
    rng = np.random.default_rng(0)
    w = weights_of(rng, (384, 300), bits, group)
    kind = {"codebook": w["codebook"]} if bits == 3 else {"zeros": w["zeros"]} if bits == 8 else {}
    weights = PackedWeights.from_codes(w["codes"], w["scales"], bits=bits, group=group, **kind)
    x = jnp.asarray(rng.standard_normal((11, 384)), jnp.float32)
    with kernels.using(quantized_matmul="native"):
        out = np.asarray(quantized_matmul(x, weights, activations))
    print(bits, activations, hashlib.sha256(out.tobytes()).hexdigest())
"""


def hashes(isa=None, one_thread=False):
    root = Path(varax.__file__).resolve().parent
    paths = [str(root / "tests"), *sys.path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    env |= {"VARAX_ISA": isa} if isa else {}
    command = [sys.executable, "-c", PROGRAM]
    if one_thread:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(bool(native.missing()), reason="no native library")
def test_the_same_bits_for_any_number_of_threads():
    here = hashes()
    assert len(here) == 4
    if hasattr(os, "sched_getaffinity"):
        assert hashes(one_thread=True) == here


@pytest.mark.slow
@pytest.mark.skipif(bool(native.missing()), reason="no native library")
def test_the_same_integers_on_other_instruction_sets():
    here = hashes()
    for isa in ("avx2", "portable"):
        assert hashes(isa)[:3] == here[:3]  # integers: also on other instruction sets


@pytest.fixture
def weights():
    w = weights_of(np.random.default_rng(1), (64, 24), 4, 32)
    return PackedWeights.from_codes(
        w["codes"], w["scales"].astype(np.float32), bits=4, group=32, codebook=jnp.array(NF4)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_rows_come_back_as_they_were(weights, dtype):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 64)), dtype)
    for activations in ("float32", "bfloat16", "int8"):
        out = quantized_matmul(x, weights, activations)
        assert out.dtype == dtype
        wide = quantized_matmul(x.astype(jnp.float32), weights, activations)
        np.testing.assert_array_equal(out, wide.astype(dtype))


def test_bfloat16_rounds_rows(weights):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((3, 64)), jnp.float32)
    out = jax.jit(quantized_matmul, static_argnums=2)(x, weights, "bfloat16")
    exact = np.asarray(x.astype(jnp.bfloat16), np.float64) @ np.asarray(weights.dequantize())
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.thin(3)
@pytest.mark.parametrize("activations", ["int8", "float32", "bfloat16"])
def test_the_derivative_is_that_of_the_product_without_rounding(weights, activations):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((3, 64)), jnp.float32)
    along = jnp.asarray(rng.standard_normal((3, 24)), jnp.float32)

    def loss(x, scales, codebook):
        w = dataclasses.replace(weights, scales=scales, codebook=codebook)
        return (along * quantized_matmul(x, w, activations)).sum()

    def plain(x, scales, codebook):
        grid = codebook[weights.unpack().astype(int)]
        return (along * (x @ (grid * jnp.repeat(scales, 32, axis=0)))).sum()

    at = (x, weights.scales, weights.codebook)
    found, exact = (jax.jit(jax.grad(f, (0, 1, 2)))(*at) for f in (loss, plain))
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Second derivatives: the product is linear in each, so only the mixed ones are there.
    found, exact = (
        jax.jit(lambda f=f: jax.jvp(lambda s: jax.grad(f)(x, s, at[2]), (at[1],), (at[1],))[1])()
        for f in (loss, plain)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_a_vmap_over_rows_is_more_rows(weights):
    x = jnp.ones((5, 3, 64))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda x: quantized_matmul(x, weights, "int8")))(x)
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name == "quantized_matmul"]
    assert eqn.params["batch"] is None
    assert eqn.invars[0].aval.shape == (15, 64)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("activations", ["float32", "bfloat16", "int8"])
def test_nan_stays_in_its_row(weights, activations, name):
    x = np.random.default_rng(4).standard_normal((9, 64)).astype(np.float32)
    with kernels.using(quantized_matmul=name):
        good = quantized_matmul(x, weights, activations)
        x[5, 17] = np.nan
        x[7] = 0
        bad = quantized_matmul(x, weights, activations)
    assert np.isnan(bad[5]).all()
    assert (bad[7] == 0).all()
    np.testing.assert_array_equal(np.delete(bad, [5, 7], 0), np.delete(good, [5, 7], 0))


def test_outliers_of_a_vmapped_and_compiled_product(weights):
    rng = np.random.default_rng(5)
    sparse = Outliers.from_coordinates(
        rng.integers(0, 64, 20), rng.integers(0, 24, 20), rng.standard_normal(20), 24
    )
    w = dataclasses.replace(weights, outliers=sparse)
    x = jnp.asarray(rng.standard_normal((4, 3, 64)), jnp.float32)
    out = jax.jit(jax.vmap(lambda x: quantized_matmul(x, w)))(x)
    np.testing.assert_allclose(out, x @ w.dequantize(), rtol=1e-4, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda w: quantized_matmul(x, w).sum(), allow_int=True))(w)
    exact = x.sum((0, 1))[sparse.rows]
    np.testing.assert_allclose(gradient.outliers.values, exact, rtol=1e-4, atol=1e-4)


def from_codes(**changes):
    given = {"codes": np.zeros((64, 8), int), "scales": np.ones((2, 8)), "bits": 4, "group": 32}
    given |= changes
    return PackedWeights.from_codes(given.pop("codes"), given.pop("scales"), **given)


WRONG = [
    ({"bits": 5}, errors.KernelValueError, "width is not supported"),
    ({"group": 48}, errors.KernelValueError, "group size is not supported"),
    ({"codes": np.zeros((64, 8))}, errors.KernelDtypeError, "codes are integers"),
    ({"codes": np.zeros(64, int)}, errors.KernelShapeError, "Codes are a matrix"),
    ({"codes": np.full((64, 8), 16)}, errors.KernelValueError, "codes do not fit 4 bits"),
    ({"codes": np.full((64, 8), -1)}, errors.KernelValueError, "codes do not fit 4 bits"),
    ({"scales": np.ones((8, 2))}, errors.KernelShapeError, "scales do not fit"),
    ({"scales": np.ones((2, 8), int)}, errors.KernelDtypeError, "Scales are floats"),
    ({"zeros": np.zeros((1, 8), int)}, errors.KernelShapeError, "zeros do not fit"),
    ({"zeros": np.full((2, 8), 16)}, errors.KernelValueError, "zeros do not fit 4 bits"),
    ({"zeros": np.zeros((2, 8))}, errors.KernelDtypeError, "zeros are integers"),
    ({"codebook": np.zeros(8)}, errors.KernelShapeError, "one number for each code"),
    ({"codebook": np.zeros(256), "bits": 8}, errors.KernelShapeError, "at most 16"),
    ({"codebook": np.zeros(16, int)}, errors.KernelDtypeError, "codebook has floats"),
    (
        {"codebook": np.zeros(16), "zeros": np.zeros((2, 8), int)},
        errors.KernelValueError,
        "codebook has its own zero",
    ),
    (
        {"outliers": Outliers.from_coordinates([0], [0], [1.0], 9)},
        errors.KernelShapeError,
        "outliers do not fit",
    ),
    (
        {"outliers": Outliers.from_coordinates([64], [0], [1.0], 8)},
        errors.KernelValueError,
        "Outliers lie outside",
    ),
]


@pytest.mark.parametrize(("changes", "error", "match"), WRONG)
def test_wrong_weights(changes, error, match):
    with pytest.raises(error, match=match):
        from_codes(**changes)


def test_wrong_products(weights):
    for x, w, activations, error, match in [
        (jnp.ones((3, 63)), weights, "int8", errors.KernelShapeError, "x does not fit weights"),
        (jnp.ones(()), weights, "int8", errors.KernelShapeError, "x does not fit weights"),
        (jnp.ones((3, 64), int), weights, "int8", errors.KernelDtypeError, "Rows are floats"),
        (jnp.ones((3, 64)), weights, "int4", errors.KernelValueError, "no such activations"),
        (jnp.ones((3, 64)), jnp.ones((64, 8)), "int8", errors.KernelDtypeError, "not packed"),
    ]:
        with pytest.raises(error, match=match):
            quantized_matmul(x, w, activations)
    long = jax.eval_shape(
        lambda: PackedWeights.from_codes(
            jnp.zeros((2**17, 1), int), jnp.ones((1, 1)), bits=8, group=0
        )
    )
    with pytest.raises(errors.KernelValueError, match="do not fit 32 bits"):
        rows = jax.ShapeDtypeStruct((1, 2**17), jnp.float32)
        jax.eval_shape(lambda x, w: quantized_matmul(x, w, "int8"), rows, long)
    torn = dataclasses.replace(weights, packed=weights.packed[:1])
    with pytest.raises(errors.KernelShapeError, match="packed codes do not fit"):
        quantized_matmul(jnp.ones((3, 64)), torn)


@pytest.mark.skipif(bool(native.missing()), reason="no native library")
def test_outliers_that_only_run_time_knows_do_not_crash():
    sparse = Outliers.from_coordinates([0], [0], [1.0], 8)

    def f(rows):
        w = from_codes(outliers=Outliers(sparse.starts, rows, sparse.values))
        with kernels.using(outlier_matmul="native"):
            return quantized_matmul(jnp.ones((1, 64)), w)

    with pytest.raises(Exception, match="an outlier's row"):
        jax.block_until_ready(jax.jit(f)(jnp.array([1000], jnp.int32)))


def test_groups_count_a_short_last_one():
    assert [group_count(n, 32) for n in (0, 1, 32, 33)] == [0, 1, 1, 2]
    assert group_count(100, 0) == 1
