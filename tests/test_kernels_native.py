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


def test_the_errors_of_the_kernels_are_public():
    assert issubclass(kernels.errors.NativeBuildError, kernels.errors.VaraxError)
