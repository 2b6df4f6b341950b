"""`vx.pathfinder`: normal approximations along quasi-Newton paths, then importance resampling."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.source import user_line
from ...transforms.choices import Choices
from ...transforms.errors import InitialisationError
from ..draws import Draws
from ..errors_posterior import SamplerError
from ..measure import Measure
from .nuts import outcome
from .transitions import require_blackjax

Array = jax.Array


def pathfinder(
    m: Measure,
    key: Array,
    *,
    draws: int = 1000,
    paths: int = 4,
    importance_resample: bool = True,
    maxiter: int = 100,
    elbo_draws: int = 20,
    initial: str | Choices | Measure | None = None,
) -> Draws:
    """Multi-path Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022), blackjax's.

    Each path is one of L-BFGS towards a mode. Of the normals with L-BFGS's inverse Hessians along
    it, the one with the highest ELBO is drawn from, q_i. The draws of all paths are resampled with
    Pareto-smoothed weights p / q_i. Far cheaper than NUTS, and approximate: `stats["khat"]` above
    0.7 says that the weights' tail is too heavy to trust.

    Args:
        m: a measure with observations; its other choices are continuous.
        key: all randomness.
        draws: how many to return. Each path makes as many.
        paths: how many, from different starting points.
        importance_resample: False returns an equal share of each path's draws, unweighted.
        maxiter: L-BFGS steps of a path.
        elbo_draws: of the estimate of each ELBO.
        initial: "uniform" (default), "prior", choices or a measure, as in `Potential.initial`.

    Returns:
        `Draws` with one chain, whose draws are not in an order. `stats`: `khat`, a number; `elbo`
        [paths]; `path` and `lp` [1, draws], the path of each draw and its log density on R^D.

    Raises:
        CapabilityError: a choice is discrete or may be absent, or a density is an estimate.
        InitialisationError: nowhere to start, or no path reached a normal with a finite ELBO.
        SamplerError: no draws or no paths.
        MissingExtraError: blackjax is not installed (the extra `mcmc`).
    """
    if not isinstance(m, Measure) or draws < 1 or paths < 1:
        raise SamplerError(
            "Pathfinder cannot run like this.",
            expected="a measure, at least one draw and one path",
            got=f"{m!r}, draws={draws}, paths={paths}",
            where=user_line(),
            fix="vx.pathfinder(model(data), key, draws=1000, paths=4)",
        )
    from ..diagnosis.psis import psis  # which is loaded on demand

    blackjax = require_blackjax()
    began = time.perf_counter()
    potential = m.potential()
    start, search, resample = jax.random.split(key, 3)
    u = potential.initial(start, paths, "uniform" if initial is None else initial)

    def log_density(x: Array) -> Array:
        return potential.log_density(potential.unravel(x))

    def path(keys: Array, x: Array) -> tuple[Array, Array, Array]:
        """The best ELBO of a path, draws [draws, D] of its normal, log p / q at them [draws]."""
        state, _ = blackjax.vi.pathfinder.approximate(
            keys[0], log_density, x, elbo_draws, maxiter=maxiter
        )
        points, log_q = blackjax.vi.pathfinder.sample(keys[1], state, draws)
        log_p = jax.vmap(log_density)(points)
        return state.elbo, points, jnp.stack([log_p, log_p - log_q])

    keys = jax.random.split(search, (paths, 2))
    run = jax.jit(lambda keys, x: jax.lax.map(lambda args: path(*args), (keys, x)))
    elbo, points, (log_p, log_ratios) = _moved(run(keys, jax.vmap(potential.ravel)(u)))
    usable = np.isfinite(elbo)
    if not usable.any():
        raise InitialisationError(
            f"No path of Pathfinder found a normal approximation of {m.name}.",
            expected="a finite ELBO somewhere along one of the paths",
            got=f"{paths} paths, all without",
            where=user_line(),
            fix='more paths, initial="prior" or a point near the mode, or vx.nuts',
        )
    ratios = np.where(usable[:, None] & ~np.isnan(log_ratios), log_ratios, -np.inf).ravel()
    log_weights, khat = psis(ratios)
    if importance_resample:
        at = jax.random.categorical(resample, jnp.asarray(log_weights, float), shape=(draws,))
    else:
        among = jnp.flatnonzero(jnp.repeat(usable, draws))
        at = jax.random.permutation(resample, among)[:draws]
    positions = points.reshape(-1, potential.size)[at][None]
    choices, recorded = outcome(potential, positions)
    stats: dict[str, Any] = {
        "khat": float(khat),
        "elbo": np.asarray(elbo),
        "path": np.asarray(at // draws)[None],
        "lp": np.asarray(log_p.ravel()[at])[None],
    }
    seconds = time.perf_counter() - began
    return Draws(m, choices, stats, seconds, recorded, method=f"pathfinder, {paths} paths")


def _moved(found: Any) -> tuple[np.ndarray, Array, np.ndarray]:
    """The log densities and ratios [paths, 2, draws] with the two in front."""
    elbo, points, logs = found
    return np.asarray(elbo), points, np.moveaxis(np.asarray(logs), 1, 0)
