"""Checkpoints: a killed run goes on bit for bit; what is damaged or of another run is refused."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run_program as program
from run_program import fit, numbers

import varax as vx
from varax import errors

pytest.importorskip("orbax.checkpoint")
HERE = Path(__file__).parent


def same(one, two):
    pairs = list(zip(numbers(one), numbers(two), strict=True))
    assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def quiet(call):
    """The call's value; any warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.fixture(scope="module")
def whole():
    """The run without interruption, 60 steps."""
    return fit(None, 60)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints at 20 and 40 of a run that ends there."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    fit(vx.Checkpoints(folder, every=20), 40)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


# ---- going on


def test_a_resumed_run_is_the_uninterrupted_one(folder, whole):
    """The permutation is in the middle of an epoch of 8 batches at step 40."""
    assert steps_in(folder) == [20, 40]
    resumed = quiet(lambda: fit(vx.Checkpoints(folder, every=20), 60))
    same(resumed, whole)
    assert resumed.steps == 60 and resumed.seconds > 0
    assert steps_in(folder) == [20, 40, 60]
    again = quiet(lambda: fit(folder, 60))  # nothing left to do
    same(again, whole)


def test_a_checkpoint_by_time_and_how_many_are_kept(tmp_path, whole):
    folder = tmp_path / "new" / "run"
    same(fit(vx.Checkpoints(folder, every=10, keep=2), 60), whole)
    assert steps_in(folder) == [50, 60]
    fit(vx.Checkpoints(tmp_path / "time", seconds=0, keep=1000), 60)
    assert len(steps_in(tmp_path / "time")) > 2  # after every call to the device
    fit(tmp_path / "default", 60)
    assert steps_in(tmp_path / "default") == [60]  # a minute did not pass


def test_kinds_of_state(tmp_path):
    """Keys, low precision, integers, flags, NaN of a metric, arrays of no elements, functions."""

    class Step:
        def init(self, key, params):
            memory = {
                "key": jax.random.split(key, 3),
                "half": jnp.linspace(0, 1, 5, dtype=jnp.bfloat16),
                "whole": jnp.arange(3),
                "flag": jnp.asarray(True),
                "none": jnp.zeros((0, 2)),
                "f": jnp.tanh,
            }
            return vx.InferenceState(params, memory)

        def step(self, key, state, batch):
            m = state.memory
            draw = jax.random.normal(m["key"][0])
            memory = m | {
                "key": jax.vmap(jax.random.fold_in)(m["key"], jnp.arange(3)),
                "half": m["half"] + draw.astype(jnp.bfloat16),
                "whole": m["whole"] + 1,
                "flag": ~m["flag"],
            }
            even = m["whole"][0] % 2 == 0
            metrics = {"objective": draw, "a/b": vx.Metric(draw, even)}
            return vx.InferenceState(m["f"](state.params + draw), memory), metrics

    def run(folder, steps):
        key = jax.random.key(3, impl="rbg")
        return vx.fit(Step(), 0.5, steps=steps, key=key, checkpoint=folder, progress=False)

    def plain(result):
        memory = dict(result.state.memory)
        assert memory.pop("f") is jnp.tanh
        memory["key"] = jax.random.key_data(memory["key"])
        leaves = jax.tree.leaves((result.params, memory, result.history))
        return [(np.asarray(x).dtype, np.asarray(x).tobytes()) for x in leaves]

    run(tmp_path / "a", 7)
    assert plain(run(tmp_path / "a", 15)) == plain(run(None, 15))


def test_a_rule_that_has_stopped_a_run_stops_it_again(tmp_path):
    rule = vx.stopping.EarlyStopping(window=10, patience=1, min_delta=1e9)
    first = fit(tmp_path / "a", 60, stop=rule)
    again = fit(tmp_path / "a", 60, stop=rule)
    assert first.steps == again.steps == 20 and "EarlyStopping" in again.stopped


def test_interruption_saves(tmp_path, whole):
    def interrupt(run):
        if run.step == 30:
            raise KeyboardInterrupt

    result = fit(tmp_path / "a", 60, callbacks=[interrupt], every=10)
    assert result.interrupted and result.steps == 30 and steps_in(tmp_path / "a") == [30]
    same(fit(tmp_path / "a", 60), whole)


def test_an_exception_of_a_callback_saves_and_keeps_the_result(tmp_path, whole):
    def fail(run):
        if run.step == 30:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        fit(tmp_path / "a", 60, callbacks=[fail], every=10)
    assert caught.value.result.steps == 30
    same(fit(tmp_path / "a", 60), whole)


# ---- kill -9


