"""The native library: instruction sets, handlers, a build with sanitizers over the case list."""

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from varax import kernels
from varax.kernels import native
from varax.kernels.native import build

HERE = Path(__file__).parent
COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
LEVEL = "from varax.kernels import native; print(native.instruction_set())"

needs_library = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def python(code, **environment):
    command, env = [sys.executable, "-c", code], os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_a_compiler_means_a_library():
    """Otherwise every other test would run on XLA's forms and say nothing of ours."""
    assert native.missing() is None
    assert native.handlers()


@needs_library
def test_the_instruction_set_can_be_capped():
    here = native.LEVELS.index(native.instruction_set())
    for i, name in enumerate(native.LEVELS):
        assert python(LEVEL, VARAX_ISA=name).strip() == native.LEVELS[min(i, here)]


@needs_library
def test_a_handler_refuses_what_does_not_fit():
    two = jax.ShapeDtypeStruct((2,), jnp.float64)
    with jax.enable_x64(True), pytest.raises(jax.errors.JaxRuntimeError, match="one result"):
        native.call("varax_peak_int8", two, steps=1, tasks=1).block_until_ready()


def test_a_library_that_is_none_is_reported(tmp_path):
    broken = tmp_path / "libvarax.so"
    broken.write_text("not a library")
    code = "from varax.kernels import native; print(native.missing())"
    assert "could not be loaded" in python(code, VARAX_NATIVE_LIBRARY=str(broken))


def test_a_call_without_the_library_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda: (None, "was not built"))
    with pytest.raises(kernels.errors.NativeBuildError, match="native library was not built"):
        native.call("varax_anything", [])


def test_the_compilers_own_words_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match=r"^false "):
        build.build(tmp_path / "lib.so")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found"):
        build.compiler()


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or sys.platform != "linux", reason="needs GCC on Linux")
def test_the_sanitizers_find_nothing(tmp_path):
    """Every case through the native forms, in a process with AddressSanitizer and UBSan."""
    library = build.build(tmp_path / "libvarax.so", sanitize=True, objects=tmp_path / "objects")
    runtime, standard = (  # without the second, the first finds no way to throw
        subprocess.run(
            ["g++", f"-print-file-name={name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan", "libstdc++")
    )
    assert ctypes.util.find_library("asan") or Path(runtime).exists()
    files = sorted(str(f) for f in HERE.glob("test_kernels_*.py") if f != Path(__file__))
    files = [f for f in files if "frame" not in f]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-n0", "-k", "native", *files],
        env=os.environ
        | {
            "VARAX_NATIVE_LIBRARY": str(library),
            "LD_PRELOAD": f"{runtime} {standard}",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"


THREADS = """
import hashlib, jax, numpy as np
from jax import numpy as jnp
from kernel_cases_factor_graph import grid
from kernel_cases_kalman import chain
from varax.kernels import gp, mp
from varax.kernels.quant import PackedWeights, quantized_matmul
rng = np.random.default_rng(0)
def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)
def note(name, f, *args):
    out, pull = jax.vjp(f, *args)
    found = jax.tree.leaves((out, pull(jax.tree.map(jnp.ones_like, out))))
    print(name, hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in found)).hexdigest())
pairs = grid(40)
def graph(unary, table):
    graph = mp.FactorGraph(unary, ((pairs, table),))
    found = mp.sum_product(graph, iterations=9, damping=0.2)
    return found.marginals, mp.max_product(graph, iterations=9).log_weight
note("graph", graph, normal(1600, 3), normal(len(pairs), 3, 3))
lower = jnp.tril(normal(300, 7, 7)) + 4 * jnp.eye(7)
note("solve", gp.small_triangular_solve, lower, normal(300, 7, 2))
times = jnp.linspace(0, 50, 900)
def matern(y, scale):
    return mp.matern_log_likelihood(times, y, "5/2", 1.0, scale, 0.1)
note("matern", jax.vmap(matern, (0, None)), normal(5, 900), jnp.float32(2.0))
packed = PackedWeights.from_codes(
    rng.integers(0, 16, (256, 300)), np.float32(rng.random((2, 300))), bits=4, group=128
)
note("quantized", lambda x: quantized_matmul(x, packed), normal(20, 256))
chains = jax.vmap(lambda x: mp.hmm_smoother(jnp.ones(3) / 3, jnp.ones((3, 3)) / 3, x))
note("smoother", lambda x: chains(x)[:2], normal(70, 30, 3))
draw = jax.vmap(lambda k, x: mp.hmm_sample(k, jnp.ones(3) / 3, jnp.ones((3, 3)) / 3, x))
keys = jax.random.split(jax.random.key(0), 70)
print("sample", hashlib.sha256(np.asarray(draw(keys, normal(70, 30, 3))).tobytes()).hexdigest())
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cannot be held to one core")
def test_the_same_bits_for_any_number_of_threads():
    paths = os.pathsep.join(filter(None, [str(HERE), *sys.path]))
    one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    found = [
        subprocess.run(
            [*held, sys.executable, "-c", THREADS],
            env=os.environ | {"PYTHONPATH": paths, "VARAX_KERNELS": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for held in ([], one)
    ]
    assert len(found[0]) == 6
    assert found[0] == found[1]


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_case_on_older_processors(isa):
    if native.instruction_set() == isa:
        pytest.skip("what all other tests use here")
    files = sorted(str(f) for f in HERE.glob("test_kernels_*.py") if f != Path(__file__))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-k", "native", *files],
        env=os.environ | {"VARAX_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@needs_library
@pytest.mark.skipif("VARAX_ISA" in os.environ, reason="another instruction set is asked for")
def test_what_is_sanitized_is_what_runs():
    assert native.LEVELS[build.level_here()] == native.instruction_set()


def test_the_errors_of_the_kernels_are_public():
    assert issubclass(kernels.errors.NativeBuildError, kernels.errors.VaraxError)
