"""Bijections for `dist.Flow`, and entropies for `dist.Implicit`; public as `varax.families`.

`planar` and `radial` need nothing; the others need flowjax, `pip install 'varax[flows]'`.
"""

from .elementary import Planar, Radial, Stack, planar, radial
from .implicit import linearised_entropy
from .neural import (
    coupling,
    inverse_autoregressive,
    masked_autoregressive,
    rational_quadratic_spline,
)

__all__ = [
    "Planar",
    "Radial",
    "Stack",
    "coupling",
    "inverse_autoregressive",
    "linearised_entropy",
    "masked_autoregressive",
    "planar",
    "radial",
    "rational_quadratic_spline",
]
