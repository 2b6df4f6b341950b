"""The Pallas forms of quantized_matmul, interpreted, by the rule that all implementations obey."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import kernel_checks
import numpy as np
import pallas_forms
import pytest

from varax import kernels
from varax.kernels.pallas import capability, cuda_capability, packed_layout, quantized
from varax.kernels.quant.layout import pack
from varax.kernels.quant.packed import PackedWeights
from varax.kernels.quant.product import quantized_matmul


def weights(rng, bits, group, inputs, outputs, asymmetric=False):
    groups = -(-inputs // group) if group else 1
    zeros = rng.integers(0, 2**bits, (groups, outputs)) if asymmetric else None
    codes = rng.integers(0, 2**bits, (inputs, outputs))
    scales = jnp.asarray(0.5 + rng.random((groups, outputs)), jnp.float32)
    return PackedWeights.from_codes(codes, scales, bits=bits, group=group, zeros=zeros)


def case(bits, activations, rows, inputs, outputs, group, asymmetric=False, axes=None):
    packed = weights(np.random.default_rng(0), bits, group, inputs, outputs, asymmetric)

    def function(x, scales):
        return quantized_matmul(x, dataclasses.replace(packed, scales=scales), activations)

    def arrays(rng):
        front = () if axes is None else (3,)
        return rng.standard_normal((*front, rows, inputs)), np.asarray(packed.scales, np.float64)

    name = f"w{bits}-{activations}-{rows}x{inputs}x{outputs}-{group}"
    name += "-asymmetric" * asymmetric + "-batch" * (axes is not None)
    return kernel_checks.Case(name, "quantized_matmul", function, arrays, axes)


CASES = [
    case(4, "float32", 3, 300, 40, 128),
    case(8, "float32", 2, 100, 20, 32, asymmetric=True),
    case(4, "bfloat16", 17, 130, 33, 64),
    case(8, "int8", 5, 300, 200, 0),
    case(4, "int8", 1, 200, 17, 32),
    case(4, "float32", 2, 64, 16, 64, axes=(0, None)),
    case(8, "bfloat16", 1, 1, 1, 0),
]


@pytest.mark.thin(3)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tpu_kernel_equals_the_definition(case):
    with jax.enable_x64(True), pallas_forms.interpreted_tpu(quantized) as name:
        kernel_checks.check(case, name, jnp.float32)


def test_integer_sums_are_exact():
    """With scales of one and rows that are their own integers, every product is an integer."""
    rng = np.random.default_rng(0)
    codes, x = rng.integers(0, 256, (300, 20)), rng.integers(-127, 128, (4, 300)).astype(np.float32)
    x[:, 0] = 127  # so that the step is one
    packed = PackedWeights.from_codes(codes, jnp.ones((1, 20)), bits=8, group=0)
    with pallas_forms.interpreted_tpu(quantized) as name, kernels.using(quantized_matmul=name):
        out = quantized_matmul(jnp.asarray(x), packed, "int8")
    assert (np.asarray(out) == x.astype(int) @ (codes - 128)).all()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activations", ["bfloat16", "int8"])
def test_the_gpu_kernel_equals_the_definition(bits, activations):
    rng = np.random.default_rng(0)
    packed = weights(rng, bits, 64, 130, 70)
    operands = (
        rng.standard_normal((3, 130)),
        np.asarray(packed.packed),
        np.asarray(packed.scales, np.float64),
        np.zeros((0, 0), np.uint8),
        np.zeros(0),
    )
    statics = {"bits": bits, "group": 64, "shape": packed.shape, "activations": activations}
    with jax.enable_x64(True):
        pallas_forms.check_interpreted_gpu(quantized, operands, **statics)


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_transposed_and_rows_follow(bits):
    """In both orders of the bytes, decoding them and reordering x gives x @ codes."""
    rng = np.random.default_rng(0)
    codes, x = rng.integers(0, 2**bits, (128, 32)), rng.integers(-3, 4, (2, 128))
    packed, expected = pack(codes, bits, 64), x @ codes
    by_input = np.asarray(packed_layout.by_input(packed)).astype(int)
    by_output = np.asarray(packed_layout.by_output(packed)).astype(int)
    if bits == 8:
        assert (x @ by_input == expected).all()
        assert (x @ by_output.T == expected).all()
        return
    blocks = by_input.reshape(2, 32, 32)  # two groups of 64 inputs, in 32 bytes
    apart = np.concatenate([blocks & 15, blocks >> 4], 1).reshape(128, 32)
    assert (np.asarray(packed_layout.halves_apart(jnp.asarray(x), 64)) @ apart == expected).all()
    together = np.stack([by_output & 15, by_output >> 4], -1).reshape(32, 128)
    assert (
        np.asarray(packed_layout.halves_together(jnp.asarray(x))) @ together.T == expected
    ).all()


@pytest.mark.parametrize(("parts", "bits"), [(1, 8), (2, 16), (3, 24)])
def test_a_float_is_a_sum_of_shorter_ones(parts, bits):
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    total = np.asarray(jax.jit(packed_layout.split, static_argnums=1)(x, parts), np.float64).sum(0)
    assert (abs(total - x) <= 2.0**-bits * abs(x)).all()


@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(x):
    parts = np.asarray(packed_layout.split(jnp.full((1, 1), x), 3), np.float32)
    np.testing.assert_equal(parts.sum(), np.float32(x))


def test_what_is_refused():
    def reason(platform, bits=4, group=64, activations="float32", codebook=None, **more):
        rng = np.random.default_rng(0)
        packed = weights(rng, bits, group, 64, 16, **more)
        if codebook is not None:
            packed = PackedWeights.from_codes(
                packed.unpack(), packed.scales, bits=bits, group=group, codebook=codebook
            )
        x = jnp.ones((2, 64), jnp.float32)

        def f(x):
            return quantized_matmul(x, packed, activations)

        (use,) = kernels.explain(f, x, platform=platform).uses[:1]
        return use.reasons[platform]["pallas"]

    assert reason("tpu") is None
    assert "8 or 4 bits, not 3" in reason("tpu", bits=3)
    assert "no codebooks" in reason("tpu", codebook=jnp.arange(16.0))
    assert "symmetric weights alone" in reason("tpu", activations="int8", asymmetric=True)
    assert "needs to know the GPU" in reason("cuda")
    with cuda_capability("9.0"):
        assert reason("cuda") is None
        assert "groups of 64 inputs at least" in reason("cuda", group=32)
        assert "symmetric weights alone" in reason("cuda", asymmetric=True)
    with cuda_capability("10.0"):
        assert "needs compute capability 9.x" in reason("cuda")


@pytest.mark.parametrize(("kind", "refused"), [("TPU v4", True), ("TPU v5 lite", False)])
def test_old_tpus_have_no_integer_products(monkeypatch, kind, refused):
    def devices(platform):
        return [types.SimpleNamespace(device_kind=kind)]

    monkeypatch.setattr(capability.jax, "devices", devices)
    assert bool(capability.no_integer_products()) == refused
