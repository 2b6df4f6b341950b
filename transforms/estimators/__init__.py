"""Gradient estimators: how one random choice enters an expectation. Set per site with
`vx.sample(address, distribution, estimator=...)`.
"""

from .antithetic import ARM, Antithetic, DisARM
from .base import Branches, Branching, Direct, Drawn, Estimator
from .biased import Biased, Concrete, StopGradient, StraightThrough, rotation_trick
from .enumerate import Enumerate
from .implicit import Implicit
from .measure_valued import MeasureValued
from .quadrature import GaussHermite, GaussLegendre, SigmaPoints
from .rejection import Rejection
from .relaxed import REBAR, RELAX
from .reparam import Reparam
from .score import Learned, LeaveOneOut, Score
from .subset import SumAndSample, WithoutReplacement

__all__ = [
    "ARM",
    "Antithetic",
    "Biased",
    "Branches",
    "Branching",
    "Concrete",
    "Direct",
    "DisARM",
    "Drawn",
    "Enumerate",
    "Estimator",
    "GaussHermite",
    "GaussLegendre",
    "Implicit",
    "Learned",
    "LeaveOneOut",
    "MeasureValued",
    "REBAR",
    "RELAX",
    "Rejection",
    "Reparam",
    "Score",
    "SigmaPoints",
    "StopGradient",
    "StraightThrough",
    "SumAndSample",
    "WithoutReplacement",
    "rotation_trick",
]
