"""Exceptions of posteriors: guides, samplers, diagnosis."""

from __future__ import annotations

from ..transforms.errors import VaraxError


class ForeignModelError(VaraxError):
    """A NumPyro model uses a statement that has no meaning in varax, or needs a value for it."""


class SamplerError(VaraxError):
    """A sampler was asked for something that it cannot do, such as no draws."""


class WeightsError(VaraxError):
    """Importance weights are missing, NaN or infinite, or all zero."""


class CalibrationError(VaraxError):
    """Simulation-based calibration was asked of a model or an inference that it cannot check."""
