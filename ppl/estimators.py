"""Gradient estimators, public as `varax.estimators`."""

from ..transforms.estimators import (
    Branching,
    Direct,
    Enumerate,
    Estimator,
    Reparam,
    Score,
)
from ..transforms.law import Law

__all__ = ["Branching", "Direct", "Enumerate", "Estimator", "Law", "Reparam", "Score"]
