"""The process set-up of every test run, and the fixtures that all test files share.

The environment is set before JAX is imported, and inherited by the processes that tests start.
What the caller has set already is kept: `JAX_PLATFORMS=cuda pytest` runs on the GPU.
"""

import os
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"
QUICKLY = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "") not in ("", "0")
SERIAL_CPU = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if version("jaxlib").startswith("0.10."):
    # On few cores, two independent batched LAPACK calls in one program can wait for each other
    # for ever. Later jaxlibs do not hang; a flag that XLA does not know would abort the process.
    os.environ["XLA_FLAGS"] = f"{SERIAL_CPU} {os.environ.get('XLA_FLAGS', '')}".strip()

import collections  # noqa: E402
import gc  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def x64(request):
    """Run the test once in each precision; the value says whether float64 is enabled."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` looks at the marks
def pytest_collection_modifyitems(items):
    """`make test` runs a part of what repeats; `make test-all` runs everything.

    Of a long test, every n-th variant, or none in float64, as its marks say; of what is there in
    both precisions, one of the two, in turn.
    """
    variants, turns = collections.defaultdict(dict), collections.defaultdict(dict)
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        both = "x64" in params
        variant = item.nodeid.replace("float64", "float32") if both else item.nodeid
        skipped = False
        if (thin := item.get_closest_marker("thin")) is not None:
            seen = variants[item.nodeid.partition("[")[0]]
            skipped = seen.setdefault(variant, len(seen)) % thin.args[0] > 0
        if item.get_closest_marker("slow_in_float64"):
            skipped = skipped or params["x64"]
        elif both and not skipped and item.get_closest_marker("slow") is None:
            seen = turns[item.path]
            skipped = params["x64"] != seen.setdefault(variant, len(seen)) % 2
        if skipped:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def all_optimizations(request):
    """`make test` has XLA compile quickly; what is marked `optimized` computes longer than that."""
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", QUICKLY and not optimized)
    yield


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Compiled programs of a file are of no use to the next: together they would take gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
