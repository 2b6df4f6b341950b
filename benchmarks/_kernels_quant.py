"""Products with packed weights against XLA's own products, torch and onnxruntime.

Weights come from memory, as those of a network do: every candidate goes through copies of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels.quant import NF4, Outliers, PackedWeights, quantized_matmul
from varax.kernels.quant.layout import group_count

Candidates = dict[str, Callable[[], Any]]
COLD = 1 << 28  # bytes: more than caches hold


def entries(quick: bool) -> list[Entry]:
    """Batches of 1, 8 and 64 rows; weights of 4096 x 4096 (quick: 1024 x 1024)."""
    size = 1024 if quick else 4096
    shapes = [(size, size)] if quick else [(size, size), (size, 11008)]
    found = []
    for inputs, outputs in shapes:
        for rows in (1, 8, 64):
            schemes = [(4, 128, "int8", ""), (8, 0, "int8", "")]
            if outputs == size:
                schemes += [
                    (4, 128, "float32", ""),
                    (4, 128, "float32", "nf4"),
                    (8, 128, "float32", ""),
                    (3, 128, "int8", ""),
                ]
            found += [_entry(rows, inputs, outputs, *scheme) for scheme in schemes]
    found += [_with_outliers(rows, size, size) for rows in (1, 8)]
    found.append(_gradient(8, size, size))
    return found


def _weights(
    inputs: int, outputs: int, bits: int, group: int, grid: str
) -> tuple[PackedWeights, np.ndarray, np.ndarray, np.ndarray]:
    """Random weights, the matrix that they mean, and their codes and scales."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 1.5, (group_count(inputs, group), outputs)) / (2**bits * inputs**0.5)
    scales = scales.astype(np.float32)
    codes = rng.integers(0, 2**bits, (inputs, outputs), dtype=np.uint8)
    packed = PackedWeights.from_codes(
        codes,
        scales,
        bits=bits,
        group=group,
        codebook=np.array(NF4, np.float32) if grid == "nf4" else None,
    )
    return packed, np.asarray(packed.dequantize()), codes, scales


