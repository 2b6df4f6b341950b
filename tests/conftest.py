"""The process set-up of every test run, and the fixtures that all test files share.

The environment is set before JAX is imported, and inherited by the processes that tests start.
What the caller has set already is kept: `JAX_PLATFORMS=cuda pytest` runs on the GPU.
"""

import os
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"
SERIAL_CPU = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if version("jaxlib").startswith("0.10."):
    # On few cores, two independent batched LAPACK calls in one program can wait for each other
    # for ever. Later jaxlibs do not hang; a flag that XLA does not know would abort the process.
    os.environ["XLA_FLAGS"] = f"{SERIAL_CPU} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def x64(request):
    """Run the test once in each precision; the value says whether float64 is enabled."""
    with jax.enable_x64(request.param):
        yield request.param
