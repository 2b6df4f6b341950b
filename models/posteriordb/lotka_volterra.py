"""Lynx and hare in Canada, 1900 to 1920 (Hewitt 1921; Carpenter 2018): predator and prey.

    du/dt = (alpha - beta v) u,   dv/dt = (delta u - gamma) v,   theta = (alpha, beta, gamma, delta)

with u the hares, v the lynxes, in thousands of pelts, observed with log-normal errors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import varax as vx
from varax import dist as d

Array = jax.Array
STEPS = 10  # between two observations
HIGHEST = 10.0  # log population: far from the data the steps overshoot, and are not to overflow


@vx.model
def lotka_volterra(ts: Any, y_init: Any = None, y: Any = None) -> None:
    """ts: times after the first, [N]; y_init: [2]; y: [N, 2]."""
    prior = d.Normal(jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05]))
    theta = vx.sample("theta", d.Restricted(prior, d.constraints.positive))  # [4]
    z_init = vx.sample("z_init", d.LogNormal(jnp.log(10.0 * jnp.ones(2)), 1.0))  # [2]
    sigma = vx.sample("sigma", d.LogNormal(-jnp.ones(2), 1.0))  # [2]
    log_z = solve(theta, jnp.log(z_init), ts)  # [N, 2]
    vx.sample("y_init", d.LogNormal(jnp.log(z_init), sigma), obs=y_init)
    vx.sample("y", d.LogNormal(log_z, sigma), obs=y)


def solve(theta: Array, log_z: Array, ts: Any) -> Array:
    """Logarithms of the populations at the times ts, from those at 0: [N, 2].

    Tsitouras' method of order 5 with ten steps to an interval, which near the posterior is exact to
    eight digits. Steps of a fixed length make the density smooth in the parameters, and logarithms
    keep it finite where they are too long.
    """
    diffrax = _diffrax()
    term, solver = diffrax.ODETerm(field), diffrax.Tsit5()

    def interval(x: Array, span: tuple[Array, Array]) -> tuple[Array, Array]:
        start, h = span

        def step(before: Any, i: Array) -> tuple[Any, None]:
            x, memory = before
            t = start + i * h
            x, _, _, memory, _ = solver.step(term, t, t + h, x, theta, memory, made_jump=False)
            return (x, memory), None

        memory = solver.init(term, start, start + h, x, theta)
        (x, _), _ = jax.lax.scan(step, (x, memory), jnp.arange(STEPS))
        return x, x

    times = jnp.concatenate([jnp.zeros(1), jnp.asarray(ts, float)])
    return jax.lax.scan(interval, log_z, (times[:-1], jnp.diff(times) / STEPS))[1]


def field(t: Any, log_z: Array, theta: Array) -> Array:
    """d log z / dt, [2]."""
    (u, v), (alpha, beta, gamma, delta) = jnp.exp(jnp.minimum(log_z, HIGHEST)), theta
    return jnp.stack([alpha - beta * v, delta * u - gamma])


def _diffrax() -> Any:
    try:
        import diffrax
    except ModuleNotFoundError as error:
        raise vx.errors.MissingExtraError(
            "lotka_volterra solves a differential equation with diffrax, which is not installed.",
            fix="pip install 'varax[ode]'",
        ) from error
    return diffrax
