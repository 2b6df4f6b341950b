"""Algorithms that draw from targets and estimate their integrals: what nested measures run."""

from .base import Algorithm, Particle
from .importance import Importance
from .measures import Marginal, Normalized

__all__ = ["Algorithm", "Importance", "Marginal", "Normalized", "Particle"]
