"""Exceptions of quantization."""

from __future__ import annotations

from ..kernels.errors import VaraxError

__all__ = ["QuantizationError"]


class QuantizationError(VaraxError, ValueError):
    """A module cannot be quantized as it was asked for."""
