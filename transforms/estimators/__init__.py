"""Gradient estimators: how one random choice enters an expectation. Set per site with
`vx.sample(address, distribution, estimator=...)`.
"""

from .base import Branches, Branching, Direct, Drawn, Estimator
from .enumerate import Enumerate
from .reparam import Reparam
from .score import LeaveOneOut, Learned, Score

__all__ = [
    "Branches",
    "Branching",
    "Direct",
    "Drawn",
    "Enumerate",
    "Estimator",
    "LeaveOneOut",
    "Learned",
    "Reparam",
    "Score",
]
