"""What the benchmarks share: options, interleaved timing, compile times, tables, the report's text.

    report = Report("vae_overhead", __doc__)              # parses --quick, --save, --out FILE
    runs = interleaved({"hand": f, "varax": g}, rounds=20, calls=10)
    report.table(("candidate", "CPU ms"), rows)
    report.close()

The machine is assumed to be shared: candidates take turns in short rounds, CPU time counts beside
wall time, and a ratio is formed within each round before the median is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "numpyro", "varax")


@dataclasses.dataclass
class Runs:
    """Seconds of one candidate: one entry a round, per call."""

    cpu: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)

    def ratio(self, base: Runs) -> str:
        """CPU: ratio of the medians, then the median and quartiles of the ratios by round."""
        overall = statistics.median(self.cpu) / statistics.median(base.cpu)
        low, mid, high = quartiles([a / b for a, b in zip(self.cpu, base.cpu, strict=True)])
        return f"{overall:.3f}  {mid:.3f} ({low:.3f} - {high:.3f})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25 %, median, 75 %."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, mid, high


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """`median (25 % - 75 %)`, each times scale."""
    low, mid, high = (f"{v * scale:.4g}" for v in quartiles(values))
    return f"{mid} ({low} - {high})"


@contextlib.contextmanager
def timed(runs: Runs, calls: int = 1) -> Any:
    """Add the CPU and wall seconds of the block, per call."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    runs.cpu.append((time.process_time() - cpu) / calls)
    runs.wall.append((time.perf_counter() - wall) / calls)


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, calls: int | Mapping[str, int]
) -> dict[str, Runs]:
    """Time candidates in turns: every round runs each `calls` times, in alternating order.

    A candidate returns what it computed; the round ends when that is ready. A first round, which
    fills caches, is not counted. `gc` waits meanwhile. Threads of one candidate that still wait for
    work in a loop do not take the next one's time: see `settled`.
    """
    runs = {name: Runs() for name in candidates}
    order = list(candidates)
    gc.collect()
    gc.disable()
    for at in range(rounds + 1):
        for name in order if at % 2 else reversed(order):
            settled()
            one, times = Runs(), calls if isinstance(calls, int) else calls[name]
            with timed(one, times):
                for _ in range(times):
                    out = candidates[name]()
                jax.block_until_ready(out)
            if at:
                runs[name].cpu += one.cpu
                runs[name].wall += one.wall
    gc.enable()
    return runs


def settled(most: float = 1.0) -> None:
    """Wait, `most` seconds, until the process uses no CPU: onnxruntime's threads spin a while."""
    step, end = 0.004, time.perf_counter() + most
    while time.perf_counter() < end:
        cpu = time.process_time()
        time.sleep(step)
        if time.process_time() - cpu < step / 8:
            return


@dataclasses.dataclass
class Built:
    """Seconds that it takes to get a compiled function; `make` and `args` as in `built`."""

    trace: Runs = dataclasses.field(default_factory=Runs)  # tracing and lowering: Python
    compile: Runs = dataclasses.field(default_factory=Runs)  # XLA
    both: Runs = dataclasses.field(default_factory=Runs)


def built(makers: Mapping[str, Callable[[], Any]], args: Any, rounds: int) -> dict[str, Built]:
    """Trace, lower and compile fresh functions in turns, with JAX's and varax's caches cleared.

    Args:
        makers: name -> function that makes a new jitted function.
        args: what each is lowered for, a tuple, or a dict of tuples by name.
        rounds: counted rounds; one more comes first, so that imports are not counted.
    """
    found = {name: Built() for name in makers}
    jax.config.update("jax_enable_compilation_cache", False)
    for at in range(rounds + 1):
        for name, make in makers.items():
            function, given = make(), args[name] if isinstance(args, dict) else args
            forget()
            trace, compile_ = Runs(), Runs()
            with timed(trace):
                lowered = function.lower(*given)
            with timed(compile_):
                lowered.compile()
            if at:
                for kind in ("cpu", "wall"):
                    one, two = getattr(trace, kind)[0], getattr(compile_, kind)[0]
                    getattr(found[name].trace, kind).append(one)
                    getattr(found[name].compile, kind).append(two)
                    getattr(found[name].both, kind).append(one + two)
    return found


def forget() -> None:
    """Clear JAX's caches and varax's, as in a fresh process that has imported them."""
    jax.clear_caches()
    for module in [m for n, m in sys.modules.items() if n.startswith("varax.")]:
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                getattr(value, "cache_clear", lambda: None)()
    gc.collect()


class Report:
    """The options, and the text: printed as it comes, written to a file when asked."""

    def __init__(self, name: str, doc: str | None, *options: tuple[str, dict[str, Any]]):
        parser = argparse.ArgumentParser(description=(doc or name).splitlines()[0])
        parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
        parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME.txt")
        parser.add_argument("--out", type=Path, help="write the text to this file")
        for flag, settings in options:
            parser.add_argument(flag, **settings)
        self.options = parser.parse_args()
        self.quick: bool = self.options.quick
        results = Path(__file__).parent / "results" / f"{name}.txt"
        self.out: Path | None = self.options.out or (results if self.options.save else None)
        self.text = io.StringIO()
        self.say((doc or name).splitlines()[0])
        self.say(about())

    def say(self, line: str = "") -> None:
        """Print a line, and keep it."""
        print(line, flush=True)
        self.text.write(line + "\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: the first column to the left, the others to the right."""
        cells = [list(map(str, r)) for r in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        self.say()
        for row in cells:
            first, *rest = zip(row, widths, strict=True)
            padded = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
            self.say("  ".join(padded).rstrip())

    def close(self) -> None:
        """Write the file, if one was asked for."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(self.text.getvalue())


def about() -> str:
    """The machine, the day, the versions: two lines."""
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    today = datetime.date.today().isoformat()
    device = jax.devices()[0].device_kind
    return (
        f"{_cpu()}, {os.cpu_count()} cores, JAX device {device}, load {load}, {today}\n"
        + ", ".join(versions)
    )


def _cpu() -> str:
    """The processor's name, with its widest vector instructions."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        flags = facts.get("flags", "").split()
        wide = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "")
        return " ".join(filter(None, (facts.get("model name"), wide)))
    return platform.processor() or platform.machine()
