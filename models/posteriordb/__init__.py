"""posteriordb: 21 posteriors of the literature, against the long runs of a reference.

    measure = posteriordb.posterior("kidiq-kidscore_momiq")      # the model, given its data
    posteriordb.reference_of("kidiq-kidscore_momiq").mean        # of Stan's NUTS, 10,000 draws

The models are those of the Stan programs, their parameters by the same names, so that each is
compared with its reference (Magnusson et al. 2024).
"""

from .compare import Comparison, columns, compare
from .data import Reference, UnknownPosteriorError, load, reference
from .posteriors import POSTERIORS, data_of, model_of, posterior, reference_of
from .run import main

__all__ = [
    "POSTERIORS",
    "Comparison",
    "Reference",
    "UnknownPosteriorError",
    "columns",
    "compare",
    "data_of",
    "load",
    "main",
    "model_of",
    "posterior",
    "reference",
    "reference_of",
]