def kill_and_resume(tmp_path, kills, steps=400):
    """Kill the run at random moments, start it again each time, and compare at the end."""
    rng, python = random.Random(0), [sys.executable, HERE / "run_program.py"]
    subprocess.run([*python, "-", tmp_path / "whole.npz", str(steps)], check=True)
    killed, out = 0, tmp_path / "out.npz"
    for trial in range(1000):
        folder = tmp_path / f"run{trial}"
        for _ in range(5):  # a run is killed several times
            process = subprocess.Popen(
                [*python, folder, out, str(steps)], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout.readline() == "ready\n"
            began, wait = time.monotonic(), rng.uniform(0.0, 1.5)
            while process.poll() is None and time.monotonic() - began < 100:
                if list(folder.glob("step_*")) and wait >= 0:
                    time.sleep(wait)
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.stdout.close()
            if out.exists() or killed == kills:
                break
        subprocess.run([*python, folder, out, str(steps)], check=True, stdout=subprocess.PIPE)
        found, expected = np.load(out), np.load(tmp_path / "whole.npz")
        assert found.files == expected.files
        assert all(found[name].tobytes() == expected[name].tobytes() for name in found.files)
        assert not list(folder.glob("damaged_*"))
        out.unlink()
        if killed >= kills:
            return
    raise AssertionError(f"only {killed} kills")


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    kill_and_resume(tmp_path, 3)


@pytest.mark.slow
def test_many_kills(tmp_path):
    kill_and_resume(tmp_path, 20)


@pytest.mark.parametrize("at", ["mkdir", "arrays", "run.json", "seal", "publish", "delete"])
def test_a_kill_at_each_stage_of_saving(folder, whole, at, monkeypatch):
    """What a save has done when it ends there is no danger to the next run."""
    from varax.ppl.runs import arrays, keeper, manifest

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    owners = {
        "mkdir": (Path, "mkdir"),
        "arrays": (arrays, "save"),
        "run.json": (manifest, "write"),
        "seal": (manifest, "seal"),
        "publish": (manifest, "publish"),
        "delete": (shutil, "rmtree"),
    }
    with monkeypatch.context() as patch:
        writer = keeper.Keeper(vx.Checkpoints(folder, keep=1))
        with writer.open():
            patch.setattr(*owners[at], kill)
            with pytest.raises(Killed):
                writer.save(50, {"state0": np.zeros(3)}, {})
    kept = steps_in(folder)
    assert kept == ([40, 50] if at == "delete" else [20, 40])
    if at != "delete":
        same(quiet(lambda: fit(folder, 60)), whole)
        assert not list(folder.glob(".saving*")) and not list(folder.glob(".deleting*"))


# ---- damage


def files_of(folder, step):
    path = folder / f"step_{step:012d}"
    return sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())


def flip(path):
    """Turn one bit over, somewhere."""
    content = bytearray(path.read_bytes())
    at = random.Random(str(path)).randrange(len(content))
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_every_damaged_file_is_found(folder, harm):
    """By the verification, before anything is read."""
    from varax.ppl.runs import manifest

    newest = folder / f"step_{40:012d}"
    names = files_of(folder, 40)
    assert len(names) >= 6
    for name in names:
        content = (newest / name).read_bytes()
        if not content:
            continue
        manifest.verify(newest)
        for _ in range(8 if harm is flip else 1):
            harm(newest / name)
            with pytest.raises(manifest.Damage) as caught:
                manifest.verify(newest)
            assert caught.value.file == newest / name
            (newest / name).write_bytes(content)


@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_damage_falls_back_to_the_checkpoint_before(folder, whole, harm):
    newest = folder / f"step_{40:012d}"
    name = max(files_of(folder, 40), key=lambda name: (newest / name).stat().st_size)
    harm(newest / name)
    with pytest.warns(errors.CheckpointDamagedWarning, match=str(newest / name)):
        resumed = fit(vx.Checkpoints(folder, every=20), 60)
    same(resumed, whole)
    assert steps_in(folder) == [20, 40, 60] and list(folder.glob("damaged_*"))
    same(quiet(lambda: fit(folder, 60)), whole)


def test_a_bit_that_orbax_does_not_see(tmp_path):
    """Why there is a manifest: the array is read without complaint, and is another."""
    from varax.ppl.runs import arrays, manifest

    noise = np.random.default_rng(0).normal(size=10_000)
    arrays.save(tmp_path / "a", {"x": noise})
    manifest.seal(tmp_path / "a")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    found = arrays.load(tmp_path / "a", {"x": (noise.shape, noise.dtype)})["x"]
    assert (found != noise).any()
    with pytest.raises(manifest.Damage, match="its sha256 is not that of the manifest"):
        manifest.verify(tmp_path / "a")


def test_damage_with_nothing_to_fall_back_to(folder):
    for step in (20, 40):
        remove(folder / f"step_{step:012d}" / "run.json")
    with pytest.raises(errors.CheckpointDamagedError, match=r"(?s)no older one.*run\.json") as e:
        fit(folder, 60)
    assert e.value.file == str(folder / f"step_{40:012d}" / "run.json")
    assert steps_in(folder) == [20, 40]  # nothing was touched


