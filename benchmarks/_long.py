"""What benchmarks of an hour share: XLA's flags for small loops, and results that outlive a run.

Import this before JAX.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLAGS = ["--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=65536"]
if version("jaxlib").startswith("0.10."):  # where two batched factorisations can wait for ever
    FLAGS.append("--xla_cpu_enable_concurrency_optimized_scheduler=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()

CACHE = Path(__file__).resolve().parents[1] / ".cache"
OPTIONS = (
    ("--only", {"help": "those whose name has this in it", "default": ""}),
    ("--fresh", {"action": "store_true", "help": "forget what earlier runs have done"}),
)


def kept(file: str, fresh: bool, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` gives, from .cache/FILE.json where an earlier run has left it there."""
    path = CACHE / f"{file}.json"
    if fresh or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(compute()))
    return json.loads(path.read_text())
