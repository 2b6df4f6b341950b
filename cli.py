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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="varax", description="Probabilistic programming with programmable inference on JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models of the library")
    run = commands.add_parser("run", help="fit a model and draw its picture", add_help=False)
    run.add_argument("model", help="a name that `varax list` shows")
    commands.add_parser("doctor", help="versions and devices")
    args, rest = parser.parse_known_args(argv)
    _avoid_hang()
    if args.command != "run" and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "list":
        return list_models()
    return doctor() if args.command == "doctor" else run_model(args.model, rest)


def _avoid_hang() -> None:
    """On jaxlib 0.10 two batched LAPACK calls in one program can wait for each other for ever."""
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{flag} {os.environ.get('XLA_FLAGS', '')}".strip()


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
    return 0


if __name__ == "__main__":
    sys.exit(main())
