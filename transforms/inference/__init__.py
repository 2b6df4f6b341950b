"""Algorithms that draw from targets and estimate their integrals: what nested measures run."""

from .base import Algorithm, Particle
from .importance import Importance
from .measures import Marginal, Normalized
from .resampling import SCHEMES
from .smc import SMC

__all__ = ["SCHEMES", "SMC", "Algorithm", "Importance", "Marginal", "Normalized", "Particle"]
