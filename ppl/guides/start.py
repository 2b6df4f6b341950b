"""Where a guide starts: the best of the Gaussians along Newton paths to the posterior's modes.

    u_{t+1} = u_t - (|H_t| + m_t diag |H_t|)^{-1} g_t,        q_t = N(u_t, |H_t|^{-1})

with |H| the Hessian of the potential with its eigenvalues' absolute values (in coordinates scaled
by its diagonal) and m_t raised where a step fails. The q_t with the highest ELBO is kept, as
Pathfinder does (Zhang, Carpenter, Gelman and Vehtari 2022): where a density grows without bound
towards a corner, as in hierarchical models, the path passes the mass before it gets there. Then its
ELBO is raised further (`refine.py`).

A Newton path does not depend on the units of the parameters: what a linear predictor's columns
have in scale, offset and correlation, the Gaussian takes up. (Dauphin et al. 2014 for |H|.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.source import user_line
from ...transforms.choices import Choices
from ...transforms.errors import UnboundedDensityError
from ..potential import Potential
from .refine import balanced, bound, refine

Array = jax.Array
FULL = 200  # up to how many dimensions the whole Hessian is used
DRAWS = 64  # of each ELBO, about
RISING = 1.0  # nats in the last ten steps of a path that has not arrived
LEVEL = 1e-3  # nats: Gaussians that are as good as the best, of which the last is kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """A Gaussian near the posterior, in the unconstrained space.

    Attributes:
        center: its mean, shape [D].
        scale: a Cholesky factor of its covariance, [D, D]; standard deviations, [D], in more than
            200 dimensions.
        conditional: standard deviations of each coordinate given the others, [D].
        elbo: its evidence lower bound, estimated.
        steps: how far along its path it was found.
        flattest: the direction in which the density has least curvature, in units of
            `conditional`, [D], and
        flatness: that curvature, relative to the largest.
    """

    center: Array
    scale: Array
    conditional: Array
    elbo: Array
    steps: Array
    flattest: Array
    flatness: Array


class _Shape(NamedTuple):
    """What the Hessian at a point says."""

    scale: Array
    conditional: Array
    flattest: Array
    flatness: Array
    solve: Callable[[Array, Array], Array]  # (|H| + damping diag |H|)^{-1} g


class _Path(NamedTuple):
    u: Array
    value: Array
    damping: Array
    best: Start
    highest: Array


def find_start(
    potential: Potential,
    key: Array,
    *,
    paths: int = 4,
    steps: int = 100,
    strategy: str | Choices = "uniform",
    refined: bool = True,
) -> Start:
    """The best Gaussian on several Newton paths.

    Args:
        potential: of the model.
        key: of the paths' first points and of the ELBO's draws.
        paths: how many.
        steps: of each.
        strategy: of the first points, as for `Potential.initial`.
        refined: whether its ELBO is raised further (`refine.py`, up to 200 dimensions).

    Raises:
        InitialisationError: no point has a finite density and gradient.
        UnboundedDensityError: the density does not change in some direction, or the ELBO still
            rises where the path ends: names the choices.
    """
    at, noise = jax.random.split(key)
    first = jax.vmap(potential.ravel)(potential.initial(at, paths, strategy))  # [paths, D]
    eps = balanced(noise, potential.size, DRAWS)
    starts, bounds = _walk(potential, first, eps, steps)
    elbo = np.asarray(starts.elbo)
    best = int(np.argmax(np.where(np.isfinite(elbo), elbo, -np.inf)))
    start = jax.tree.map(lambda x: x[best], starts)
    _require_a_peak(potential, start, np.asarray(bounds[best]))
    if not refined or start.scale.ndim == 1:
        return start
    q = jax.jit(lambda u, scale: refine(_energy(potential), u, scale, eps))(
        start.center, start.scale
    )
    precision = jnp.linalg.inv(q.scale @ q.scale.T)
    conditional = 1 / jnp.sqrt(jnp.diag(precision))
    return dataclasses.replace(
        start, center=q.center, scale=q.scale, conditional=conditional, elbo=q.elbo
    )


def _walk(potential: Potential, first: Array, eps: Array, steps: int) -> tuple[Start, Array]:
    energy = _energy(potential)
    curvature = _full if potential.size <= FULL else _diagonal

    def step(now: _Path, t: Array) -> tuple[_Path, Array]:
        shape = curvature(energy, now.u)
        elbo = bound(energy, now.u, shape.scale, eps)
        here = Start(now.u, shape.scale, shape.conditional, elbo, t, shape.flattest, shape.flatness)
        good = elbo > now.highest - LEVEL
        best = jax.tree.map(lambda a, b: jnp.where(good, a, b), here, now.best)
        highest = jnp.fmax(elbo, now.highest)
        gradient = jax.grad(energy)(now.u)
        trial = now.u - shape.solve(gradient, now.damping)
        value = energy(trial)
        good = value < now.value
        u, value = jnp.where(good, trial, now.u), jnp.where(good, value, now.value)
        damping = jnp.clip(jnp.where(good, now.damping / 4, now.damping * 4), 1e-8, 1e8)
        return _Path(u, value, damping, best, highest), elbo

    def path(u: Array) -> tuple[Start, Array]:
        one = jnp.ones_like(u)
        scale = jnp.diag(one) if u.size <= FULL else one
        low = jnp.full((), -jnp.inf, u.dtype)
        worst = Start(u, scale, one, low, jnp.asarray(0), one, low)
        first = _Path(u, energy(u), jnp.full((), 1e-3, u.dtype), worst, low)
        last, bounds = jax.lax.scan(step, first, jnp.arange(steps))
        return last.best, bounds

    # one path after the other: batched factorisations can wait for each other (jaxlib 0.10)
    return jax.jit(lambda us: jax.lax.map(path, us))(first)


def _energy(potential: Potential) -> Any:
    def energy(u: Array) -> Array:
        value = potential(potential.unravel(u))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    return energy


def _full(energy: Any, u: Array) -> _Shape:
    """The shape of |H|^{-1}."""
    h = jax.hessian(energy)(u)
    h = jnp.where(jnp.isfinite(h), h, 0.0)
    diagonal = jnp.abs(jnp.diag(h))
    units = 1 / jnp.sqrt(jnp.maximum(diagonal, 1e-12 * diagonal.max() + 1e-30))  # [D]
    values, vectors = jnp.linalg.eigh(units[:, None] * h * units)
    floor = 1e-6 if u.dtype == jnp.float32 else 1e-10
    values, least = jnp.abs(values), jnp.argmin(jnp.abs(values))
    flattest, flatness = vectors[:, least], values[least] / values.max()
    values = jnp.maximum(values, floor * values.max() + 1e-30)
    root = units[:, None] * vectors / jnp.sqrt(values)  # root root^T = |H|^{-1}
    scale = jnp.linalg.qr(root.T, mode="r").T
    scale = scale * jnp.where(jnp.diag(scale) < 0, -1.0, 1.0)  # [D, D], lower, positive diagonal
    conditional = units / jnp.sqrt((vectors**2 * values).sum(1))

    def solve(g: Array, damping: Array) -> Array:
        return units * (vectors @ ((vectors.T @ (units * g)) / (values + damping)))

    return _Shape(scale, conditional, flattest, flatness, solve)


def _diagonal(energy: Any, u: Array) -> _Shape:
    """The same with the Hessian's diagonal alone, estimated by 32 probes (Hutchinson)."""
    probes = jax.random.rademacher(jax.random.key(0), (32, u.size), u.dtype)
    hvp = lambda v: jax.jvp(jax.grad(energy), (u,), (v,))[1]  # noqa: E731
    products = jax.lax.map(hvp, probes)  # [32, D]
    diagonal = jnp.abs((probes * products).mean(0))
    diagonal = jnp.maximum(diagonal, 1e-6 * diagonal.max() + 1e-30)
    sd = 1 / jnp.sqrt(diagonal)
    least = jnp.argmin(diagonal)
    return _Shape(
        sd,
        sd,
        jnp.zeros_like(u).at[least].set(1.0),
        diagonal[least] / diagonal.max(),
        lambda g, damping: g / (diagonal * (1 + damping)),
    )


