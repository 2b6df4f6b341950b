"""The kernels: every operation against plain XLA, the peer a user would pick, and the hardware.

    python benchmarks/kernels.py [--quick] [--only TEXT] [--save | --out FILE]

Value, and value with gradient, of every operation, as `benchmarks/_kernels_*.py` list them.
Candidates take turns; `x varax` is the median over rounds of a candidate's wall time by varax's in
the same round, with its quartiles: above 1, varax is faster. `of limit` is the time that the
machine needs at least, to move the bytes or to compute (both measured first, on all cores), by
varax's time. A peer that is not installed is left out:
pip install dynamax tinygp celerite2 onnxruntime pgmax torch
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax

if jax.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_enable_concurrency_optimized_scheduler=false " + os.environ.get("XLA_FLAGS", "")
    )

import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry
from _report import Report, Runs, interleaved, quartiles

from varax.kernels import native

ROUNDS, QUICK_ROUNDS = 11, 4
SLOW = 1.0  # seconds: a candidate that takes longer runs once a round


def best(f: Any, rounds: int = 7) -> float:
    """The shortest of some runs, in seconds."""
    jax.block_until_ready(f())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - start)
    return min(times)


def peaks() -> dict[str, float]:
    """What the machine can do, as measured: bytes a second read, operations a second by dtype."""
    x = jnp.ones(1 << 27, jnp.float32)  # 512 MiB
    found = {"bytes": x.nbytes / best(jax.jit(lambda: x.sum()))}
    n = 2048
    for kind in ("float32", "float64"):
        a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), kind)
        found[kind] = 2 * n**3 / best(jax.jit(lambda a=a: a @ a))
    if "varax_peak_int8" in native.handlers():
        found["int8"] = peak_int8(1 << 20)
    return found


def peak_int8(steps: int) -> float:
    """Operations a second of byte multiply-adds, two tasks a core."""
    out, sizes = jax.ShapeDtypeStruct((1,), jnp.float64), {"tasks": 2 * (os.cpu_count() or 1)}
    f = jax.jit(lambda: native.call("varax_peak_int8", out, steps=steps, **sizes))
    return float(f()[0]) / best(f)


def limit(entry: Entry, peak: dict[str, float]) -> float | None:
    """Seconds that the hardware needs at least."""
    parts = []
    if entry.bytes is not None:
        parts.append(entry.bytes / peak["bytes"])
    if entry.flops is not None and entry.kind in peak:
        parts.append(entry.flops / peak[entry.kind])
    return max(parts) if parts else None


def timed(entry: Entry, rounds: int) -> dict[str, Runs]:
    """All candidates of an entry, in turns."""
    candidates = entry.make()
    slowest = max(best(f, 1) for f in candidates.values())
    calls = 1 if slowest > SLOW / 10 else entry.calls
    return interleaved(candidates, 3 if slowest > SLOW else rounds, calls)


def entries(quick: bool) -> list[Entry]:
    """All entries of the helper modules beside this file."""
    found: list[Entry] = []
    for file in sorted(Path(__file__).parent.glob("_kernels_*.py")):
        found += importlib.import_module(file.stem).entries(quick)
    return found


def main() -> None:
    report = Report("kernels", __doc__, ("--only", {"default": "", "help": "part of a name"}))
    jax.config.update("jax_enable_x64", True)
    peak = peaks()
    report.say(f"native library: {native.instruction_set() or native.missing()}")
    units = {"bytes": ("GB/s", 1e9)}
    report.say(
        "measured peaks: "
        + ", ".join(
            f"{name} {value / units.get(name, ('', 1e9))[1]:.1f} {units.get(name, ('Gop/s',))[0]}"
            for name, value in peak.items()
        )
    )
    rows = []
    for entry in entries(report.quick):
        if report.options.only not in f"{entry.operation} {entry.what} {entry.size}":
            continue
        runs = timed(entry, QUICK_ROUNDS if report.quick else ROUNDS)
        ours = runs["varax"]
        floor = limit(entry, peak)
        for name, run in runs.items():
            low, mid, high = quartiles([a / b for a, b in zip(run.wall, ours.wall, strict=True)])
            ratio = "1" if name == "varax" else f"{mid:.2f} ({low:.2f} - {high:.2f})"
            share = (
                f"{100 * floor / statistics.median(run.wall):.0f} %"
                if floor is not None and name == "varax"
                else ""
            )
            head = f"{entry.operation} {entry.what} {entry.size}" if name == "varax" else ""
            ms = [statistics.median(x) * 1e3 for x in (run.wall, run.cpu)]
            rows.append((head, name, f"{ms[0]:.3g}", f"{ms[1]:.3g}", ratio, share))
        print(f"  {entry.operation} {entry.what} {entry.size} done", flush=True)
        jax.clear_caches()
    report.table(("operation", "candidate", "wall ms", "CPU ms", "x varax", "of limit"), rows)
    report.close()


if __name__ == "__main__":
    main()
