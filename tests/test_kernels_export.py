"""One artifact for cpu, cuda and tpu, made on this machine, with each platform's kernels in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from varax import kernels
from varax.kernels import artifact, native
from varax.kernels.errors import VaraxError
from varax.kernels.gp import covariance_matmul
from varax.kernels.mp import hmm_filter
from varax.kernels.pallas import cuda_capability
from varax.kernels.quant.packed import PackedWeights
from varax.kernels.quant.product import quantized_matmul

export = pytest.importorskip("jax.export")
pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers")

RNG = np.random.default_rng(0)
WEIGHTS = PackedWeights.from_codes(
    RNG.integers(0, 16, (128, 40)), np.float32(RNG.random((2, 40))), bits=4, group=64
)
INITIAL, TRANSITIONS = np.full(3, 1 / 3, np.float32), np.full((3, 3), 1 / 3, np.float32)
X = RNG.standard_normal((20, 128)).astype(np.float32)


def everything(x):
    """All three operations, and plain XLA."""
    features = jnp.tanh(quantized_matmul(x, WEIGHTS))
    points, vectors = features[:, :2], features[:, 2:4]
    smooth = covariance_matmul("matern52", points, points, vectors, length_scale=0.7)
    chains = features.reshape(-1)[:768].reshape(64, 4, 3)
    evidence = jax.vmap(lambda x: hmm_filter(INITIAL, TRANSITIONS, x)[0])(chains)
    return evidence.sum() + jnp.sum(smooth**2)


def both(x):
    return jax.value_and_grad(everything)(x)


@pytest.fixture(scope="module")
def blob():
    with cuda_capability("9.0"):
        return artifact.export(both, X)


def test_each_platform_has_its_kernels(blob):
    module = export.deserialize(bytearray(blob)).mlir_module()
    assert module.count("tpu_custom_call") >= 3
    assert module.count("mosaic_gpu") >= 3
    assert "varax_" not in module  # nothing of the native library


def test_it_runs_here(blob):
    value, gradient = artifact.load(blob)(X)
    with kernels.using("xla"):
        expected = both(X)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-3, atol=1e-4)


def test_without_a_word_about_the_gpu_xla_is_exported():
    module = export.deserialize(bytearray(artifact.export(everything, X))).mlir_module()
    assert "mosaic_gpu" not in module
    assert "tpu_custom_call" in module


@pytest.mark.skipif(native.missing() is not None, reason="no native library")
def test_native_kernels_are_exported_if_asked_for():
    blob = artifact.export(both, X, platforms=("cpu",), native=True)
    assert "varax_covariance" in export.deserialize(bytearray(blob)).mlir_module()
    value, _ = artifact.load(blob)(X)
    np.testing.assert_allclose(value, everything(X), rtol=1e-5)


def test_native_kernels_need_a_library(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: "was not built")
    with pytest.raises(VaraxError, match="The native library was not built"):
        artifact.export(both, X, native=True)


def test_a_compiled_function_is_compiled_anew_for_another_gpu():
    f = jax.jit(everything)

    def module():
        lowered = f.trace(X).lower(lowering_platforms=("cuda",))
        return lowered.as_text()

    assert "mosaic_gpu" not in module()
    with cuda_capability("9.0"):
        assert "mosaic_gpu" in module()
    with cuda_capability("8.9"):
        assert "mosaic_gpu" not in module()


def test_a_capability_is_a_version():
    with pytest.raises(VaraxError, match="not a compute capability"), cuda_capability("Hopper"):
        pass
