"""Stein variational gradient descent: particles that move together towards a posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ..draws import Draws
from ..language import sample
from ..measure import Measure
from ..potential import Potential
from ..steps import InferenceState, Metrics
from .nuts import outcome
from .target import Target, require_vector

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RBF:
    """k(x, y) = exp(-|x - y|^2 / h); without h, h = median |x_i - x_j|^2 / log(n + 1)."""

    h: float | None = None

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """k [n, n] at particles [n, D], and sum_j grad_{x_j} k(x_j, x_i): [n, D]."""
        n = len(x)
        squares = ((x[:, None] - x[None]) ** 2).sum(-1)  # [n, n]
        h = self.h
        if h is None:  # of the pairs of two: the zeros of the diagonal would pull it down
            pairs = squares[jnp.triu_indices(n, 1)] if n > 1 else jnp.ones(1)
            h = jax.lax.stop_gradient(jnp.median(pairs) / jnp.log(n + 1.0))
            h = jnp.maximum(h, jnp.finfo(h.dtype).tiny)
        k = jnp.exp(-squares / h)
        return k, 2 / h * (x * k.sum(0)[:, None] - k.T @ x)


@dataclasses.dataclass(frozen=True)
class Linear:
    """k(x, y) = 1 + x.y: mean and covariance are exact for Gaussians (Liu and Wang 2018)."""

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """As for `RBF`."""
        return 1 + x @ x.T, len(x) * x


@dataclasses.dataclass(frozen=True, eq=False)
class SVGD:
    """Stein variational gradient descent (Liu and Wang 2016), on the unconstrained space.

        x_i <- x_i + update(1/n sum_j [k(x_j, x_i) grad log p(x_j) + grad_{x_j} k(x_j, x_i)])

        step = vx.engines.SVGD(model(data), optax.adam(0.1), particles=100)
        result = vx.fit(step, None, steps=1000, key=key)
        step.draws(result.state)

    In many dimensions the particles' variances are too small (Ba et al. 2022). With
    `optax.contrib.cocob()` there is no learning rate (coin betting, as in Sharrock and Nemeth
    2023).

    Args:
        m: a measure with observations, or a function from a minibatch to one (see `Target`).
        optimizer: an optax gradient transformation.
        particles: how many, where `vx.fit` is given no params; else those are particles [n, D],
            vectors as of `Potential.ravel`.
        kernel: `RBF()`, `Linear()` or a function of particles like theirs.

    The metric `objective` is the particles' mean log density.
    """

    m: Measure | Callable[[Any], Measure]
    optimizer: Any
    _: dataclasses.KW_ONLY
    particles: int = 100
    kernel: Callable[[Array], tuple[Array, Array]] = RBF()

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", Target(self.m))

    target: Target = dataclasses.field(init=False, repr=False)

    def init(self, key: Array, params: Any) -> InferenceState:
        """Particles, given or from `Potential.initial`."""
        if params is None:
            params = self.target.start(key, self.particles, "SVGD")
        fix = "jax.vmap(potential.ravel)(potential.initial(key, n)), or None"
        params = require_vector(params, (None, None), "particles", fix)
        return InferenceState(params, self.optimizer.init(params))

    def step(self, key: Array, state: InferenceState, batch: Any) -> tuple[InferenceState, Metrics]:
        """All particles move at once; nothing is random."""
        x = state.params
        log_p, slopes = jax.vmap(jax.value_and_grad(self.target.log_density(batch)))(x)
        k, repulsion = self.kernel(x)
        uphill = (k.T @ slopes + repulsion) / len(x)
        updates, memory = self.optimizer.update(-uphill, state.memory, x)
        return InferenceState((x + updates).astype(x.dtype), memory), {"objective": log_p.mean()}

    def posterior(self, state: InferenceState, m: Measure | None = None) -> Measure:
        """One of the particles: its choice is the index `particle`, its value the choices.

        `m` is the measure of all data, where the step knows minibatches alone.
        """
        return of_particles(self.target.whole("A posterior", m), state.params)

    def draws(self, state: InferenceState, m: Measure | None = None) -> Draws:
        """The particles as draws of one chain."""
        potential = self.target.whole("Draws", m)
        return as_draws(potential, state.params[None], f"SVGD, {len(state.params)} particles")


def of_particles(potential: Potential, x: Array) -> Measure:
    """The uniform measure on points of R^D [n, D], as choices."""
    choices = jax.vmap(lambda u: potential.constrain(potential.unravel(u)))(x)

    def program() -> Any:
        at = sample("particle", npd.Categorical(logits=jnp.zeros(len(x))))
        return jax.tree.map(lambda values: values[at], choices)

    return Measure(program, f"particles({potential.measure.name})")


def as_draws(potential: Potential, x: Array, method: str) -> Draws:
    """Points of R^D [chains, draws, D] as draws."""
    choices, recorded = outcome(potential, x)
    log_p = jax.vmap(jax.vmap(lambda u: potential.log_density(potential.unravel(u))))(x)
    return Draws(potential.measure, choices, {"lp": log_p}, 0.0, recorded, method=method)
