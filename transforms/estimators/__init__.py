"""Gradient estimators: how one random choice enters an expectation. Set per site with
`vx.sample(address, distribution, estimator=...)`.
"""

from .base import Branching, Direct, Estimator
from .enumerate import Enumerate
from .reparam import Reparam
from .score import Score

__all__ = ["Branching", "Direct", "Enumerate", "Estimator", "Reparam", "Score"]
