"""Unbiased: what the draws of one plate are used for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from credit_programs import THETA, array, derivatives, drawing, exactly, kept_axes, plate_of
from gradient_checks import NoScore, check_biased, check_exact, check_mean, estimates
from jax import lax

from varax import estimators as est
from varax.transforms import dependence

FOUR = np.array([1.0, -0.5, 2.0, 0.3])
MATRIX = np.array([[0.0, 1.0, 1.0, 0.5], [2.0, 0.0, -1.0, 1], [1.0, 1.0, 0.0, 0], [0, 0, 1, -1]])


def lane_costs(z, t):
    return jnp.sin(2 * z + t[1]) * array(t, FOUR) + 3 * z * t[0]


def written(z, t):
    return (z.at[1:].set(jnp.exp(z[:3] + t[0])).at[2].multiply(z[0] + 1) * array(t, FOUR)).sum()


def squares(z, t):
    """Reshaped and transposed: the same sizes, other entries."""
    square = z.reshape(2, 2)
    return (jnp.exp(square.T) * (square + 1) * array(t, [[0.0, 1.0], [-2.0, 1.0]])).sum()


def looped(z, t):
    """Each step of a loop reads its own entry, then what a later one needs."""

    def step(carry, row):
        return carry * t[1] + row[0], jnp.sin(row[1] * 2 + carry)

    return lax.scan(step, array(t, 0.5), (z, z[::-1]))[1] @ array(t, FOUR)


OBJECTIVES = {
    "sum": lambda z, t: lane_costs(z, t).sum(),
    "mean of a jit": lambda z, t: 3 * jax.jit(lambda z: jax.jit(lane_costs)(z, t).mean())(z),
    "square": lambda z, t: lane_costs(z, t).sum() ** 2,
    "half and half": lambda z, t: lane_costs(z, t).sum() + jnp.sin(z.sum()) * t[1],
    "reversed": lambda z, t: (jnp.sin(z * 2) * z[::-1] * array(t, FOUR)).sum(),
    "rolled": lambda z, t: (jnp.roll(z, 1) * (array(t, FOUR) + 3 * z * t[1])).sum(),
    "cumulated": lambda z, t: (jnp.cumsum(z) ** 2 * array(t, FOUR)).sum(),
    "sorted": lambda z, t: (jnp.sort(z) * array(t, FOUR)).sum(),
    "mixed": lambda z, t: (jnp.exp(array(t, MATRIX) @ z / 2) * array(t, FOUR)).sum(),
    "permuted": lambda z, t: (jnp.exp(z * 2)[jnp.array([1, 2, 3, 0])] * (z + t[0])).sum(),
    "squares": squares,
    "written": written,
    "looped": looped,
    "selected": lambda z, t: (array(t, FOUR)[(z + jnp.roll(z, 1)).astype(int)] * z).sum(),
    "largest": lambda z, t: (z * array(t, FOUR)).max() + jnp.argmax(z * array(t, FOUR)) * z[0],
    "fourier": lambda z, t: (jnp.abs(jnp.fft.fft(z)) * array(t, FOUR)).sum(),
}
FEELS = {
    "reversed",
    "cumulated",
    "mixed",
    "permuted",
    "looped",
    "fourier",
}  # of these the blind analysis is wrong


def all_objectives(draw, t):
    z = plate_of(draw, t, lanes=FOUR)
    return [f(z, t) for f in OBJECTIVES.values()]


@pytest.mark.slow
def test_objectives_of_one_plate():
    scores = [est.Score(), est.Score(est.LeaveOneOut(2)), est.Score(est.LeaveOneOut(3))]
    programs = [lambda t, e=e: all_objectives(drawing(e), t) for e in [*scores, NoScore()]]
    exact = exactly(all_objectives, derivatives)
    *found, twin = estimates(programs, THETA, derivatives)
    for draws in found:
        check_mean(draws, exact)
    for at in range(len(OBJECTIVES)):
        check_biased(twin[:, at], exact[at])


def test_objectives_of_one_plate_to_a_blind_analysis(monkeypatch):
    monkeypatch.setattr(dependence, "axis_map", kept_axes)
    exact = exactly(all_objectives, derivatives)
    program = lambda t: all_objectives(drawing(est.Score()), t)  # noqa: E731
    (draws,) = estimates([program], THETA, derivatives)
    for at, name in enumerate(OBJECTIVES):
        if name in FEELS:
            check_biased(draws[:, at], exact[at])


@pytest.mark.parametrize("first", range(0, len(OBJECTIVES), 8))
def test_objectives_of_one_plate_by_enumeration(first):
    """One at a time: together one that couples the lanes would couple them for all."""
    each = list(OBJECTIVES.values())[first : first + 8]

    def program(f):
        return lambda t: f(plate_of(drawing(est.Enumerate()), t, lanes=FOUR), t)

    exact = exactly(all_objectives, derivatives)
    for at, draws in enumerate(estimates([program(f) for f in each], THETA, draws=2)):
        check_exact(draws, exact[first + at])
