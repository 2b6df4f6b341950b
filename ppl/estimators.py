"""Gradient estimators, public as `varax.estimators`."""

from ..transforms.estimators import (
    Branches,
    Branching,
    Direct,
    Drawn,
    Enumerate,
    Estimator,
    LeaveOneOut,
    Learned,
    Reparam,
    Score,
)
from ..transforms.law import Law

__all__ = [
    "Branches",
    "Branching",
    "Direct",
    "Drawn",
    "Enumerate",
    "Estimator",
    "Law",
    "LeaveOneOut",
    "Learned",
    "Reparam",
    "Score",
]
