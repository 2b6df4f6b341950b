"""varax: a probabilistic programming language on JAX with programmable variational inference."""

from . import kernels
from .ppl import (
    diagnosis,
    dist,
    engines,
    errors,
    estimators,
    families,
    objectives,
    stopping,
    strategies,
)
from .ppl.diagnosis import posterior_predictive_check, psis, sbc
from .ppl.draws import Draws
from .ppl.engines import hmc, nuts, pathfinder
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
from .ppl.guides import AmortisedGuide, AutoGuide, amortise, autoguide
from .ppl.inference import importance, marginal, normalize, smc
from .ppl.language import deterministic, factor, masked, sample, scaled
from .ppl.measure import Capability, Measure
from .ppl.model import Model, model
from .ppl.numpyro_model import from_numpyro
from .ppl.potential import Potential, constrain
from .ppl.quantization_report import quantization_report
from .ppl.quantize import quantize
from .ppl.quantized_linear import QuantizedLinear
from .ppl.reparameterize import Reparameterized, reparameterize
from .ppl.result import FitResult
from .ppl.runs.checkpoints import Checkpoints
from .ppl.runs.run import Run
from .ppl.schedule import schedule
from .ppl.steps import InferenceState, InferenceStep, Metric
from .ppl.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "AmortisedGuide",
    "AutoGuide",
    "Capability",
    "Checkpoints",
    "Draws",
    "FitResult",
    "GradientStep",
    "InferenceState",
    "InferenceStep",
    "Measure",
    "Metric",
    "Model",
    "Potential",
    "QuantizedLinear",
    "Reparameterized",
    "Run",
    "Trace",
    "amortise",
    "assume_smooth",
    "autoguide",
    "bound",
    "check",
    "condition",
    "constrain",
    "declare_biased",
    "deterministic",
    "diagnosis",
    "dist",
    "do",
    "engines",
    "errors",
    "estimators",
    "expect",
    "factor",
    "families",
    "fit",
    "from_numpyro",
    "generate",
    "grad",
    "hmc",
    "importance",
    "kernels",
    "learning_signals",
    "log_density",
    "marginal",
    "masked",
    "model",
    "normalize",
    "nuts",
    "objectives",
    "pathfinder",
    "posterior_predictive_check",
    "psis",
    "quantization_report",
    "quantize",
    "reparameterize",
    "replay",
    "sample",
    "sbc",
    "scaled",
    "schedule",
    "seed",
    "simulate",
    "smc",
    "stopping",
    "strategies",
    "tune_estimators",
    "value_and_grad",
]
