"""What `import varax` costs beyond `import jax, numpyro`, in seconds of CPU and of wall time.

Every measurement is a fresh process. The candidates take turns, so that drift of the machine meets
all alike; a first round, which fills the file cache, is not counted.
"""

import argparse
import importlib.metadata as metadata
import os
import platform
import statistics
import subprocess
import sys
import time

BASE = "import jax, numpyro"
VARAX = "import jax, numpyro, varax"


def seconds(statement):
    """CPU and wall seconds of a fresh interpreter that runs the statement."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`{statement}` failed with exit status {process.returncode}")
    return {"CPU": usage.ru_utime + usage.ru_stime, "wall": wall}


def row(label, values):
    """One line of the table: median, quartiles, extremes."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    columns = (median, low, high, min(values), max(values))
    return f"{label:<32}" + "".join(f"{value:10.3f}" for value in columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="processes per candidate")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        parser.error("a spread needs at least 2 rounds")

    seconds(BASE), seconds(VARAX)
    pairs = [(seconds(BASE), seconds(VARAX)) for _ in range(rounds)]

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "numpyro", "varax"))
    print(f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{rounds} interleaved rounds, a fresh process each; seconds\n")
    print(f"{'':<32}" + "".join(f"{h:>10}" for h in ("median", "25 %", "75 %", "min", "max")))
    for kind in ("CPU", "wall"):
        base = [without[kind] for without, _ in pairs]
        both = [with_varax[kind] for _, with_varax in pairs]
        difference = [b - a for a, b in zip(base, both, strict=True)]
        print(row(f"{BASE} ({kind})", base))
        print(row(f"{VARAX} ({kind})", both))
        print(row(f"difference by round ({kind})", difference))
        ratio = statistics.median(both) / statistics.median(base)
        print(f"{f'ratio of medians ({kind})':<32}{ratio:10.3f}\n")


if __name__ == "__main__":
    main()
