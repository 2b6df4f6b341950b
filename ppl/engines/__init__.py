"""Engines: other ways from a model to its posterior.

    vx.nuts, vx.hmc            Hamiltonian Monte Carlo (NumPyro's, blackjax's)
    vx.pathfinder              multi-path Pathfinder (blackjax's)
    engines.one_chain          NUTS as a function to trace, for many data sets at once

and inference steps for `vx.fit`, which work on a model's potential or on a loss:

    engines.SVGD                       particles
    engines.NaturalGradientGaussian    a Gaussian on R^D by natural gradients
    engines.BuresWasserstein           a Gaussian on R^D by Wasserstein gradients
    engines.IVON                       a diagonal Gaussian on the weights of a network
    engines.SGLD                       Langevin dynamics with minibatches
"""

from __future__ import annotations

from .ivon import IVON
from .langevin import SGLD
from .natural import BuresWasserstein, NaturalGradientGaussian
from .nuts import hmc, nuts, one_chain
from .pathfinder import pathfinder
from .svgd import RBF, SVGD, Linear

__all__ = [
    "IVON",
    "RBF",
    "SGLD",
    "SVGD",
    "BuresWasserstein",
    "Linear",
    "NaturalGradientGaussian",
    "hmc",
    "nuts",
    "one_chain",
    "pathfinder",
]
