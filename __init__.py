"""varax: a probabilistic programming language on JAX with programmable variational inference."""

from . import kernels
from .ppl import dist, errors, estimators, families, objectives, strategies
from .ppl.fit import fit
from .ppl.functions import (
    assume_smooth,
    bound,
    check,
    condition,
    declare_biased,
    do,
    expect,
    generate,
    grad,
    learning_signals,
    log_density,
    replay,
    seed,
    simulate,
    tune_estimators,
    value_and_grad,
)
from .ppl.gradient_step import GradientStep
from .ppl.inference import importance, marginal, normalize, smc
from .ppl.language import deterministic, factor, masked, sample, scaled
from .ppl.measure import Capability, Measure
from .ppl.model import Model, model
from .ppl.result import FitResult
from .ppl.schedule import schedule
from .ppl.steps import InferenceState, InferenceStep, Metric
from .ppl.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "Capability",
    "FitResult",
    "GradientStep",
    "InferenceState",
    "InferenceStep",
    "Measure",
    "Metric",
    "Model",
    "Trace",
    "assume_smooth",
    "bound",
    "check",
    "condition",
    "declare_biased",
    "deterministic",
    "dist",
    "do",
    "errors",
    "estimators",
    "expect",
    "factor",
    "families",
    "fit",
    "generate",
    "grad",
    "importance",
    "kernels",
    "learning_signals",
    "log_density",
    "marginal",
    "masked",
    "model",
    "normalize",
    "objectives",
    "replay",
    "sample",
    "scaled",
    "schedule",
    "seed",
    "simulate",
    "smc",
    "strategies",
    "tune_estimators",
    "value_and_grad",
]
