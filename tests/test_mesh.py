"""Data-parallel fits: the same draws on any number of devices, the same parameters to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from mesh_program import RUNS

import varax as vx
from varax import errors

HERE = Path(__file__).parent


def start(program, *args, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, HERE / program, *map(str, args)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(*processes):
    """All of them, none left behind."""
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    pytest.importorskip("orbax.checkpoint")
    out = tmp_path_factory.mktemp("mesh") / "out.npz"
    finish(start("mesh_program.py", out, devices=4))
    return np.load(out)


@pytest.mark.parametrize("mesh", RUNS["draws"][1])
def test_draws_are_the_same_bits(numbers, mesh):
    for name in ("z", "g", "k", "batch"):
        one, many = numbers[f"draws none {name}"], numbers[f"draws {mesh} {name}"]
        assert one.std() > 0 and one.tobytes() == many.tobytes()


@pytest.mark.parametrize(
    ("run", "mesh"), [(run, mesh) for run in RUNS if run != "draws" for mesh in RUNS[run][1]]
)
def test_parameters_are_the_same_to_rounding(numbers, run, mesh):
    """From arrays, an iterator, all data, data split by the user; resumed from 2 devices."""
    for name in ("w", "s", "a"):
        one, many = numbers[f"{run} none {name}"], numbers[f"{run} {mesh} {name}"]
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
        if run in ("resumed", "split"):
            np.testing.assert_allclose(many, numbers[f"trained none {name}"], rtol=1e-5, atol=1e-6)


def test_a_batch_is_split_among_the_devices(numbers):
    """In 1, 2 and 4 parts; the 2 x 2 mesh splits it in 2."""
    assert numbers["parts"].tolist() == [1, 2, 4]


@pytest.mark.slow
def test_two_processes_train_the_vae_as_one_does(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{name}.npz" for name in ("alone", "first", "second")]
    finish(start("distributed_program.py", outs[0]))
    folder = tmp_path / "run"
    finish(*(start("distributed_program.py", outs[1 + i], port, 2, i, folder) for i in (0, 1)))
    alone, first, second = (np.load(out) for out in outs)
    assert alone.files == first.files and len(alone.files) > 10
    for name in alone.files:
        assert first[name].tobytes() == second[name].tobytes()
        # By norm: where a gradient is zero but for rounding, Adam's step is of any size.
        error = np.linalg.norm(first[name] - alone[name])
        assert error <= 1e-5 * np.linalg.norm(alone[name])


def test_what_does_not_fit():
    mesh = jax.make_mesh((1,), ("data",))
    options = {"data": np.ones(9), "progress": False}

    def fit(mesh, **more):
        args = (lambda p, b: b.sum() * p, 0.0, optax.sgd(0.1), 3, jax.random.key(0))
        return vx.fit(*args, **options, **more, mesh=mesh)

    assert fit(mesh).steps == 3
    with pytest.raises(errors.StepError, match=r"(?s)not a mesh.*make_mesh.*4"):
        fit(4)
    from varax.ppl.runs.placement import Placement

    class Two(Placement):
        parts = 2

    with pytest.raises(errors.ShapeError, match=r"(?s)shared out equally.*multiple of 2.*9 data"):
        Two(mesh).require_divisible(9)
