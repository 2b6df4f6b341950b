"""Products with packed weights against XLA's own products, torch and onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels.quant import NF4, PackedWeights, quantized_matmul
from varax.kernels.quant.layout import group_count

Candidates = dict[str, Callable[[], Any]]


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
                    (4, 128, "float32", "nf4"),
                    (8, 128, "float32", ""),
                    (3, 128, "int8", ""),
                ]
            found += [_entry(rows, inputs, outputs, *scheme) for scheme in schemes]
    found.append(_gradient(8, size, size))
    return found


def _weights(
    inputs: int, outputs: int, bits: int, group: int, grid: str
) -> tuple[PackedWeights, np.ndarray]:
    """Random weights, and the matrix that they mean."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 1.5, (group_count(inputs, group), outputs)) / (2**bits * inputs**0.5)
    packed = PackedWeights.from_codes(
        rng.integers(0, 2**bits, (inputs, outputs), dtype=np.uint8),
        scales.astype(np.float32),
        bits=bits,
        group=group,
        codebook=np.array(NF4, np.float32) if grid == "nf4" else None,
    )
    return packed, np.asarray(packed.dequantize())


def _entry(
    rows: int, inputs: int, outputs: int, bits: int, group: int, activations: str, grid: str
) -> Entry:
    def make() -> Candidates:
        packed, dense = _weights(inputs, outputs, bits, group, grid)
        x = np.random.default_rng(1).standard_normal((rows, inputs)).astype(np.float32)
        own = jax.jit(quantized_matmul, static_argnums=2)
        rows_of_x, plain, matrix = jnp.asarray(x), jax.jit(jnp.matmul), jnp.asarray(dense)
        candidates: Candidates = {
            "varax": lambda: own(rows_of_x, packed, activations),
            "plain XLA": lambda: plain(rows_of_x, matrix),
        }
        if activations == "int8" and bits == 8:
            candidates["XLA int8 dot"] = _xla_int8(x, dense)
        for name, peer in (("torch", _torch), ("onnxruntime", _onnxruntime)):
            if importlib.util.find_spec(name) is not None:
                candidates |= peer(x, dense, bits)
        return candidates

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
    )


def _gradient(rows: int, inputs: int, outputs: int) -> Entry:
    def make() -> Candidates:
        packed, dense = _weights(inputs, outputs, 4, 128, "")
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


def _torch(x: np.ndarray, dense: np.ndarray, bits: int) -> Candidates:
    """torch's dynamically quantized linear layer (8 bits) or its packed int4 product (bfloat16)."""
    import torch

    inputs, outputs = dense.shape
    rows = torch.from_numpy(x)
    if bits == 8:
        layer = torch.nn.Linear(inputs, outputs, bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(dense.T.copy()))
        model = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8
        )

        def int8() -> Any:
            with torch.no_grad():
                return model(rows)

        return {"torch int8 dynamic": int8}
    if bits != 4 or not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return {}
    ops, group = torch.ops.aten, 128
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    packed = ops._convert_weight_to_int4pack_for_cpu(codes, 2)
    scales = torch.full((inputs // group, outputs, 2), 0.01, dtype=torch.bfloat16)
    narrow = rows.to(torch.bfloat16)
    return {
        "torch int4 pack": lambda: ops._weight_int4pack_mm_for_cpu(narrow, packed, group, scales)
    }


def _onnxruntime(x: np.ndarray, dense: np.ndarray, bits: int) -> Candidates:
    """MatMulNBits of onnxruntime: 4 bits, blocks of 128, integer accumulation."""
    if bits != 4 or importlib.util.find_spec("onnx") is None:
        return {}
    import onnx
    import onnxruntime

    inputs, outputs = dense.shape
    rng = np.random.default_rng(0)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    constants = {
        "codes": rng.integers(0, 256, (outputs, inputs // 128, 64), dtype=np.uint8),
        "scales": np.full((outputs * inputs // 128,), 0.01, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=128,
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
    return {"onnxruntime MatMulNBits": lambda: session.run(None, {"x": x})[0]}
