"""With given draws a gradient is the formula written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from credit_programs import Given, U
from gradient_checks import tolerance
from jax import lax

import varax as vx
from varax import dist as d
from varax import estimators as est

RUNS = 3
DRAWN = np.random.default_rng(0).normal(size=(4, 2, RUNS))  # steps or lanes, inner lanes, runs


def normal(address, mean, values, baseline=None):
    return vx.sample(address, d.Normal(mean, 1.0), estimator=Given(baseline, values))


def others(c):
    """Per run, the mean of the other runs, which lie along the last axis."""
    return (c.sum(-1, keepdims=True) - c) / (c.shape[-1] - 1)


def given_plate(t, b):
    """Draws of mean t u_i; cost sin(x_i) + t x_i for each lane."""

    def lane(u, x):
        x = normal("x", t * u, x, b)
        return jnp.sin(x) + t * x

    return jax.vmap(lane)(jnp.array(U), DRAWN[:, 0]).sum()


def by_hand_plate(t, x):  # [4, runs]
    u = U[:, None]
    return [(u * (x - t * u), np.sin(x) + t * x)], x.sum(0)


def given_batch(t, b):
    x = normal("x", t * U[:, None] * np.ones(2), DRAWN, b)  # [4, 2]
    return (jnp.sin(x) * U[:, None] + t * x).mean()


def by_hand_batch(t, x):
    u = U[:, None, None]
    return [(u * (x - t * u), (np.sin(x) * u + t * x) / 8)], x.mean((0, 1))


def given_coupled(t, b):
    x = jax.vmap(lambda u, x: normal("x", t * u, x, b))(jnp.array(U), DRAWN[:, 0])
    return jnp.sin(x).sum() + x.sum() ** 2


def by_hand_coupled(t, x):
    u = U[:, None]
    score = u * (x - t * u)
    whole = np.broadcast_to(x.sum(0) ** 2, x.shape)
    return [(score, np.sin(x)), (score, whole)], np.zeros(RUNS)


def given_chain(t, b, reverse=False):
    """x_t has mean t x_{t-1} + u_t; the cost of a step is t x_t x_{t-1}."""

    def step(carry, row):
        u, x = row
        x = normal("x", t * carry[0] + u, x, b)
        return (x, carry[1] + t * x * carry[0]), None

    rows = (jnp.array(U), DRAWN[:, 0])
    return lax.scan(step, (jnp.ones(()), jnp.zeros(())), rows, reverse=reverse)[0][1]


def by_hand_chain(t, x):
    before = np.concatenate([np.ones((1, RUNS)), x[:-1]])
    score = before * (x - t * before - U[:, None])
    costs = t * x * before
    return [(score[: s + 1], np.broadcast_to(costs[s], (s + 1, RUNS))) for s in range(4)], (
        (x * before).sum(0)
    )


def given_chain_in_reverse(t, b):
    return given_chain(t, b, reverse=True)


def by_hand_chain_in_reverse(t, x):
    before = np.concatenate([x[1:], np.ones((1, RUNS))])
    score = before * (x - t * before - U[:, None])
    costs = t * x * before
    return [(score[s:], np.broadcast_to(costs[s], (4 - s, RUNS))) for s in range(4)], (
        (x * before).sum(0)
    )


def given_steps(t, b):
    """Independent draws in a scan: a step answers for itself."""

    def step(total, row):
        u, x = row
        return total + jnp.sin(normal("x", t * u, x, b)), None

    return lax.scan(step, jnp.zeros(()), (jnp.array(U), DRAWN[:, 0]))[0]


def by_hand_steps(t, x):
    u = U[:, None]
    return [(u * (x - t * u), np.sin(x))], 0.0


def given_plate_in_chain(t, b):
    """Two lanes, each a chain: x_{t,i} has mean t x_{t-1,i} + u_t."""

    def step(carry, row):
        u, x = row
        x = jax.vmap(lambda c, x: normal("x", t * c + u, x, b))(carry[0], x)
        return (x, carry[1] + jnp.sin(x)), None

    rows = (jnp.array(U), DRAWN)
    return lax.scan(step, (jnp.ones(2), jnp.zeros(2)), rows)[0][1].sum()


def by_hand_plate_in_chain(t, x):
    before = np.concatenate([np.ones((1, 2, RUNS)), x[:-1]])
    score = before * (x - t * before - U[:, None, None])
    c = np.sin(x)
    return [(score[: s + 1], np.broadcast_to(c[s], (s + 1, 2, RUNS))) for s in range(4)], 0.0


def given_nested(t, b):
    """An outer lane's draw x_i, and two inner ones of mean x_i t; costs sin(y) and x."""

    def outer(u, x, y):
        x = normal("x", t * u, x, b)
        ys = jax.vmap(lambda y: normal("y", t * x, y, b))(y)
        return jnp.sin(ys).sum() + x

    return jax.vmap(outer)(jnp.array(U), DRAWN[:, 0], DRAWN[::-1]).sum()


