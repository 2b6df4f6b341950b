"""Whether a posterior can be trusted, and what it predicts.

psis.py         Pareto smoothed importance sampling, k-hat
summary.py      a table and one line that says whether to trust it
convergence.py  whether an optimisation has settled
mixing.py       R-hat, effective sample sizes
signal.py       signal to noise of gradients
predictive.py   posterior prediction and checks by it
sbc.py          simulation-based calibration
arviz_export.py to ArviZ
"""

from .arviz_export import to_arviz
from .checks import PredictiveCheck, posterior_predictive_check
from .convergence import Convergence, convergence
from .plots import plot
from .predictive import log_likelihood, predict, predict_at
from .psis import khat_threshold, psis
from .sbc import Calibration, sbc
from .signal import SignalToNoise, signal_to_noise
from .summary import summarize
from .table import Summary, Verdict

__all__ = [
    "Calibration",
    "Convergence",
    "PredictiveCheck",
    "SignalToNoise",
    "Summary",
    "Verdict",
    "convergence",
    "khat_threshold",
    "log_likelihood",
    "plot",
    "posterior_predictive_check",
    "predict",
    "predict_at",
    "psis",
    "sbc",
    "signal_to_noise",
    "summarize",
    "to_arviz",
]
