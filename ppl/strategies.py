"""Strategies of `vx.expect(f, using=...)`, public as `varax.strategies`."""

from ..transforms.strategies import (
    Antithetic,
    Enumeration,
    MonteCarlo,
    Quadrature,
    QuasiMonteCarlo,
    SigmaPoints,
    Strategy,
)

__all__ = [
    "Antithetic",
    "Enumeration",
    "MonteCarlo",
    "Quadrature",
    "QuasiMonteCarlo",
    "SigmaPoints",
    "Strategy",
]