def by_hand_nested(t, x):
    y, u = DRAWN[::-1], U[:, None]
    score_x, score_y = u * (x - t * u), x[:, None] * (y - t * x[:, None])
    inner = [(score_y + score_x[:, None], np.sin(y))]
    return [*inner, (score_x, x)], 0.0


BY_HAND = {
    "plate": (given_plate, by_hand_plate, DRAWN[:, 0]),
    "batch": (given_batch, by_hand_batch, DRAWN),
    "coupled": (given_coupled, by_hand_coupled, DRAWN[:, 0]),
    "chain": (given_chain, by_hand_chain, DRAWN[:, 0]),
    "chain in reverse": (given_chain_in_reverse, by_hand_chain_in_reverse, DRAWN[:, 0]),
    "steps": (given_steps, by_hand_steps, DRAWN[:, 0]),
    "plate in chain": (given_plate_in_chain, by_hand_plate_in_chain, DRAWN),
    "nested": (given_nested, by_hand_nested, DRAWN[:, 0]),
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("baseline", [None, est.LeaveOneOut(RUNS)], ids=["plain", "others"])
@pytest.mark.parametrize("name", BY_HAND)
def test_formula(name, baseline, x64):
    """Scores times credited costs, minus baselines; plus the direct derivative."""
    program, formula, x = BY_HAND[name]
    t = 0.7
    found = vx.grad(lambda t: program(t, baseline))(jax.random.key(0), t)
    pairs, direct = formula(t, x)
    if baseline is None:
        total = sum((s * c)[..., 0].sum() for s, c in pairs) + np.broadcast_to(direct, RUNS)[0]
    else:
        each = sum((s * (c - others(c))).reshape(-1, RUNS).sum(0) for s, c in pairs) + direct
        total = each.mean()
    np.testing.assert_allclose(
        found, total, rtol=tolerance(found.dtype), atol=tolerance(found.dtype)
    )


def test_formula_with_a_constant_baseline(x64):
    """A lane's own cost is compared with the baseline of the lane."""
    t, u, x = 0.7, U, DRAWN[:, 0, 0]
    found = vx.grad(lambda t: given_plate(t, 0.4))(jax.random.key(0), t)
    total = (u * (x - t * u) * (np.sin(x) + t * x - 0.4)).sum() + x.sum()
    np.testing.assert_allclose(found, total, rtol=tolerance(found.dtype))


def test_formula_with_a_learned_baseline(x64):
    """A lane's baseline is trained on the lane's own cost."""
    t, x = 0.7, DRAWN[:, 0, 0]
    b = jnp.array([0.1, 0.2, -0.3, 0.4])

    def program(b):
        def lane(u, x, b):
            x = normal("x", t * u, x, est.Learned(b))
            return jnp.sin(x) + t * x

        return jax.vmap(lane)(jnp.array(U), DRAWN[:, 0], b).sum()

    found = vx.grad(program)(jax.random.key(0), b)
    total = np.sin(x) + t * x - np.asarray(b)
    np.testing.assert_allclose(
        found, total, rtol=tolerance(found.dtype), atol=tolerance(found.dtype)
    )