def _require_a_peak(potential: Potential, start: Start, bounds: np.ndarray) -> None:
    """Raise where a density has no Gaussian near it: it is flat, or it has no highest point."""
    names, rounding = potential.names, 30 * np.finfo(start.flatness.dtype).eps
    steep = np.abs(np.asarray(_gradient(potential, start)))
    is_flat = start.scale.ndim == 2 and not start.flatness > rounding
    late = int(start.steps) + 2 > len(bounds)
    is_rising = late and bounds[-1] - bounds[-min(10, len(bounds))] > RISING
    if is_rising or (is_flat and steep.max() > 10):
        worst = names[int(np.argmax(steep))]
        raise UnboundedDensityError(
            f"The density of {potential.measure.name} still rises where the search ends.",
            address=worst.split("[")[0],
            expected="a posterior with a highest point, or with mass around it",
            got=f"ELBO {float(start.elbo):.4g}, rising mostly by {worst}",
            where=user_line(),
            fix="look for data that are constant or fitted exactly, so that a scale goes to zero; "
            "give scales a prior that is zero there (d.InverseGamma, d.LogNormal)" + _digits(start),
        )
    if is_flat:
        size = np.abs(np.asarray(start.flattest))
        flat = [names[i] for i in np.argsort(-size) if size[i] > 0.1 * size.max()]
        raise UnboundedDensityError(
            f"The density of {potential.measure.name} does not change in some direction.",
            address=flat[0].split("[")[0],
            expected="data or a prior that determine every choice",
            got=f"{', '.join(flat[:6])} can change together without a difference",
            where=user_line(),
            fix="drop a column that others add up to (collinear predictors, a constant beside an "
            "intercept), or give proper priors" + _digits(start),
        )


def _gradient(potential: Potential, start: Start) -> Array:
    """The gradient at the start, in units of each coordinate's conditional standard deviation."""
    gradient = jax.grad(lambda u: potential(potential.unravel(u)))(start.center)
    return gradient * start.conditional


def _digits(start: Start) -> str:
    if start.center.dtype == jnp.float64:
        return ""
    return '; unscaled data need jax.config.update("jax_enable_x64", True)'