# ---- another run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"params": {"w": jnp.ones(2), "s": jnp.zeros(1), "a": jnp.zeros(2)}},
            r"params\['s'\]: float32\[\] in the checkpoint, float32\[1\] now",
        ),
        ({"params": {"w": jnp.ones(2)}, "objective": lambda p, b: p["w"].sum()}, r"\['a'\].*not"),
        ({"key": jax.random.key(8)}, r"key: threefry2x32 \[0, 7\] in the checkpoint, .*\[0, 8\]"),
        ({"batch_size": 6}, "batch size: 7 in the checkpoint, 6 now"),
        ({"data": program.X + 1.0}, "the data: the same shapes, other values"),
        ({"data": program.X[:50]}, r"data\(itself\): float32\[60, 2\].*float32\[50, 2\] now"),
        ({"optimizer": optax.sgd(0.01)}, r"memory\['optimizer'\].*not there now"),
        ({"optimizer": optax.adam(0.02)}, "the program: another objective or optimizer"),
        ({"objective": lambda p, b: 2 * program.elbo(p, b)}, "the program: another objective"),
    ],
)
def test_a_checkpoint_of_another_run(saved, change, says):
    before = steps_in(saved)
    with pytest.raises(errors.CheckpointMismatchError, match=rf"(?s)another run.*{says}.*fix:"):
        fit(saved, 60, **change)
    assert steps_in(saved) == before


def test_a_changed_optimizer_on_request(folder, whole):
    settings = vx.Checkpoints(folder, same_program=False)
    result = fit(settings, 60, optimizer=optax.adam(0.5))
    np.testing.assert_array_equal(result.history[:40], whole.history[:40])
    assert not np.array_equal(result.history, whole.history)


def test_fewer_steps_than_are_done(saved):
    with pytest.raises(errors.CheckpointMismatchError, match=r"(?s)beyond the last step.*40 steps"):
        fit(saved, 30)


def test_a_new_run_in_a_used_folder(saved, tmp_path, whole):
    with pytest.raises(errors.CheckpointExistsError, match=r"(?s)another run.*up to step 40"):
        fit(saved, 60, resume=False)
    same(fit(tmp_path / "empty", 60, resume=False), whole)


def test_two_runs_in_one_folder(tmp_path):
    def second(run):
        with pytest.raises(errors.CheckpointInUseError, match="one run in a folder at a time"):
            fit(tmp_path, 60)
        return True

    assert fit(tmp_path, 60, callbacks=[second]).stopped


def test_bad_settings(tmp_path):
    with pytest.raises(errors.StepError, match=r"(?s)another `keep`.*1 or more.*0"):
        vx.Checkpoints(tmp_path, keep=0)
    with pytest.raises(errors.StepError, match=r"(?s)another `every`.*2\.5"):
        vx.Checkpoints(tmp_path, every=2.5)
    with pytest.raises(errors.CheckpointError, match=r"(?s)need a folder.*True"):
        fit(True, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointWriteError, match=r"(?s)cannot be written.*file"):
        fit(tmp_path / "file" / "run", 5)


def test_without_orbax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(errors.MissingExtraError, match=r"(?s)need Orbax.*varax\[checkpoint\]"):
        fit(tmp_path, 5)


# ---- a full disk


def test_the_run_goes_on_when_the_disk_is_full(folder, whole, monkeypatch):
    from varax.ppl.runs import manifest

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", full)
        says = r"step 60 could not be written.*No space left.*step 40 is intact"
        with pytest.warns(errors.CheckpointWriteWarning, match=says):
            result = fit(folder, 60)
    same(result, whole)
    assert steps_in(folder) == [20, 40] and not list(folder.glob(".saving*"))
    same(quiet(lambda: fit(folder, 60)), whole)


LIMITED = """
import resource, signal, sys, warnings
import varax as vx
from run_program import fit

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fit(vx.Checkpoints(sys.argv[1], every=20), 40)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = fit(vx.Checkpoints(sys.argv[1], every=5), 60)
print(len([w for w in caught if "could not be written" in str(w.message)]), result.steps)
"""


def test_a_file_system_that_refuses_while_orbax_writes(tmp_path, whole):
    """No file may grow beyond 300 bytes: the error arises in Orbax's storage, in C++."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "run"], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "60"], done.stdout + done.stderr
    assert steps_in(tmp_path / "run") == [20, 40]
    same(quiet(lambda: fit(tmp_path / "run", 60)), whole)


def test_programs_are_the_same_in_every_process():
    """Python's string hashes differ from process to process; no order may depend on them."""
    code = """
import hashlib, jax, numpy as np, run_program as p, varax as vx
from varax.ppl.batches import Batches
from varax.ppl.loop import Loop
import optax
loop = Loop(vx.GradientStep(p.elbo, optax.adam(0.1)), p.start(), jax.random.key(0), Batches(p.X, 7))
text = loop.calls.lower(loop.at.now, loop.key, loop.source.outline()).as_text()
print(hashlib.sha256(text.encode()).hexdigest())
"""
    seeds = ("1", "2", "3")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in seeds
    ]  # fmt: skip
    said = {run.communicate(timeout=300)[0] for run in runs}
    assert len(said) == 1 and len(said.pop()) == 65
