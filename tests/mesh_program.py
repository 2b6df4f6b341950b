"""Fits on 1, 2 and 4 CPU devices, in a process that has 4: python mesh_program.py OUT.npz"""

import sys
import tempfile
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import run_program as program

import varax as vx
from varax import dist as d

KEY = jax.random.key(5)


@vx.model
def lanes(batch):
    """All kinds of draws, by lane: normal, gamma (by rejection), discrete; the batch is one too."""

    def one(x):
        z = vx.sample("z", d.Normal(x, 1.0))
        g = vx.sample("g", d.Gamma(0.7, 1.0))
        k = vx.sample("k", d.Categorical(jnp.ones(5) / 5))
        return z, g, k

    jax.vmap(one)(batch)


class Draws:
    """The draws of a step are its parameters."""

    shardings: ClassVar = []

    def init(self, key, params):
        return vx.InferenceState(params)

    def step(self, key, state, batch):
        jax.debug.inspect_array_sharding(batch, callback=self.shardings.append)
        drawn = lanes(batch).simulate(key).choices
        params = {**drawn, "batch": batch}
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), params, state.params)
        return vx.InferenceState(params), {"objective": 0.0}


def draws(mesh):
    start = {"z": jnp.zeros(8), "g": jnp.zeros(8), "k": jnp.zeros(8), "batch": jnp.zeros(8)}
    data = np.arange(40.0, dtype=np.float32)
    options = {"steps": 7, "key": KEY, "progress": False, "mesh": mesh}
    return vx.fit(Draws(), start, data=data, batch_size=8, **options).params


def trained(mesh, **options):
    return program.fit(None, 40, **({"batch_size": 12, "mesh": mesh} | options)).params


def fed(mesh):
    def batches():
        rng = np.random.default_rng(3)
        while True:
            yield program.X[rng.permutation(60)[:12]]

    return trained(mesh, data=batches(), batch_size=None)


def resumed(mesh):
    """Begun on 2 devices, ended on these."""
    with tempfile.TemporaryDirectory() as folder:
        program.fit(folder, 25, batch_size=12, mesh=on(2))
        return program.fit(folder, 40, batch_size=12, mesh=mesh).params


def on(n, axes=("data",)):
    shape = (n,) if len(axes) == 1 else (n // 2, 2)
    return jax.make_mesh(shape, axes, devices=jax.devices()[:n])


RUNS = {
    "draws": (draws, ["1", "2", "4", "2x2"]),
    "trained": (trained, ["2", "4", "2x2"]),
    "fed": (fed, ["4"]),
    "resumed": (resumed, ["4"]),
    "whole": (lambda mesh: trained(mesh, batch_size=None), ["4"]),  # 60 data points
    "split": (lambda mesh: trained(mesh, data=split(mesh)), ["4"]),
}


def split(mesh):
    """The data, shared out among the devices by the user."""
    if mesh is None:
        return program.X
    return jax.device_put(program.X, jax.sharding.NamedSharding(mesh, jax.P("data")))


def main(out):
    meshes = {"none": None, "1": on(1), "2": on(2), "4": on(4), "2x2": on(4, ("data", "model"))}
    found = {}
    for name, (run, many) in RUNS.items():
        for devices in ["none", *many]:
            params = run(meshes[devices])
            assert all(len(x.devices()) == 1 for x in jax.tree.leaves(params))
            found |= {f"{name} {devices} {k}": np.asarray(x) for k, x in params.items()}
    parts = {len({str(i) for i in s.devices_indices_map((8,)).values()}) for s in Draws.shardings}
    np.savez(out, parts=sorted(parts), **found)


if __name__ == "__main__":
    assert optax and len(jax.devices()) == 4
    main(sys.argv[1])
