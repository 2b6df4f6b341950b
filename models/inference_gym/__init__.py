"""The Inference Gym: 14 targets with the ground truth of long runs (Sountsov and Radul 2020).

    measure = inference_gym.target("eight_schools")          # the model, given its data
    inference_gym.truth("eight_schools")["avg_effect"].mean

The parts of a target have the gym's names: choices of the model, or values that it records.
"""

from .compare import Comparison, compare
from .data import Truth, UnknownTargetError, load, truth
from .run import main
from .targets import TARGETS, target

__all__ = [
    "TARGETS",
    "Comparison",
    "Truth",
    "UnknownTargetError",
    "compare",
    "load",
    "main",
    "target",
    "truth",
]
