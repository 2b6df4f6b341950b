"""`vx.nuts` and `vx.hmc`: Hamiltonian Monte Carlo on a model's potential.

The target is exp(-potential) on R^D, with the Jacobian of the map to the choices; the samplers are
those of NumPyro and blackjax.
"""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.choices import Choices, nest
from ...transforms.layout import layout
from ...transforms.staging import stage
from ..draws import Draws
from ..errors_posterior import SamplerError
from ..measure import Measure
from ..potential import Potential
from .chains import Chains, best_layout, trajectory
from .reuse import reuse
from .transitions import ENGINES, Settings

Array = jax.Array


def nuts(
    m: Measure,
    key: Array,
    *,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    target_acceptance: float = 0.8,
    dense: bool = False,
    max_tree_depth: int = 10,
    initial: str | Choices | Measure | None = None,
    engine: str = "numpyro",
    vectorized: bool | None = None,
    progress: bool = True,
) -> Draws:
    """The no-U-turn sampler (Hoffman and Gelman 2014), with multinomial trajectories.

    Args:
        m: a measure with observations; its other choices are continuous.
        key: all randomness.
        draws: of each chain, after the warmup.
        warmup: steps that adapt step size and mass matrix, and are not kept.
        chains: how many. From several starting points, so that R-hat can see what one chain misses.
        target_acceptance: nearer to 1 means shorter steps and fewer divergences.
        dense: a full mass matrix rather than a diagonal one: for strong correlations.
        max_tree_depth: a trajectory has at most 2^depth - 1 gradients.
        initial: "uniform" (default), "prior", choices, or a measure such as a fitted guide, from
            which every chain starts with a draw; as in `Potential.initial`.
        engine: "numpyro", or "blackjax" (the extra `mcmc`).
        vectorized: chains as one batch or one after the other. By default in turn on a CPU with
            few chains, where it takes as long and compiles in half the time.
        progress: whether to show the bar.

    Returns:
        `Draws`, in the space of the choices. A second call with the same measure and settings
        compiles nothing.

    Raises:
        CapabilityError: a choice is discrete or may be absent, or a density is an estimate.
        InitialisationError: no point with a finite density and gradient was found.
        SamplerError: no draws or chains, an unknown engine, a target outside 0 to 1.
        MissingExtraError: blackjax is asked for and not installed.
    """
    settings = Settings("nuts", warmup, target_acceptance, dense, max_tree_depth=max_tree_depth)
    return _sample(m, key, settings, draws, chains, initial, engine, vectorized, progress)


def hmc(
    m: Measure,
    key: Array,
    *,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    trajectory: float = math.pi / 2,
    target_acceptance: float = 0.8,
    dense: bool = False,
    initial: str | Choices | Measure | None = None,
    engine: str = "numpyro",
    vectorized: bool | None = None,
    progress: bool = True,
) -> Draws:
    """Hamiltonian Monte Carlo with trajectories of one length (Neal 2011).

    Args:
        trajectory: the length, in standard deviations of the posterior once the mass matrix has
            adapted: pi / 2 draws independently from a Gaussian, 2 pi goes round in a circle.
        m, key, draws, warmup, chains, target_acceptance, dense, initial, engine, vectorized,
            progress: as in `nuts`, which also says what is raised.
    """
    settings = Settings("hmc", warmup, target_acceptance, dense, trajectory=trajectory)
    return _sample(m, key, settings, draws, chains, initial, engine, vectorized, progress)


