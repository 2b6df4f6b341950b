"""What the tests of inference steps share."""

import functools

import jax
import jax.numpy as jnp
import optax

import varax as vx
from varax import dist as d

KEY = jax.random.key(0)
fit = functools.partial(vx.fit, key=KEY, progress=False)


def gradient(objective, params, batch=None, key=KEY, **settings):
    """Metrics and gradient of one gradient step."""
    step = vx.GradientStep(objective, optax.sgd(1.0), **settings)
    return step.gradient(key, step.init(key, params), batch)


@vx.model
def line(w):
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(w * z, 0.7))


@vx.model
def guide(phi, estimator=None):
    vx.sample("z", d.Normal(phi["m"], jnp.exp(phi["s"])), estimator=estimator)


def count_equations(jaxpr, name):
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr)]
    own = sum(eqn.primitive.name == name for eqn in jaxpr.eqns)
    return own + sum(count_equations(getattr(x, "jaxpr", x), name) for x in inner if is_jaxpr(x))


def is_jaxpr(x):
    return hasattr(x, "eqns")


class Write:
    """A step that writes its mark where the params say the next one goes."""

    def __init__(self, mark):
        self.mark = mark

    def init(self, key, params):
        return vx.InferenceState(params, {"taken": 0})

    def step(self, key, state, batch):
        marks, at = state.params
        taken = state.memory["taken"]
        params = (marks.at[at].set(self.mark), at + 1)
        return vx.InferenceState(params, {"taken": taken + 1}), {"objective": taken}


A, B, C = Write(0), Write(1), Write(2)
