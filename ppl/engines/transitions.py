"""Transitions of Markov chains, NumPyro's and blackjax's, in one form.

A transition works on one chain, a vector u [D] of the unconstrained space, and can be traced:

    init(key, u) -> state               what comes before the first step
    step(state) -> (state, u, stats)    one draw

The first `warmup` steps adapt step size and mass matrix (NumPyro); or `init` does (blackjax), and
`warmup` is 0. `stats` has ArviZ's names: `diverging`, `acceptance_rate`, `energy`, `lp` (the log
density on R^D), `n_steps` (gradients), `step_size`, and `tree_depth` of NUTS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc as numpyro_hmc

from ...kernels.source import user_line
from ...transforms.errors import MissingExtraError

Array = jax.Array
LONGEST = 1000  # leapfrog steps of one HMC trajectory


@dataclasses.dataclass(frozen=True)
class Transition:
    """See the module."""

    init: Callable[[Array, Array], Any]
    step: Callable[[Any], tuple[Any, Array, dict[str, Array]]]
    warmup: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a sampler is asked for.

    Attributes:
        algorithm: "nuts" or "hmc".
        warmup: steps of adaptation.
        target_acceptance: of the step size's adaptation.
        dense: whether the mass matrix is a full matrix.
        max_tree_depth: a NUTS trajectory has at most 2^depth - 1 steps.
        trajectory: length of an HMC trajectory, in standard deviations of an adapted posterior.
    """

    algorithm: str
    warmup: int
    target_acceptance: float
    dense: bool
    max_tree_depth: int = 10
    trajectory: float = 1.0


def numpyro_transition(log_density: Callable[[Array], Array], settings: Settings) -> Transition:
    """NumPyro's NUTS or HMC (Phan, Pradhan and Jankowiak 2019)."""
    log_density = bounded(log_density)
    prepare, sample = numpyro_hmc(lambda u: -log_density(u), algo=settings.algorithm.upper())
    nuts = settings.algorithm == "nuts"

    def init(key: Array, u: Array) -> Any:
        return prepare(
            u,
            settings.warmup,
            dense_mass=settings.dense,
            target_accept_prob=settings.target_acceptance,
            max_tree_depth=settings.max_tree_depth,
            trajectory_length=settings.trajectory,
            rng_key=key,
        )

    def step(state: Any) -> tuple[Any, Array, dict[str, Array]]:
        state = sample(state)
        stats = {
            "diverging": state.diverging,
            "acceptance_rate": state.accept_prob,
            "energy": state.energy,
            "lp": -state.potential_energy,
            "n_steps": state.num_steps,
            "step_size": state.adapt_state.step_size,
        }
        if nuts:  # a tree of depth j has up to 2^j - 1 steps
            depth = jnp.ceil(jnp.log2(state.num_steps + 1.0))
            stats["tree_depth"] = depth.astype(state.num_steps.dtype)
        return state, state.z, stats

    return Transition(init, step, settings.warmup)


def bounded(log_density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Minus infinity where a density is so small that the energy of a trajectory overflows.

    With a dense mass matrix an overflowing kinetic energy is a sum of infinities of either sign,
    and minus infinity is accepted like any lower energy: the chain would stay there for ever.
    """

    def function(u: Array) -> Array:
        value = log_density(u)
        least = -(float(jnp.finfo(value.dtype).max) ** (1 / 3))  # leaves room for squares
        return jnp.where(value > least, value, -jnp.inf)

    return function


def blackjax_transition(log_density: Callable[[Array], Array], settings: Settings) -> Transition:
    """blackjax's NUTS or HMC with its window adaptation (Cabezas et al. 2024).

    Raises:
        MissingExtraError: blackjax is not installed.
    """
    blackjax, log_density = require_blackjax(), bounded(log_density)
    if settings.algorithm == "nuts":
        algorithm = blackjax.nuts
        fixed = {"max_num_doublings": settings.max_tree_depth}
    else:
        algorithm, fixed = _FixedLength(blackjax.hmc, settings.trajectory), {}
    kernel = algorithm.build_kernel(blackjax.mcmc.integrators.velocity_verlet)
    adaptation = blackjax.window_adaptation(
        algorithm,
        log_density,
        is_mass_matrix_diagonal=not settings.dense,
        target_acceptance_rate=settings.target_acceptance,
        adaptation_info_fn=lambda *_: (),
        **fixed,
    )

    def init(key: Array, u: Array) -> Any:
        now, key = jax.random.split(key)
        if settings.warmup:
            found, _ = adaptation.run(now, u, settings.warmup)
            tuned = {k: found.parameters[k] for k in ("step_size", "inverse_mass_matrix")}
            return key, found.state, tuned
        metric = jnp.eye(u.size) if settings.dense else jnp.ones(u.size)
        tuned = {"step_size": jnp.ones(()), "inverse_mass_matrix": metric}
        return key, algorithm.init(u, log_density), tuned

    def step(state: Any) -> tuple[Any, Array, dict[str, Array]]:
        key, chain, tuned = state
        now, key = jax.random.split(key)
        chain, info = kernel(now, chain, log_density, **tuned, **fixed)
        stats = {
            "diverging": info.is_divergent,
            "acceptance_rate": info.acceptance_rate,
            "energy": info.energy,
            "lp": chain.logdensity,
            "n_steps": info.num_integration_steps,
            "step_size": tuned["step_size"],
        }
        if settings.algorithm == "nuts":
            stats["tree_depth"] = info.num_trajectory_expansions
        return (key, chain, tuned), chain.position, stats

    return Transition(init, step, 0)


class _FixedLength:
    """blackjax's HMC with trajectories of one length, whatever the step size."""

    def __init__(self, algorithm: Any, trajectory: float):
        self.init, self.inner, self.trajectory = algorithm.init, algorithm, trajectory

    def build_kernel(self, integrator: Any) -> Any:
        inner, trajectory = self.inner.build_kernel(integrator), self.trajectory

        def kernel(
            rng_key: Array, state: Any, logdensity_fn: Any, step_size: Any, inverse_mass_matrix: Any
        ) -> Any:
            steps = jnp.clip(jnp.ceil(trajectory / step_size), 1, LONGEST).astype(int)
            step = trajectory / steps
            return inner(rng_key, state, logdensity_fn, step, inverse_mass_matrix, steps)

        return kernel


def require_blackjax() -> Any:
    """The module, or an error that says how to get it."""
    try:
        import blackjax
    except ImportError as error:
        raise MissingExtraError(
            "This sampler is blackjax's, which is not installed.",
            expected="blackjax",
            where=user_line(),
            fix="pip install 'varax[mcmc]'",
        ) from error
    return blackjax


ENGINES = {"numpyro": numpyro_transition, "blackjax": blackjax_transition}
