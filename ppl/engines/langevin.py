"""Stochastic-gradient Langevin dynamics: MCMC with minibatches, without an accept step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import StepError
from ..draws import Draws
from ..measure import Measure
from ..steps import InferenceState, Metrics
from .svgd import as_draws, of_particles
from .target import Target, require_vector

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class SGLD:
    """Stochastic-gradient Langevin dynamics (Welling and Teh 2011) on the unconstrained space.

        u <- u + rate / 2 G grad log p(u | batch) + sqrt(rate G) noise

    with G = 1, or preconditioned (Li, Chen, Carlson and Carin 2016): G = 1 / (floor + sqrt(V)), V a
    running mean of squared gradients; as usual, the small term of dG/du is left out. The draws'
    law differs from the posterior by O(rate), and by the minibatches' noise.

    Args:
        m: a measure with observations, or a function from a minibatch to one, whose likelihood is
            scaled up to all data.
        rate: a number, or a function of the number of steps taken.
        chains: independent chains, where `vx.fit` is given no params; else those are [chains, D].
        keep: draws of each chain that are kept.
        every: steps between two that are kept; the last `keep` of them are.
        precondition: whether G adapts.
        decay: of V's running mean.
        floor: added to sqrt(V).
    """

    m: Measure | Callable[[Any], Measure]
    _: dataclasses.KW_ONLY
    rate: float | Callable[[Array], Array]
    chains: int = 4
    keep: int = 1000
    every: int = 10
    precondition: bool = False
    decay: float = 0.999
    floor: float = 1e-5
    target: Target = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", Target(self.m))
        if min(self.chains, self.keep, self.every) < 1:
            raise StepError(
                "SGLD cannot run like this.",
                expected="chains, keep and every of at least 1",
                got=f"chains={self.chains}, keep={self.keep}, every={self.every}",
                where=user_line(),
            )

    def init(self, key: Array, params: Any) -> InferenceState:
        """Positions [chains, D], given or from `Potential.initial`."""
        if params is None:
            params = self.target.start(key, self.chains, "SGLD")
        u = require_vector(params, (None, None), "chains", "[chains, D], or None")
        memory = {
            "kept": jnp.zeros((len(u), self.keep, u.shape[1]), u.dtype),
            "squares": jnp.zeros_like(u),
            "steps": jnp.zeros((), int),
        }
        return InferenceState(u, memory)

    def step(self, key: Array, state: InferenceState, batch: Any) -> tuple[InferenceState, Metrics]:
        """One step of every chain; they share the minibatch."""
        u, count = state.params, state.memory["steps"]
        log_p, slopes = jax.vmap(jax.value_and_grad(self.target.log_density(batch)))(u)
        squares = self.decay * state.memory["squares"] + (1 - self.decay) * slopes**2
        g = jnp.ones_like(u)
        if self.precondition:
            debias = 1 - self.decay ** (count + 1)
            g = 1 / (self.floor + jnp.sqrt(squares / debias))
        rate = self.rate(count) if callable(self.rate) else self.rate
        noise = jax.random.normal(key, u.shape, u.dtype)
        u = (u + 0.5 * rate * g * slopes + jnp.sqrt(rate * g) * noise).astype(u.dtype)
        at = (count // self.every) % self.keep  # the last of each `every` steps stays
        memory = {
            "kept": state.memory["kept"].at[:, at].set(u),
            "squares": squares,
            "steps": count + 1,
        }
        return InferenceState(u, memory), {"objective": log_p.mean()}

    def kept(self, state: InferenceState) -> Array:
        """The draws that are kept, oldest first: [chains, at most `keep`, D]."""
        steps = int(state.memory["steps"])
        done = steps // self.every  # whole ones; the place after them may hold an unfinished one
        n = min(done, self.keep - (steps % self.every != 0 and done >= self.keep))
        return state.memory["kept"][:, (jnp.arange(done - n, done)) % self.keep]

    def draws(self, state: InferenceState, m: Measure | None = None) -> Draws:
        """The draws that are kept, as choices (`summary(markov=True)` shows how they mix).

        Args:
            state: after a fit.
            m: the measure of all data, where the step knows minibatches alone.

        Raises:
            StepError: no draw was kept yet.
        """
        kept = self.kept(state)
        if not kept.shape[1]:
            raise StepError(
                "SGLD has kept no draw yet.",
                expected=f"at least {self.every} steps (every={self.every})",
                got=f"{int(state.memory['steps'])} steps",
                where=user_line(),
            )
        return as_draws(self.target.whole("Draws", m), kept, "SGLD")

    def posterior(self, state: InferenceState, m: Measure | None = None) -> Measure:
        """The uniform measure on the draws that are kept (see `SVGD.posterior`)."""
        kept = self.kept(state)
        potential = self.target.whole("A posterior", m)
        return of_particles(potential, kept.reshape(-1, kept.shape[-1]))