def one_chain(
    m: Measure,
    key: Array,
    *,
    draws: int = 1000,
    warmup: int = 1000,
    target_acceptance: float = 0.8,
    dense: bool = False,
    max_tree_depth: int = 10,
    engine: str = "numpyro",
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One NUTS chain as a function that JAX can trace: for many data sets at once.

        jax.jit(jax.vmap(lambda key, y: vx.engines.one_chain(model(y), key)[0]))(keys, ys)

    It starts at u ~ U(-2, 2), without looking for a better point.

    Returns:
        choices [draws, *shape] and statistics [draws], see `Draws`.
    """
    settings = Settings("nuts", warmup, target_acceptance, dense, max_tree_depth=max_tree_depth)
    _check(m, draws, 1, settings, engine)
    potential = m.potential()
    start, key = jax.random.split(key)
    u = jax.random.uniform(start, (potential.size,), float, -2.0, 2.0)
    transition = ENGINES[engine](lambda x: potential.log_density(potential.unravel(x)), settings)
    positions, stats = trajectory(transition, key, u, draws)
    return jax.vmap(lambda x: potential.constrain(potential.unravel(x)))(positions), stats


def _sample(
    m: Any,
    key: Array,
    settings: Settings,
    draws: int,
    chains: int,
    initial: Any,
    engine: str,
    vectorized: bool | None,
    progress: bool,
) -> Draws:
    _check(m, draws, chains, settings, engine)
    began = time.perf_counter()
    vectorized = best_layout(chains) if vectorized is None else vectorized
    potential = potential_of(m)
    compiled = reuse(
        m,
        (settings, engine, draws, vectorized),
        lambda: _compile(m, settings, engine, draws, vectorized),
    )
    start, key = jax.random.split(key)
    u = potential.initial(start, chains, "uniform" if initial is None else initial)
    positions, stats, interrupted = compiled.run(
        key, jax.vmap(potential.ravel)(u), progress=progress
    )
    choices, recorded = outcome(potential, positions)
    seconds, method = time.perf_counter() - began, f"{settings.algorithm} by {engine}"
    return Draws(m, choices, stats, seconds, recorded, interrupted, method)


def _compile(m: Measure, settings: Settings, engine: str, draws: int, vectorized: bool) -> Chains:
    potential = potential_of(m)
    transition = ENGINES[engine](lambda x: potential.log_density(potential.unravel(x)), settings)
    return Chains(transition, draws, vectorized=vectorized)


def potential_of(m: Measure) -> Potential:
    """The measure's potential, staged once."""
    return reuse(m, "potential", m.potential)


def outcome(potential: Potential, positions: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choices and what the model records at unconstrained vectors [chains, draws, D]."""
    many = reuse(potential.measure, "outcome", lambda: _outcome(potential))
    return many(jnp.asarray(positions))


def _outcome(potential: Potential) -> Any:
    records = layout(stage(potential.measure.program).jaxpr, kinds=("record",))

    def at(x: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        u = potential.unravel(x)
        values = potential.recorded(u) if records else {}
        return potential.constrain(u), nest({a: _at(values, a) for a in records})

    return jax.jit(jax.vmap(jax.vmap(at)))


def _at(tree: Any, address: tuple[str, ...]) -> Any:
    for name in address:
        tree = tree[name]
    return tree


def _check(m: Any, draws: int, chains: int, settings: Settings, engine: str) -> None:
    """Raise where no sampler could do what is asked."""
    wrong = None
    if not isinstance(m, Measure):
        wrong = "a measure: a model called with its arguments", repr(m)
    elif engine not in ENGINES:
        wrong = f"engine one of {', '.join(ENGINES)}", repr(engine)
    elif draws < 1 or chains < 1 or settings.warmup < 0:
        wrong = (
            "draws and chains of at least 1, warmup of at least 0",
            f"draws={draws}, chains={chains}, warmup={settings.warmup}",
        )
    elif not 0 < settings.target_acceptance < 1:
        wrong = "a target acceptance between 0 and 1", str(settings.target_acceptance)
    if wrong:
        raise SamplerError(
            f"{settings.algorithm.upper()} cannot run like this.",
            expected=wrong[0],
            got=wrong[1],
            where=user_line(),
            fix="vx.nuts(model(data), key, draws=1000, warmup=1000, chains=4)",
        )
