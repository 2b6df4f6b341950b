"""The kernels: every operation against plain XLA, the peer a user would pick, and the hardware.

    python benchmarks/kernels.py [--quick] [--only TEXT] [--save | --out FILE]

Value, and value with gradient, of every operation, as `benchmarks/_kernels_*.py` list them.
Candidates take turns; `x varax` is the median over rounds of a candidate's wall time by varax's in
the same round, with its quartiles: above 1, varax is faster. `of limit` is the time that the
machine needs at least, to move the bytes or to compute (both measured first, on all cores), by
varax's time. What each candidate returns is compared with varax's, `error` is the root mean square
of the difference by that of varax's numbers; a candidate that computes something else is left out,
and so is a peer that fails or is not installed, with a line that says so:
pip install dynamax tinygp celerite2 onnx onnxruntime pgmax torch
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
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
OWN = ("varax", "plain XLA")  # that must run, and agree
SLOW = 1.0  # seconds: a candidate that takes longer runs once a round


def best(f: Any, *args: Any, rounds: int = 7) -> float:
    """The shortest of some runs, in seconds. What is passed is no constant that XLA may fold."""
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def peaks() -> dict[str, float]:
    """What the machine can do, as measured: bytes a second read, operations a second by dtype."""
    x = jnp.ones(1 << 27, jnp.float32)  # 512 MiB
    found = {"bytes": x.nbytes / best(jax.jit(jnp.sum), x)}
    n = 2048
    for kind in ("float32", "float64"):
        a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), kind)
        found[kind] = 2 * n**3 / best(jax.jit(jnp.matmul), a, a)
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


def difference(got: Any, expected: Any) -> float:
    """Root mean square of the difference by that of what is expected, of the worst leaf."""
    ours, theirs = jax.tree.leaves(expected), jax.tree.leaves(got)
    if len(ours) != len(theirs):
        raise ValueError(f"returns {len(theirs)} arrays where varax returns {len(ours)}")
    found = 0.0
    for a, b in zip(theirs, ours, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        if a.shape != b.shape:
            raise ValueError(f"returns an array of shape {a.shape} where varax's has {b.shape}")
        size = np.sqrt(np.mean(b**2)) if b.size else 0.0
        away = (
            float(np.sqrt(np.mean((a - b) ** 2)) / size) if size else float(abs(a).max(initial=0))
        )
        if not np.isfinite(away):
            raise ValueError("returns numbers that are not finite, or varax does")
        found = max(found, float(away))
    return found


def agreeing(entry: Entry, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, float]]:
    """The candidates that compute what varax does, and by how much they differ from it."""
    candidates, errors = entry.make(), {}
    ours = candidates["varax"]()
    for name in list(candidates):
        try:
            errors[name] = difference(candidates[name](), ours)
            reason = f"differs by {errors[name]:.2g}"
        except Exception as error:  # a peer's, of any kind: a row less, and a line that says so
            if name in OWN:
                raise
            errors[name], reason = np.inf, f"{type(error).__name__}: {str(error)[:200]}"
        if not errors[name] <= entry.tolerance:
            if name in OWN:
                raise AssertionError(f"{title(entry)}: {name} {reason}")
            say(f"  {title(entry)}: {name} is left out, {reason}")
            del candidates[name]
    return candidates, errors


def title(entry: Entry) -> str:
    return f"{entry.operation} {entry.what} {entry.size}"


def timed(entry: Entry, candidates: dict[str, Any], rounds: int) -> dict[str, Runs]:
    """All candidates of an entry, in turns."""
    seconds = {name: best(f, rounds=1) for name, f in candidates.items()}
    calls = {name: 1 if s > SLOW / 10 else entry.calls for name, s in seconds.items()}
    return interleaved(candidates, 3 if max(seconds.values()) > SLOW else rounds, calls)


def row(entry: Entry, name: str, run: Runs, ours: Runs, error: float, floor: float | None) -> Any:
    """A line of the table."""
    wall, cpu = (statistics.median(x) for x in (run.wall, run.cpu))
    times = (f"{wall * 1e3:.3g}", f"{cpu * 1e3:.3g}")
    if name == "varax":
        share = "" if floor is None else f"{100 * floor / wall:.0f} %"
        return (title(entry), name, *times, "1", share, "")
    low, mid, high = quartiles([a / b for a, b in zip(run.wall, ours.wall, strict=True)])
    return ("", name, *times, f"{mid:.2f} ({low:.2f} - {high:.2f})", "", f"{error:.0e}")


def entries(quick: bool) -> list[Entry]:
    """All entries of the helper modules beside this file."""
    found: list[Entry] = []
    for file in sorted(Path(__file__).parent.glob("_kernels_*.py")):
        found += importlib.import_module(file.stem).entries(quick)
    return found


def main() -> None:
    report = Report("kernels", __doc__, ("--only", {"default": "", "help": "part of a name"}))
    with jax.enable_x64(True):
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
        if report.options.only not in title(entry):
            continue
        with jax.enable_x64(entry.kind == "float64"):  # peers make arrays of the default dtype
            candidates, errors = agreeing(entry, report.say)
            runs = timed(entry, candidates, QUICK_ROUNDS if report.quick else ROUNDS)
        floor = limit(entry, peak)
        new = [row(entry, k, run, runs["varax"], errors[k], floor) for k, run in runs.items()]
        print("\n".join("  " + "  ".join(filter(None, r)) for r in new), flush=True)
        rows += new
        del candidates
        jax.clear_caches()
    head = ("operation", "candidate", "wall ms", "CPU ms", "x varax", "of limit", "error")
    report.table(head, rows)
    report.close()


if __name__ == "__main__":
    main()
