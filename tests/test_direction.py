"""Which way an objective with estimated densities is off, and who refuses the wrong way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import varax as vx
from varax import dist as d
from varax import errors


@vx.model
def pair(t):
    u = vx.sample("u", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(u + t, 1.0))


@vx.model
def model():
    x = vx.sample("x", d.Normal(0.0, 1.0))
    vx.sample("y", d.Normal(x, 1.0))


def p(t, k=3):
    return vx.marginal(pair(t), "x", vx.importance(k))


def drawn(t):
    return p(t).simulate()


def scored(t, x=0.3):
    return p(t).log_density({"x": x})


def log_w(t):
    trace = drawn(t)
    return model().log_density(trace.choices | {"y": 1.0}) - trace.log_density


def many(t, k=4):
    return jax.vmap(lambda _: log_w(t))(jnp.arange(k))


def over(t, inner):
    """A scan that adds."""
    return jax.lax.scan(lambda c, x: (c + inner(t), None), 0.0, jnp.arange(3))[0]


LOWER = {
    "a model": scored,
    "a guide": log_w,
    "half of it": lambda t: 0.5 * log_w(t) - 3.0,
    "a mean": lambda t: many(t).mean(),
    "importance weighted": lambda t: jax.nn.logsumexp(many(t)) - jnp.log(4),
    "by hand": lambda t: jnp.log(jnp.exp(many(t)).mean()),
    "logaddexp": lambda t: jnp.logaddexp(log_w(t), scored(t)),
    "both": lambda t: scored(t) + log_w(t),
    "in a scan": lambda t: over(t, scored),
    "in a cond": lambda t: jax.lax.cond(t > 0, log_w, lambda t: 0.0, t),
    "in jit": lambda t: jax.jit(log_w)(t),
    "with another term": lambda t: log_w(t) - t**2,
    "in a checkpoint": lambda t: jax.checkpoint(log_w)(t),
    "with a mask": lambda t: jnp.where(t > 0, scored(t), 0.0),
    "a normalised target": lambda t: vx.normalize(
        model().condition({"y": t}), vx.importance(2)
    ).log_density({"x": 0.1}),
    "iwelbo": lambda t: vx.objectives.iwelbo(model(), p(t), {"y": 1.0}, 3),
    "elbo": lambda t: vx.objectives.elbo(model(), p(t), {"y": 1.0}),
}
UPPER = {
    "minus a model": lambda t: -scored(t),
    "the other density of a guide": lambda t: model().log_density({"x": 0.3, "y": 1.0}) - scored(t),
    "a draw's": lambda t: drawn(t).log_density,
    "a loss": lambda t: -log_w(t),
    "a negative factor": lambda t: -2.0 * many(t).mean(),
}
UNBIASED = {
    "a density": lambda t: jnp.exp(scored(t)),
    "a weight": lambda t: jnp.exp(many(t)).mean() * t,
}
UNKNOWN = {
    "a square": lambda t: log_w(t) ** 2,
    "both signs": lambda t: scored(t) - scored(t),
    "a factor that is drawn": lambda t: drawn(t)["x"] * log_w(t),
    "a maximum": lambda t: many(t).max(),
    "a product of weights": lambda t: jnp.exp(scored(t)) ** 2,
    "a power": lambda t: jnp.exp(0.5 * scored(t)),
}
EXACT = {
    "no estimate": lambda t: model().log_density({"x": t, "y": 1.0}),
    "an estimate that is not used": lambda t: drawn(t)["x"] * 2.0,
}
CASES = [
    (name, f, direction)
    for direction, group in {
        "lower bound": LOWER,
        "upper bound": UPPER,
        "unbiased": UNBIASED,
        "unknown": UNKNOWN,
        "exact": EXACT,
    }.items()
    for name, f in group.items()
]


@pytest.mark.parametrize(("name", "f", "direction"), CASES, ids=[c[0] for c in CASES])
def test_the_direction_of_an_objective(name, f, direction):
    assert vx.bound(f, 0.4) == direction


EXACT_VALUE = d.Normal(0.4, np.sqrt(2.0)).log_prob(0.3)


@pytest.mark.parametrize("k", [1, 5])
def test_the_direction_is_that_of_the_mean(k):
    """Against the exact density, at many standard errors."""
    keys = jax.random.split(jax.random.key(0), 4000)
    below = jax.vmap(lambda key: p(0.4, k).log_density({"x": 0.3}, key))(keys)
    assert below.mean() + 5 * below.std() / 4000**0.5 < EXACT_VALUE
    trace = jax.vmap(p(0.4, k).simulate)(keys)
    exact = d.Normal(0.4, np.sqrt(2.0)).log_prob(trace["x"])
    gap = trace.log_density - exact
    assert gap.mean() - 5 * gap.std() / 4000**0.5 > 0


def fit(f, **options):
    return vx.fit(f, 0.4, optax.sgd(1e-3), 2, jax.random.key(0), progress=False, **options)


@pytest.mark.parametrize("name", UPPER)
def test_fit_refuses_to_maximise_an_upper_bound(name):
    with pytest.raises(errors.BoundDirectionError, match=r"To maximise (.|\n)*test_direction.py"):
        fit(UPPER[name])
    fit(UPPER[name], maximize=False)


def test_fit_refuses_to_minimise_a_lower_bound():
    with pytest.raises(errors.BoundDirectionError, match=r"upper bound(.|\n)*E\[1 / w\] = 1 / p"):
        fit(log_w, maximize=False)


def test_fit_refuses_signs_that_cancel_no_bound():
    with pytest.raises(errors.BoundDirectionError, match=r"E\[w\] = p, subtracted"):
        fit(lambda t: scored(t, 0.1) - scored(t))


def test_check_shows_the_direction():
    shown = repr(vx.check(log_w, 0.4, draws=4))
    assert "with estimated densities: lower bound" in shown
    assert "marginal(pair, x), unbiased for 1 / p, at" in shown
