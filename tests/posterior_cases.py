"""Fits and draws made by hand, with posteriors that are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d

SETTLED = np.random.default_rng(1).normal(-3.0, 0.1, 400)  # a history with nothing to complain of


def fitted(model, guide, params, history=SETTLED):
    """What `vx.fit` would leave behind at these parameters."""
    return vx.FitResult(params, history, 0.0, model=model, guide=guide)


@dataclasses.dataclass
class Chains:
    """What a sampler leaves behind."""

    choices: dict
    stats: dict
    model: object = None


# ---- normal data with a normal mean: all in closed form

PRIOR_SD, SD = 2.0, 1.5
Y = np.random.default_rng(0).normal(1.0, SD, 8)
POST_SD = (PRIOR_SD**-2 + len(Y) * SD**-2) ** -0.5
POST_MEAN = POST_SD**2 * Y.sum() / SD**2


@vx.model
def normal(y):
    mu = vx.sample("mu", d.Normal(0.0, PRIOR_SD))
    vx.sample("y", d.Normal(mu, SD).expand([len(y)]), obs=y)


@vx.model
def normal_guide(phi):
    vx.sample("mu", d.Normal(phi["mean"], phi["sd"]))


def exact(shift=0.0, scale=1.0):
    """The parameters of the exact posterior, shifted by some of its sd and scaled."""
    return {"mean": jnp.asarray(POST_MEAN + shift * POST_SD), "sd": jnp.asarray(POST_SD * scale)}


def exact_draws(key, chains=4, draws=500, model=None):
    """Independent draws of the posterior, as chains."""
    z = jax.random.normal(key, (chains, draws))
    stats = {"diverging": np.zeros((chains, draws), bool), "energy": np.asarray(z**2)}
    return Chains({"mu": POST_MEAN + POST_SD * z}, stats, normal(Y) if model is None else model)
