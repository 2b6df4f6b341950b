"""Guides that are made from a model: `vx.autoguide`, `vx.amortise`."""

from .amortised import AmortisedGuide, amortise
from .auto import AutoGuide, Elbo, autoguide
from .start import Start, find_start

__all__ = [
    "AmortisedGuide",
    "AutoGuide",
    "Elbo",
    "Start",
    "amortise",
    "autoguide",
    "find_start",
]
