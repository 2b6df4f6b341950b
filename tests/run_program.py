"""A fit in a process of its own, to be killed: python run_program.py FOLDER RESULT.npz STEPS.

FOLDER `-` stands for no checkpoints. The result has the parameters, the optimizer's state, the
permutation and the history.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax import dist as d

X = np.random.default_rng(0).normal(1.0, 2.0, (60, 2)).astype(np.float32)


@vx.model
def model(theta, x):
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(theta["w"] * z, jnp.exp(theta["s"])), obs=x)


@vx.model
def guide(theta, x):
    vx.sample("z", d.Normal(x @ theta["a"], 0.5))


def elbo(theta, batch):
    def one(x):
        q = guide(theta, x).simulate()
        return model(theta, x).log_density(q.choices) - q.log_density

    return jax.vmap(one)(batch).mean()


def start():
    return {"w": jnp.ones(2), "s": jnp.zeros(()), "a": jnp.zeros(2)}


def fit(folder, steps, **options):
    key = options.pop("key", jax.random.key(7))
    options = {"data": X, "batch_size": 7, "checkpoint": folder, **options}
    params = options.pop("params", start())
    objective, adam = options.pop("objective", elbo), options.pop("optimizer", optax.adam(0.01))
    return vx.fit(objective, params, adam, steps, key, progress=False, **options)


def numbers(result):
    """Everything that a resumed run has to have in common with one that was not interrupted."""
    leaves = jax.tree.leaves((result.params, result.state, result.history))
    return [np.asarray(x) for x in leaves]


if __name__ == "__main__":
    folder, out, steps = sys.argv[1:]
    settings = None if folder == "-" else vx.Checkpoints(folder, every=20, keep=2)
    print("ready", flush=True)
    np.savez(out, *numbers(fit(settings, int(steps))))
