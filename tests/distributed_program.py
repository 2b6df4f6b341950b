"""The VAE on digits for a few steps: python distributed_program.py OUT.npz.

With further arguments PORT PROCESSES RANK FOLDER, one of several processes, each with one CPU
device; FOLDER is for checkpoints.
"""

import sys

import jax
import numpy as np
import optax

out, *rest = sys.argv[1:]
if rest:
    port, processes, rank, folder = rest
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(rank))

import varax as vx  # noqa: E402
from varax.models import vae  # noqa: E402

STEPS, RESUMED = 30, 12
mesh = jax.make_mesh((len(jax.devices()),), ("data",)) if rest else None
images = vae.data()[0]
one, two = jax.random.split(jax.random.key(0))
options = {"key": two, "data": images, "batch_size": 50, "progress": False, "mesh": mesh}


def fit(steps, **more):
    nets = vae.init(one)
    return vx.fit(vae.elbo, nets, optax.adam(1e-3), steps=steps, **options, **more)


result = fit(STEPS)
if rest:
    assert len(jax.devices()) == int(processes) > len(jax.local_devices())
    fit(RESUMED, checkpoint=folder, callbacks=[lambda run: None])
    again = fit(STEPS, checkpoint=folder)
    np.testing.assert_array_equal(again.history, result.history)
    try:
        fit(RESUMED, checkpoint=folder)
    except vx.errors.CheckpointError as error:
        assert ("beyond the last step" if rank == "0" else "Process 0 cannot") in str(error)
    else:
        raise AssertionError("a checkpoint beyond the last step was accepted")
leaves = [np.asarray(x) for x in jax.tree.leaves(result.params) if isinstance(x, jax.Array)]
np.savez(out, *leaves, history=result.history)
