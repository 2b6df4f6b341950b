"""The Pallas forms of `hmm_filter` and `hmm_smoother`: Mosaic TPU, Mosaic GPU.

Batches of chains that share their transitions, one chain a lane (TPU) or a thread (GPU), in blocks
of steps. A single chain, or a few, are for the form that is parallel in time: a step of a loop
takes as long for one chain as for all lanes.

Arrays come to the kernels as [N, K, B], so that a sum over states crosses no lanes; XLA turns them
around. It also adds up the evidence, and makes the cotangent of the transitions, a product over
steps of what the backward kernel leaves.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from ..frame import Call, Implementation
from ..mp.chain_filter import filter_operation as operation
from ..mp.chain_smoother import smoothed_by, smoother_operation
from ..mp.chain_steps import evidence_of, transitions_bar_of
from .capability import too_old
from .limits import only_float32, some_size_is_zero

FEWEST = 32  # chains; an estimate: with fewer, most of the lanes would be empty
STATES = {"tpu": 256, "cuda": 8}  # at most: vector memory; registers, and size of the code

_FILES = {"tpu": "tpu", "cuda": "gpu"}


def form(backend: str, name: str = "pallas", platform: str = "", interpret: Any = None) -> Any:
    """The implementation for "tpu" or "cuda"; on another platform where it is interpreted."""

    def refuse(call: Call) -> str | None:
        old = too_old() if backend == "cuda" and interpret is None else None
        fewest = FEWEST if interpret is None else 1
        return (
            old
            or only_float32(call)
            or _not_served(call, fewest, STATES[backend])
            or some_size_is_zero(call)
        )

    @functools.cache
    def kernels() -> Any:  # imported when something is lowered: Pallas takes a while to import
        module = importlib.import_module(f".hmm_{_FILES[backend]}", __package__)
        more = {} if interpret is None else {"interpret": interpret}
        return functools.partial(module.forward, **more), functools.partial(module.backward, **more)

    def value(call: Call, initial: Any, transitions: Any, logs: Any) -> Any:
        initial = jnp.broadcast_to(initial, (call.batch, *call.operands[0].shape))
        logs = jnp.broadcast_to(logs, (call.batch, *call.operands[2].shape))
        found = kernels()[0](initial.T, transitions, logs.transpose(1, 2, 0))
        filtered, shift, scale = found[0].transpose(2, 0, 1), found[1].T, found[2].T
        evidence = jax.vmap(evidence_of)(shift, scale)
        return (evidence, filtered), (filtered, shift, scale) if call.save else ()

    def adjoint(call: Call, operands: Any, residuals: Any, cotangents: Any) -> Any:
        _, transitions, logs = operands
        logs = jnp.broadcast_to(logs, (call.batch, *call.operands[2].shape))
        filtered, shift, scale = residuals
        evidence_bar, filtered_bar = cotangents
        evidence_bar = jnp.zeros(call.batch, logs.dtype) if evidence_bar is None else evidence_bar
        logs_bar, q = kernels()[1](
            transitions,
            logs.transpose(1, 2, 0),
            filtered.transpose(1, 2, 0),
            shift.T,
            scale.T,
            evidence_bar,
            None if filtered_bar is None else filtered_bar.transpose(1, 2, 0),
        )
        q = q.transpose(2, 0, 1)
        of_each = jax.vmap(transitions_bar_of, (None, 0, 0))
        return q[:, 0], of_each(transitions, filtered, q[:, 1:]), logs_bar.transpose(2, 0, 1)

    return Implementation(name, (platform or backend,), value, adjoint, refuse=refuse)


def _not_served(call: Call, fewest: int, most: int) -> str | None:
    states = call.operands[2].shape[1]
    if call.batch is None or call.batch < fewest:
        chains = "one chain" if call.batch is None else f"{call.batch} chains"
        return f"has batches of at least {fewest} chains (jax.vmap), not {chains}"
    if call.batched[1] or len(call.operands[1].shape) == 3:
        return "has transitions that all chains and steps share"
    if states > most:
        return f"has at most {most} states, not {states}"
    return None


def smoother(filter_form: Implementation) -> Implementation:
    """The smoother by a form of the filter; its derivative is another form's."""
    by = smoothed_by(filter_form)
    return Implementation(filter_form.name, filter_form.platforms, by, refuse=filter_form.refuse)


for _backend in _FILES:
    _form = form(_backend)
    operation.add(_form)
    smoother_operation.add(smoother(_form))
