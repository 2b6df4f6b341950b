"""varax: a probabilistic programming language on JAX with programmable variational inference."""

from . import kernels
from .ppl import dist, errors, estimators, objectives, strategies
from .ppl.fit import FitResult, fit
from .ppl.functions import (
    assume_smooth,
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
from .ppl.language import deterministic, factor, masked, sample, scaled
from .ppl.measure import Capability, Measure
from .ppl.model import Model, model
from .ppl.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "Capability",
    "FitResult",
    "Measure",
    "Model",
    "Trace",
    "assume_smooth",
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
    "fit",
    "generate",
    "grad",
    "kernels",
    "learning_signals",
    "log_density",
    "masked",
    "model",
    "objectives",
    "replay",
    "sample",
    "scaled",
    "seed",
    "simulate",
    "strategies",
    "tune_estimators",
    "value_and_grad",
]
