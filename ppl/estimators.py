"""Gradient estimators, public as `varax.estimators`."""

from ..transforms import estimators as _estimators
from ..transforms.estimators import *  # noqa: F403
from ..transforms.law import Law

__all__ = ["Law"]
__all__ += _estimators.__all__
