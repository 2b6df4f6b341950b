"""Builds the native library: each `src/*.cc` once, each `*.kernel.cc` per instruction set.

    python kernels/native/build.py [--sanitize] [--out FILE]

The package's own build runs this (setup.py), with the headers of the oldest supported jaxlib: a
library built against older headers loads on a newer jaxlib, not the reverse. Nothing but the
standard library is imported, and not varax. The compiler is $CXX, or c++, g++ or clang++; objects
are kept in $VARAX_NATIVE_OBJECTS, if that is set.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
LIBRARY = HERE / f"libvarax.native{SUFFIX}"  # two dots: Python takes it for no module
X86 = platform.machine().lower() in ("x86_64", "amd64")

COMMON = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall "
    "-Wno-uninitialized -Wno-maybe-uninitialized"  # GCC 12 warns of its own vector headers
).split()
LEVELS = {
    0: [],
    1: "-mavx2 -mfma -mf16c -mprefer-vector-width=256".split(),
    2: (
        "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c "
        "-mprefer-vector-width=512"
    ).split(),
}
FLAGS = {
    # of a few numbers that wait for one another, GCC makes vectors that wait for each other's parts
    "matern.kernel.cc": ["-fno-tree-slp-vectorize"],
    "kalman_smoother_adjoint.kernel.cc": ["-O2"],  # compiles in two thirds of the time
}
UNCHECKED = {  # what would take a quarter of an hour to compile
    "kalman_smoother_adjoint.kernel.cc": ["-fno-sanitize=undefined"],
}
SANITIZE = "-fsanitize=address,undefined -fno-omit-frame-pointer -g -O1".split()


class BuildError(Exception):
    """The library could not be built; the message says why."""


def compiler() -> str:
    """The C++ compiler.

    Raises:
        BuildError: there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler was found (CXX, c++, g++, clang++)")


def headers() -> Path:
    """The folder of jaxlib's FFI headers, without importing JAX.

    Raises:
        BuildError: jaxlib, or its headers, are not there.
    """
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise BuildError("jaxlib, whose headers the kernels need, is not installed")
    folder = Path(spec.origin).parent / "include"
    if not (folder / "xla/ffi/api/ffi.h").exists():
        raise BuildError(f"jaxlib has no FFI headers in {folder}")
    return folder


def level_here() -> int:
    """The instruction set of this machine's processor as Linux tells it, else the portable one."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if X86 and info.exists() else set()
    wide = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"}
    return 0 if not {"avx2", "fma"} <= flags else 2 if wide <= flags else 1


def commands(objects: Path, sanitize: bool) -> list[tuple[list[str], Path]]:
    """A compiler's command and its object file for each source and instruction set.

    To be sanitized is what this machine runs: handlers, and loops of its own instruction set.
    Portable objects come first: where the linker finds one inline function in several objects, it
    keeps that of the first, which runs everywhere.
    """
    cxx, include = compiler().split(), headers()
    flags = [*COMMON, f"-isystem{include}", *(["-DVARAX_X86"] if X86 else [])]
    found = []
    for level, own in LEVELS.items() if X86 else [(0, LEVELS[0])]:
        for source in sorted(SOURCES.glob("*.cc")):
            if level and not source.name.endswith(".kernel.cc"):
                continue
            target = objects / f"{level}-{source.stem}.o"
            define, more = f"-DVARAX_LEVEL={level}", FLAGS.get(source.name, [])
            loops = source.name.endswith(".kernel.cc")
            if sanitize:
                checked = [*SANITIZE, *UNCHECKED.get(source.name, [])]
                more = checked if not loops or level == level_here() else ["-O0"]
            elif not loops:
                more = ["-O1"]  # the loops are elsewhere
            elif X86 and not level:
                more = [*more, "-O2"]  # compiles in half the time, for processors of before 2013
            found.append(
                ([*cxx, *flags, *own, *more, define, "-c", str(source), "-o", str(target)], target)
            )
    return found


def build(out: Path = LIBRARY, *, sanitize: bool = False, objects: Path | None = None) -> Path:
    """Compile and link; returns the library's path. What has not changed is not compiled again.

    Raises:
        BuildError: no compiler, no headers, or the compiler's own message.
    """
    kept = os.environ.get("VARAX_NATIVE_OBJECTS")
    objects = Path(kept) if objects is None and kept else objects
    if objects is None:
        with tempfile.TemporaryDirectory() as folder:
            return build(out, sanitize=sanitize, objects=Path(folder))
    objects.mkdir(parents=True, exist_ok=True)
    todo = commands(objects, sanitize)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, todo))
    link = [*compiler().split(), "-shared", "-o", str(out) + ".new", *(str(o) for _, o in todo)]
    link += ["-fsanitize=address,undefined"] if sanitize else []
    _run(link)
    os.replace(str(out) + ".new", out)  # a process that has loaded the old one keeps it
    return out


def _compile(task: tuple[list[str], Path]) -> None:
    command, target = task
    source = Path(command[command.index("-c") + 1])
    flags = [part for part in command if "/" not in part]  # objects serve any copy of a checkout
    hasher = hashlib.sha256("\0".join(flags).encode())
    for file in (*sorted(_read_by(source)), headers() / "xla/ffi/api/c_api.h"):
        hasher.update(file.read_bytes())
    stamp, text = target.with_suffix(".sha256"), hasher.hexdigest()
    if target.exists() and stamp.exists() and stamp.read_text() == text:
        return
    _run(command)
    stamp.write_text(text)


def _read_by(file: Path) -> set[Path]:
    """A file, and the files of ours that it includes."""
    found, todo = {file}, [file]
    while todo:
        text = todo.pop().read_text()
        for name in re.findall(r'^\s*#include "([a-z_0-9.]+)"', text, re.MULTILINE):
            if (part := file.parent / name) not in found:
                found.add(part)
                todo.append(part)
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="AddressSanitizer and UBSan")
    parser.add_argument("--out", type=Path, default=LIBRARY)
    options = parser.parse_args()
    cache = HERE.parents[1] / ".cache" / ("native-sanitize" if options.sanitize else "native")
    try:
        print(build(options.out, sanitize=options.sanitize, objects=cache))
    except BuildError as error:
        sys.exit(f"the native kernels were not built: {error}")


if __name__ == "__main__":
    main()
