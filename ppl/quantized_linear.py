"""A linear layer of few bits: what `vx.quantize` puts in the place of `eqx.nn.Linear`."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from ..kernels.quant import QuantizedMatrix, Scheme, quantize_matrix, quantized_matmul
from .errors_quantize import QuantizationError

Size = int | Literal["scalar"]


class QuantizedLinear(eqx.Module):
    """x -> W x + b with W in few bits; called as `eqx.nn.Linear` is.

    Under `vmap` the rows become one product. Differentiable in x, in the scales and in b; with
    activations "int8" the derivative in x is that of the product without their rounding.

    Attributes:
        matrix: the transpose of W, `kernels.quant.QuantizedMatrix`.
        bias: float[out], or None.
        in_features, out_features, use_bias: as of `eqx.nn.Linear`.
    """

    matrix: QuantizedMatrix
    bias: jax.Array | None
    in_features: Size = eqx.field(static=True)
    out_features: Size = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    @classmethod
    def of(cls, layer: eqx.nn.Linear, scheme: Scheme, moment: Any = None) -> QuantizedLinear:
        """Quantize a layer; `moment`: the second moment [in, in] of its inputs."""
        matrix = quantize_matrix(layer.weight.T, scheme, moment=moment)
        return cls(matrix, layer.bias, layer.in_features, layer.out_features, layer.use_bias)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        """The layer of one input.

        Args:
            x: [in_features], or [] where that is "scalar".
            key: not used; as of every layer of Equinox.

        Returns:
            [out_features], or [] where that is "scalar".

        Raises:
            QuantizationError: x has another shape.
        """
        x = check_input(self, x)
        w = self.matrix
        y = quantized_matmul(w.rotated(x), w.weights, activations=w.scheme.activations)
        if self.bias is not None:
            y = y + self.bias
        return y[0] if self.out_features == "scalar" else y


def check_input(layer: Any, x: Any, name: str | None = None) -> jax.Array:
    """An input of a linear layer as a vector."""
    x = jnp.asarray(x)
    scalar = layer.in_features == "scalar"
    expected = () if scalar else (layer.in_features,)
    if x.shape != expected:
        raise QuantizationError(
            "The input of a linear layer has another shape.",
            address=name,
            expected=list(expected),
            got=list(x.shape),
            fix="one input at a time; jax.vmap(layer)(batch) for many" if x.ndim > 1 else None,
        )
    return x[None] if scalar else x
