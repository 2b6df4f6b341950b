"""`vx.quantize`: the linear layers of a module in few bits.

small = vx.quantize(net, Scheme(bits=4))
small = vx.quantize(net, Scheme(bits=3, method="gptq"), calibration=images)
small = vx.quantize(nets, scheme, calibration=lambda nets: bound(nets, images))
vx.quantization_report(net, small)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..kernels.errors import KernelError
from ..kernels.quant import Scheme
from ..kernels.quant.observe import Moments, observe
from .errors_quantize import QuantizationError
from .quantized_linear import QuantizedLinear, check_input


def quantize(module: Any, scheme: Scheme, calibration: Any = None) -> Any:
    """A module whose `eqx.nn.Linear` layers are `QuantizedLinear`, otherwise the same.

    Args:
        module: an Equinox module, or any pytree of modules.
        scheme: how: `vx.kernels.quant.Scheme`; its `skip` names layers to be left alone, by their
            paths (`layers/0`, `decoder/*`).
        calibration: typical inputs, from which each layer's inputs follow: an array [M, ...], or a
            tuple of arrays for the module's arguments, which is called as
            `jax.vmap(module)(*arrays)`; or a function of the module, which runs it in any way.
            Needed by the method "gptq"; chooses outliers by their effect.

    Returns:
        The new module. A layer that occurs at several places is quantized once.

    Raises:
        QuantizationError: no linear layer; weights of several layers in one array; calibration
            that does not fit the module, or does not reach a layer that needs it.
        KernelValueError: weights or calibration that are not finite; weights that are traced.
    """
    if not isinstance(scheme, Scheme):
        raise QuantizationError(
            "A way to quantize is given by a scheme.",
            expected="vx.kernels.quant.Scheme(bits=4, ...)",
            got=repr(scheme),
        )
    layers = _chosen(module, scheme)
    if scheme.method == "gptq" and calibration is None:
        raise QuantizationError(
            "GPTQ needs calibration inputs.",
            expected="calibration=inputs, or a function that runs the module",
            got=None,
            fix='vx.quantize(module, scheme, calibration=inputs), or the method "nearest"',
        )
    moments = layer_moments(module, calibration) if calibration is not None else Moments()
    done: dict[int, QuantizedLinear] = {}

    def new(path: str, layer: Any) -> Any:
        if path not in layers:
            return layer
        if id(layer.weight) not in done:
            done[id(layer.weight)] = _quantized(path, layer, scheme, moments)
        return done[id(layer.weight)]

    return _replaced(module, new)


def _quantized(
    path: str, layer: eqx.nn.Linear, scheme: Scheme, moments: Moments
) -> QuantizedLinear:
    name = id(layer.weight)
    if scheme.method == "gptq" and name not in moments:
        raise QuantizationError(
            "No calibration input reached this layer.",
            address=path,
            expected="a calibration that calls every layer",
            fix=f'skip it: Scheme(skip=("{path}",)); or calibrate by a function that uses it',
        )
    try:
        return QuantizedLinear.of(layer, scheme, moments.get(name))
    except KernelError as error:
        error.add_note(f"in the layer {path or 'itself'}")
        raise


def linear_layers(module: Any) -> dict[str, eqx.nn.Linear | QuantizedLinear]:
    """All linear layers of a pytree by their paths: `decoder/layers/0`."""
    found: dict[str, Any] = {}

    def note(path: str, layer: Any) -> Any:
        found[path] = layer
        return layer

    _replaced(module, note)
    return found


def layer_moments(module: Any, calibration: Any) -> Moments:
    """Second moments of the inputs of every `eqx.nn.Linear`, by the id of its weights.

    Raises:
        QuantizationError: the calibration does not fit the module.
    """
    moments = Moments()
    observed = _replaced(
        module, lambda p, x: _Observed(x, p, moments) if isinstance(x, eqx.nn.Linear) else x
    )
    jax.block_until_ready(eqx.filter(_run(observed, calibration), eqx.is_array))
    jax.effects_barrier()
    return moments


class _Observed(eqx.Module):
    """A linear layer that notes its inputs."""

    layer: eqx.nn.Linear
    path: str = eqx.field(static=True)
    moments: Moments = eqx.field(static=True)
    name: int = eqx.field(static=True)

    def __init__(self, layer: eqx.nn.Linear, path: str, moments: Moments):
        self.layer, self.path, self.moments, self.name = layer, path, moments, id(layer.weight)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        seen = observe(self.moments, self.name, check_input(self.layer, x, self.path))
        return self.layer(seen.reshape(jnp.shape(x)), key=key)


def _run(module: Any, calibration: Any) -> Any:
    if callable(calibration) and not eqx.is_array_like(calibration):
        return calibration(module)
    inputs = calibration if isinstance(calibration, tuple) else (calibration,)
    if not callable(module):
        raise QuantizationError(
            "Calibration inputs need a module that can be called.",
            expected="a function of the module",
            got=f"inputs for a {type(module).__name__}",
            fix="calibration=lambda modules: jax.vmap(modules['decoder'])(inputs)",
        )
    try:
        arrays = [jnp.asarray(x) for x in inputs]
        return jax.vmap(module)(*arrays)
    except (TypeError, ValueError) as error:
        raise QuantizationError(
            "The calibration inputs do not fit the module.",
            expected="arrays with an axis of examples in front, as jax.vmap(module) takes them",
            got=", ".join(str(list(getattr(x, "shape", ()))) for x in inputs),
            fix=f"{type(error).__name__}: {str(error).splitlines()[0]}",
        ) from error


def _chosen(module: Any, scheme: Scheme) -> dict[str, eqx.nn.Linear]:
    """The layers to quantize."""
    found = {p: x for p, x in linear_layers(module).items() if isinstance(x, eqx.nn.Linear)}
    layers = {path: layer for path, layer in found.items() if not scheme.skips(path)}
    if not layers:
        raise QuantizationError(
            "There is no linear layer to quantize.",
            expected="an eqx.nn.Linear somewhere in the module",
            got=f"{len(found)} that are all skipped by {scheme.skip}"
            if found
            else f"none in a {type(module).__name__}",
        )
    for path, layer in layers.items():
        if jnp.ndim(layer.weight) != 2:
            raise QuantizationError(
                "The weights of several layers lie in one array.",
                address=path,
                expected="a matrix",
                got=list(jnp.shape(layer.weight)),
                fix="quantize the layers one by one, and stack them after that",
            )
    return layers


def _replaced(module: Any, new: Callable[[str, Any], Any]) -> Any:
    """The pytree with every linear layer replaced by `new(path, layer)`."""

    def is_layer(x: Any) -> bool:
        return isinstance(x, (eqx.nn.Linear, QuantizedLinear))

    def leaf(path: Any, x: Any) -> Any:
        return new(jax.tree_util.keystr(path, simple=True, separator="/"), x) if is_layer(x) else x

    return jax.tree_util.tree_map_with_path(leaf, module, is_leaf=is_layer)
