"""The wheel: what is in it, and that it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from varax.kernels.native.build import LIBRARY

ROOT = Path(__file__).resolve().parents[1]
COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, varax
modules = [m.name for m in pkgutil.walk_packages(varax.__path__, "varax.")]
for name in modules:
    importlib.import_module(name)
print(varax.__file__, *modules, sep="\\n")
"""


def run(*command, cwd):
    """The command's output; it sees neither PYTHONPATH nor the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["VARAX_NATIVE_OBJECTS"] = str(ROOT / ".cache" / "native")  # else minutes of compiling
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def left_out(folder, names):
    """Environments, caches and build products; also what setuptools has written into the root."""
    hidden = {name for name in names if name.startswith(".") or name.endswith(".egg-info")}
    venvs = {name for name in names if Path(folder, name, "pyvenv.cfg").exists()}
    return hidden | venvs | {"__pycache__"} | ({"build", "dist"} if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from the source distribution of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    out = folder / "out"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=folder)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """A Python with the wheel and this environment's dependencies, but not its varax."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    paths = {"base": str(folder), "platbase": str(folder)}
    scripts, packages = (Path(sysconfig.get_path(p, "venv", paths)) for p in ("scripts", "purelib"))
    python = scripts / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    # A path in a .pth file is only searched: the .pth files there, such as that of an editable
    # varax, are not read. It comes after `packages`, so pip was called first, to see no varax.
    dependencies = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return python


def test_wheel_holds_the_package_and_nothing_else(wheel):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [Path(*package.split(".")[1:]) for package in declared["packages"]]
    modules = {file.relative_to(ROOT) for f in folders for file in (ROOT / f).glob("*.py")}
    expected = {f"varax/{file.as_posix()}" for file in modules - {Path("setup.py")}}
    for package, names in declared["package-data"].items():
        folder = Path(*package.split("."))
        files = [f for name in names for f in (ROOT / Path(*folder.parts[1:])).glob(name)]
        assert files, f"{package} declares data that is not there"
        expected |= {
            f"{folder.as_posix()}/{f.relative_to(ROOT / Path(*folder.parts[1:]))}" for f in files
        }
    if COMPILER:
        expected.add(f"varax/kernels/native/{LIBRARY.name}")
    content = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in content if name.split("/")[0].endswith(".dist-info")}
    assert content - metadata == expected
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_every_module_imports_from_the_wheel(clean_python, tmp_path):
    location, *modules = run(clean_python, "-c", IMPORT_EVERYTHING, cwd=tmp_path).split()
    assert Path(location).is_relative_to(clean_python.parents[1])
    assert {"varax.kernels", "varax.transforms", "varax.ppl", "varax.models"} <= set(modules)


def test_command_line_runs_from_the_wheel(clean_python, tmp_path):
    assert "usage: varax" in run(clean_python.with_name("varax"), "--help", cwd=tmp_path)


def test_one_wheel_serves_every_python_of_a_platform(wheel):
    assert wheel.name.split("-")[2:4] == ["py3", "none"]


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_the_native_library_loads_from_the_wheel(clean_python, tmp_path):
    code = "from varax.kernels import native; print(native.missing(), len(native.handlers()) > 0)"
    assert run(clean_python, "-c", code, cwd=tmp_path).split() == ["None", "True"]


def test_without_a_compiler_the_package_is_built_all_the_same(tmp_path):
    copy = shutil.copytree(ROOT, tmp_path / "checkout", ignore=left_out)
    nowhere = {"PATH": "/nonexistent", "CXX": "/nonexistent/c++"}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, copy],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "the native kernels were not built, XLA will be used: no C++ compiler" in said
    (built,) = tmp_path.glob("*.whl")
    assert not any(name.endswith((".so", ".dylib")) for name in zipfile.ZipFile(built).namelist())
