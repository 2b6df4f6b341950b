"""Distributions: all of `numpyro.distributions`."""

from numpyro.distributions import *  # noqa: F403
