"""Algorithms that draw from targets and estimate their integrals: what nested measures run."""

from .base import Algorithm, Particle
from .image import Image
from .importance import Importance
from .measures import Marginal, Normalized
from .resampling import SCHEMES
from .smc import SMC

__all__ = [
    "SCHEMES",
    "SMC",
    "Algorithm",
    "Image",
    "Importance",
    "Marginal",
    "Normalized",
    "Particle",
]
