"""Pallas kernels on a machine without TPU or GPU: interpreted."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_checks import TINY

from varax.kernels import Call
from varax.kernels.frame.operation import OPERATIONS


@contextlib.contextmanager
def interpreted_tpu(module):
    """A TPU kernel as an implementation on CPU that runs where it is forced; gives its name."""
    found = OPERATIONS[module.operation.name].implementations
    form = module.form("tpu", "pallas_on_tpu", "cpu", interpret=True)
    found.append(form)  # after "xla", which serves every call
    try:
        yield form.name
    finally:
        found.remove(form)


def gpu_interpreter():
    """JAX's emulation of a GPU's memories, barriers and copies (private)."""
    params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    return params.InterpretGPUParams()


def check_interpreted_gpu(module, operands, batched=None, sizes=None, **statics):
    """The rule of `kernel_checks`, for a GPU kernel called as the lowering calls it.

    Where terms cancel, a sum is only as right as its terms: `sizes(operands, cotangent)` gives sums
    of absolute terms, an array for each result, in whose units rounding is counted then.

    Not by way of the operation: the emulation has ordered effects, which a lowering rule cannot
    have. float64 must be enabled.
    """
    form = module.form("cuda", interpret=gpu_interpreter())
    batched = batched or (False,) * len(operands)
    batch = next((x.shape[0] for x, has in zip(operands, batched, strict=True) if has), None)

    def run(form, dtype, cotangents):
        arrays = [
            jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)
            for x in operands
        ]
        structs = tuple(
            jax.ShapeDtypeStruct(x.shape[int(has) :], x.dtype)
            for x, has in zip(arrays, batched, strict=True)
        )
        call = Call(structs, batch, batched, statics, form.adjoint is not None, "cuda")
        assert form.refuse(call) is None
        outputs, residuals = form.value(call, *arrays)
        back = ()
        if form.adjoint is not None and wants_adjoint:
            cotangents = [jnp.asarray(c, dtype) for c in cotangents(outputs)]
            back = form.adjoint(call, tuple(arrays), residuals, cotangents)
        return [np.asarray(x, np.float64) for x in (*outputs, *back) if x is not None]

    def cotangents(outputs):
        rng = np.random.default_rng(1)
        return [rng.standard_normal(x.shape) for x in outputs]

    found = OPERATIONS[module.operation.name].implementations
    plain = next(form for form in found if form.name == "xla")
    wants_adjoint = form.adjoint is not None
    exact, slow = (run(plain, dtype, cotangents) for dtype in (jnp.float64, jnp.float32))
    fast = run(form, jnp.float32, cotangents)
    counted = exact if sizes is None else sizes(operands, *cotangents(exact[:1]))
    for t, s, q, size in zip(exact, slow, fast, counted, strict=True):
        assert q.shape == t.shape
        finite = np.isfinite(t) & np.isfinite(s)
        t, s, q, size = (np.where(finite, x, 0) for x in (t, s, q, size))  # as in `kernel_checks`
        allowed = 2 * abs(s - t).max() + TINY * float(jnp.finfo(jnp.float32).eps) * abs(size).max()
        assert abs(q - t).max() <= allowed