def _cold(make: Callable[[], Callable[[], Any]], size: int) -> Callable[[], Any]:
    """A product whose weights, of `size` bytes, are not in a cache: those of copies in turn."""
    copies = itertools.cycle([make() for _ in range(-(-COLD // size))])
    return lambda: next(copies)()


def _entry(
    rows: int, inputs: int, outputs: int, bits: int, group: int, activations: str, grid: str
) -> Entry:
    def make() -> Candidates:
        packed, dense, codes, scales = _weights(inputs, outputs, bits, group, grid)
        x = np.random.default_rng(1).standard_normal((rows, inputs)).astype(np.float32)
        own = jax.jit(quantized_matmul, static_argnums=2)
        rows_of_x, plain = jnp.asarray(x), jax.jit(jnp.matmul)

        def product(f: Any, weights: Any, *more: Any) -> Callable[[], Any]:
            copied = jax.tree.map(jnp.array, weights)
            return lambda: f(rows_of_x, copied, *more)

        makers = {
            "varax": (bits, lambda: product(own, packed, activations)),
            "plain XLA": (32, lambda: product(plain, dense)),
        }
        if activations == "int8" and bits == 8:
            makers["XLA int8 dot"] = (8, lambda: _xla_int8(x, dense))
        torch, onnx = (importlib.util.find_spec(p) is not None for p in ("torch", "onnxruntime"))
        if bits == 8 and activations == "int8" and torch:
            makers["torch int8 dynamic"] = (8, lambda: _torch_int8(x, dense))
        if bits == 4 and not grid and activations == "float32" and torch:
            makers["torch int4 pack (bfloat16)"] = (4, lambda: _torch_int4(x, codes, scales))
        if bits == 4 and not grid and activations == "int8" and onnx:
            makers["onnxruntime MatMulNBits"] = (4, lambda: _onnxruntime(x, codes, scales))
        return {k: _cold(make, inputs * outputs * b // 8) for k, (b, make) in makers.items()}

    # Codes and scales are read once; rows and results are small beside them.
    size = inputs * outputs * bits / 8 + 4 * group_count(inputs, group) * outputs
    return Entry(
        operation="quantized_matmul",
        what=f"w{bits}{grid and f' ({grid})'} a{'8' if activations == 'int8' else '32'}",
        size=f"{rows} x {inputs} x {outputs}, group {group or inputs}",
        make=make,
        calls=10 if rows < 64 else 3,
        bytes=size + 4 * rows * (inputs + outputs),
        flops=2 * rows * inputs * outputs,
        kind="int8" if activations == "int8" else "float32",
        # Rows in 7 bits or 8, one step a row or a block, bfloat16: each rounds in its own way.
        tolerance=0.05 if activations == "int8" else 0.02,
    )


def _with_outliers(rows: int, inputs: int, outputs: int) -> Entry:
    """One weight in 200 besides as a float32 of its own."""
    count = inputs * outputs // 200

    def make() -> Candidates:
        packed, dense, _, _ = _weights(inputs, outputs, 4, 128, "")
        rng = np.random.default_rng(2)
        at = np.unravel_index(rng.choice(inputs * outputs, count, replace=False), (inputs, outputs))
        values = rng.standard_normal(count).astype(np.float32)
        sparse = Outliers.from_coordinates(*at, values, outputs)
        packed = dataclasses.replace(packed, outliers=sparse)
        dense = dense.copy()
        dense[at] += values
        x = jnp.asarray(rng.standard_normal((rows, inputs)), jnp.float32)
        own, plain = jax.jit(quantized_matmul), jax.jit(jnp.matmul)

        def product(f: Any, weights: Any) -> Callable[[], Any]:
            copied = jax.tree.map(jnp.array, weights)
            return lambda: f(x, copied)

        return {
            "varax": _cold(lambda: product(own, packed), inputs * outputs // 2 + 8 * count),
            "plain XLA": _cold(lambda: product(plain, dense), inputs * outputs * 4),
        }

    return Entry(
        operation="quantized_matmul",
        what="w4 a32 and 0.5 % outliers",
        size=f"{rows} x {inputs} x {outputs}, group 128",
        make=make,
        calls=10,
        bytes=inputs * outputs / 2 + 8 * count + 4 * group_count(inputs, 128) * outputs,
        flops=2 * rows * (inputs * outputs + count),
    )


def _gradient(rows: int, inputs: int, outputs: int) -> Entry:
    def make() -> Candidates:
        packed, dense, _, _ = _weights(inputs, outputs, 4, 128, "")
        x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, inputs)), jnp.float32)
        matrix = jnp.asarray(dense)
        own = jax.jit(jax.value_and_grad(lambda x, w: (quantized_matmul(x, w) ** 2).sum()))
        plain = jax.jit(jax.value_and_grad(lambda x, w: ((x @ w) ** 2).sum()))
        return {"varax": lambda: own(x, packed), "plain XLA": lambda: plain(x, matrix)}

    return Entry(
        operation="quantized_matmul",
        what="w4 a32, value and gradient in x",
        size=f"{rows} x {inputs} x {outputs}, group 128",
        make=make,
        bytes=2 * (inputs * outputs / 2 + 4 * group_count(inputs, 128) * outputs),
        flops=4 * rows * inputs * outputs,
    )


def _xla_int8(x: np.ndarray, dense: np.ndarray) -> Callable[[], Any]:
    """int8 x int8 -> int32 by XLA, with dynamic steps of the rows."""
    step = abs(dense).max(0) / 127
    matrix = jnp.asarray(np.round(dense / step).astype(np.int8))

    @jax.jit
    def product(x: Any, matrix: Any) -> Any:
        size = jnp.abs(x).max(-1, keepdims=True) / 127
        q = jnp.round(x / size).astype(jnp.int8)
        sums = jnp.matmul(q, matrix, preferred_element_type=jnp.int32)
        return sums * size * step

    rows = jnp.asarray(x)
    return lambda: product(rows, matrix)


def _torch_int8(x: np.ndarray, dense: np.ndarray) -> Callable[[], Any]:
    """torch's dynamically quantized linear layer."""
    import torch

    inputs, outputs = dense.shape
    rows = torch.from_numpy(x)
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    layer.weight = torch.nn.Parameter(torch.from_numpy(dense.T.copy()))
    model = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(layer),
        {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig},
        dtype=torch.qint8,
    )

    def call() -> Any:
        with torch.no_grad():
            return model(rows).numpy()

    return call


def _torch_int4(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> Callable[[], Any]:
    """torch's packed int4 product: rows, scales and results are bfloat16."""
    import torch

    ops = torch.ops.aten
    turned = torch.from_numpy(codes.T.astype(np.int32))
    packed = ops._convert_weight_to_int4pack_for_cpu(turned, 2)
    both = torch.from_numpy(np.stack([scales, np.zeros_like(scales)], -1)).to(torch.bfloat16)
    narrow = torch.from_numpy(x).to(torch.bfloat16)
    group = codes.shape[0] // scales.shape[0]

    def call() -> Any:
        return ops._weight_int4pack_mm_for_cpu(narrow, packed, group, both).float().numpy()

    return call


def _onnxruntime(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> Callable[[], Any]:
    """MatMulNBits of onnxruntime: 4 bits, blocks of a group, integer accumulation."""
    import onnx
    import onnxruntime

    (inputs, outputs), groups = codes.shape, scales.shape[0]
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    pairs = codes.T.reshape(outputs, groups, inputs // groups // 2, 2)
    constants = {
        "codes": pairs[..., 0] | pairs[..., 1] << 4,
        "scales": np.ascontiguousarray(scales.T).reshape(-1),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=inputs // groups,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", floats, list(x.shape))],
        [helper.make_tensor_value_info("y", floats, [len(x), outputs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})[0]
