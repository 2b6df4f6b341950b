"""Compile the Pallas kernels for devices that are not here: `aot_program.py v5e:2x2`, `... sm_90a`.

Prints a line of JSON per kernel: its name, and the compiler's error or null. Kernels whose names
begin with "wrong" must be rejected. Run in a process of its own: it loads libtpu or the CUDA
plugin.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from varax.kernels.pallas import cuda_capability
from varax.kernels.quant.layout import group_count, packed_shape, padded_inputs

# An H100 as XLA describes one: its data sheet, in the fields of GpuTargetConfigProto.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98  threads_per_warp: 32
  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000  device_memory_size: 84978434048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def covariance_kernels(module):
    kinds = ("matern12", "matern52", "rational_quadratic")
    for kind in kinds:
        for n, m, p, k in ((5, 7, 2, 1), (700, 900, 3, 3)):
            name = f"covariance {kind} {n}x{m}x{p}x{k}"
            alpha = f32()
            matvec, pull = (functools.partial(f, kind) for f in (module.matvec, module.pull))
            yield f"{name} value", matvec, (f32(n, p), f32(m, p), f32(m, k), alpha)
            yield f"{name} adjoint", pull, (f32(n, p), f32(m, p), f32(n, k), f32(m, k), alpha)


def hmm_kernels(module, *sizes):
    for steps, states, chains in ((5, 3, 7), (300, 8, 300), *sizes):
        numbers, rows = f32(steps, states, chains), f32(steps, chains)
        square, name = f32(states, states), f"hmm {steps}x{states}x{chains}"
        yield f"{name} value", module.forward, (f32(states, chains), square, numbers)
        back = (square, numbers, numbers, rows, rows, f32(chains))
        yield f"{name} adjoint", lambda *a: module.backward(*a, None), back
        yield f"{name} adjoint of all", module.backward, (*back, numbers)


def quantized_kernels(module, groups, integers=True):
    for bits in (4, 8):
        for dtype, parts in ((jnp.bfloat16, 3), (jnp.bfloat16, 1), (jnp.int8, 1))[: 2 + integers]:
            for rows, inputs, outputs, group in ((1, 300, 130, g) for g in groups):
                if group == 32 and module.__name__.endswith("gpu"):
                    continue  # refused there
                statics = {"bits": bits, "group": group, "outputs": outputs}
                f = functools.partial(_symmetric, module.matmul, statics)
                yield (
                    f"quantized w{bits} {parts} x {dtype.__name__} group {group}",
                    f,
                    (
                        jax.ShapeDtypeStruct((parts, rows, padded_inputs(inputs, group)), dtype),
                        jax.ShapeDtypeStruct(
                            packed_shape((inputs, outputs), bits, group), jnp.uint8
                        ),
                        f32(group_count(inputs, group), outputs),
                    ),
                )


def _symmetric(matmul, statics, x, packed, scales):
    return matmul(x, packed, scales, None, **statics)


def wrong_on_tpu():
    from varax.kernels.pallas import hmm_tpu

    class Five(hmm_tpu.Blocks):
        def of(self, steps, states):
            return 5

    def call(body, shape, block, **more):
        return pl.pallas_call(
            body,
            out_shape=f32(*shape),
            grid=(2,),
            in_specs=[pl.BlockSpec(block, lambda i: (i, 0))],
            out_specs=pl.BlockSpec(block, lambda i: (i, 0)),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
            **more,
        )

    def double(x, out):
        out[...] = 2 * x[...]

    def sort(x, out):
        out[...] = jnp.sort(x[...], 1)

    yield (
        "wrong: blocks that are not whole tiles",
        call(double, (10, 256), (5, 100)),
        (f32(10, 256),),
    )
    yield (
        "wrong: an operation that Mosaic has not",
        call(sort, (16, 128), (8, 128)),
        (f32(16, 128),),
    )
    yield (
        "wrong: blocks of five steps",
        functools.partial(hmm_tpu.forward, blocks=Five()),
        (f32(3, 256), f32(3, 3), f32(20, 3, 256)),
    )
    large = (2 * 8192, 8192)
    yield "wrong: more than the vector memory", call(double, large, (8192, 8192)), (f32(*large),)


def wrong_on_gpu():
    def call(body, size, scratch):
        return plgpu.kernel(
            body,
            out_type=f32(64, size),
            grid=(1,),
            grid_names=("i",),
            scratch_types=(plgpu.SMEM((64, scratch), jnp.float32),),
            compiler_params=plgpu.CompilerParams(
                lowering_semantics=plgpu.LoweringSemantics.Warpgroup
            ),
        )

    def copied(function):
        def body(x, out, scratch):
            scratch[...] = function(plgpu.layout_cast(x[...], plgpu.Layout.WGMMA))
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(scratch, out)
            plgpu.wait_smem_to_gmem(0)

        return body

    identity = copied(lambda x: x)
    yield "wrong: rows that no layout has", call(identity, 12, 12), (f32(64, 12),)
    yield (
        "wrong: an operation that Mosaic has not",
        call(copied(jax.lax.lgamma), 16, 16),
        (f32(64, 16),),
    )
    yield "wrong: more than the shared memory", call(identity, 1024, 1024), (f32(64, 1024),)


def main(target):
    if target == "sm_90a":
        from varax.kernels.pallas import covariance_gpu as covariance
        from varax.kernels.pallas import hmm_gpu as hmm
        from varax.kernels.pallas import quantized_gpu as quantized

        platform, wrong = "cuda", wrong_on_gpu
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=H100, topology="1x1x1"
        )
    else:
        from varax.kernels.pallas import covariance_tpu as covariance
        from varax.kernels.pallas import hmm_tpu as hmm
        from varax.kernels.pallas import quantized_tpu as quantized

        platform, wrong = "tpu", wrong_on_tpu
        topology = topologies.get_topology_desc(topology_name=target, platform="tpu")
    where = jax.sharding.SingleDeviceSharding(topology.devices[0])
    groups = (0, 32, 128) if target in ("v5e:2x2", "sm_90a") else (128,)
    right = (
        *covariance_kernels(covariance),
        *quantized_kernels(quantized, groups, integers=not target.startswith("v4")),  # refused
        *hmm_kernels(hmm, *((20, 256, 130),) * (platform == "tpu")),
    )
    for name, f, structs in (*right, *wrong()):
        structs = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for s in structs]
        error = None
        try:
            with cuda_capability("9.0"):
                lowered = jax.jit(lambda *a, f=f: f(*a)).trace(*structs)
                lowered.lower(lowering_platforms=(platform,)).compile()
        except Exception as e:  # whatever a compiler raises
            error = f"{type(e).__name__}: {e}"[:1000]
        print(json.dumps({"kernel": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
