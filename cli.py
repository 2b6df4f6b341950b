"""The command line: `varax list`, `varax run MODEL`, `varax doctor`."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

MODELS = Path(__file__).parent / "models"
SMALL_LOOPS = "xla_cpu_small_while_loop_byte_threshold"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="varax", description="Probabilistic programming with programmable inference on JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models of the library")
    run = commands.add_parser("run", help="fit a model and draw its picture", add_help=False)
    run.add_argument("model", help="a name that `varax list` shows")
    commands.add_parser("doctor", help="versions, devices, kernels")
    args, rest = parser.parse_known_args(argv)
    if args.command == "run":
        _set_xla_flags()
    if args.command != "run" and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "list":
        return list_models()
    return doctor() if args.command == "doctor" else run_model(args.model, rest)


def _set_xla_flags() -> None:
    """What makes programs on CPUs faster, or lets them end; what the user has set is kept.

    Loops that touch little memory are compiled as one function: small scans, and their gradients,
    run several times faster. On jaxlib 0.10 two batched LAPACK calls in one program can wait for
    each other for ever. XLA reads the flags before the first computation.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if SMALL_LOOPS not in flags:
        flags = f"{flags} --xla_backend_extra_options={SMALL_LOOPS}=65536"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags = f"--xla_cpu_enable_concurrency_optimized_scheduler=false {flags}"
    os.environ["XLA_FLAGS"] = flags.strip()


def models() -> dict[str, str]:
    """Name and first line of every model, read without importing it."""
    found = {}
    files = {path.stem: path for path in MODELS.glob("*.py")}
    files |= {path.parent.name: path for path in MODELS.glob("*/__init__.py")}
    for name, path in sorted(files.items()):
        if not name.startswith("_"):
            summary = ast.get_docstring(ast.parse(path.read_text())) or ""
            found[name] = summary.splitlines()[0] if summary else ""
    return found


def list_models() -> int:
    """Print every model."""
    for name, summary in models().items():
        print(f"{name:16}{summary}")
    return 0


def run_model(name: str, rest: Sequence[str]) -> int:
    """Run a model's `main`."""
    if name in ("-h", "--help"):
        print("usage: varax run MODEL [its own options; --help shows them]\n")
        return list_models()
    if name not in models():
        print(f"varax: no model {name!r}; there are: {', '.join(models())}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"varax.models.{name}")
        module.main(rest)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("varax"):
            raise
        print(
            f"varax: the model {name} needs {error.name}: pip install 'varax[models]'",
            file=sys.stderr,
        )
        return 1
    return 0


def doctor() -> int:
    """Print what a report of a problem should contain."""
    import jax

    print(f"python     {platform.python_version()} on {platform.platform()}")
    for package in ("varax", "jax", "jaxlib", "numpyro", "optax", "equinox", "numpy"):
        print(f"{package:11}{importlib.metadata.version(package)}")
    print(f"devices    {', '.join(str(device) for device in jax.devices())}")
    print(f"precision  {jax.numpy.zeros(()).dtype}")
    _kernels()
    return 0


def _kernels() -> None:
    """What was built, what it uses, what each platform would run."""
    from .kernels import native
    from .kernels.frame.implementation import PLATFORMS
    from .kernels.frame.operation import OPERATIONS

    found = native.library() is not None
    print(f"native     {native.path() if found else native.missing()}")
    if found:
        print(f"handlers   {len(native.handlers())}, instruction set {native.instruction_set()}")
    for platform_name in PLATFORMS:
        by_name: dict[str, list[str]] = {}
        for operation in OPERATIONS.values():
            usable = [
                i.name
                for i in operation.implementations
                if (not i.platforms or platform_name in i.platforms)
                and (found or i.name != "native")
            ]
            by_name.setdefault(usable[0], []).append(operation.name)
        for name, operations in by_name.items():
            print(f"{platform_name:11}{name}: {', '.join(sorted(operations))}")
    flags = os.environ.get("XLA_FLAGS", "")
    loops = (
        "set"
        if SMALL_LOOPS in flags
        else f"not set; XLA_FLAGS=--xla_backend_extra_options={SMALL_LOOPS}=65536 helps scans"
    )
    print(f"XLA_FLAGS  {flags or '(none)'}\nloops      the threshold for small loops is {loops}")


if __name__ == "__main__":
    sys.exit(main())
