"""The Pallas kernels, really compiled for devices that are not here, and wrong ones rejected.

For TPUs by libtpu (`pip install libtpu`, the version that `jax[tpu]` names; its licence forbids
passing it on, so it is for tests alone), for GPUs by JAX's CUDA plugin and NVIDIA's ptxas.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("aot_program.py")
TPUS = ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]


def compiled(target, **environment):
    """{kernel: error or None} of every kernel."""
    run = subprocess.run(
        [sys.executable, PROGRAM, target],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert run.returncode == 0, run.stderr[-3000:]
    return {line["kernel"]: line["error"] for line in lines}


TPU_SAYS = {  # why a wrong kernel is rejected
    "wrong: blocks that are not whole tiles": "divisible by 8 and 128",
    "wrong: blocks of five steps": "divisible by 8 and 128",
    "wrong: an operation that Mosaic has not": "Unimplemented primitive",
    "wrong: more than the vector memory": "RESOURCE_EXHAUSTED",
}
MISTAKES = ("AttributeError", "NameError", "TypeError", "ImportError")  # of the test's own


def check(found, says=None):
    assert len(found) > 15
    right = {name: error for name, error in found.items() if not name.startswith("wrong")}
    assert not {name: error for name, error in right.items() if error}
    wrong = {name: error for name, error in found.items() if name.startswith("wrong")}
    assert len(wrong) == (len(says) if says else 3)
    assert all(error and not error.startswith(MISTAKES) for error in wrong.values()), wrong
    assert all(says[name] in error for name, error in wrong.items() if says), wrong


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("target", TPUS)
def test_kernels_compile_for_tpus(target):
    found = compiled(target, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    check(found, TPU_SAYS)


def cuda():
    """The folder of a CUDA toolkit with ptxas and libdevice, or None."""
    ptxas = shutil.which("ptxas")
    spec = (
        importlib.util.find_spec("nvidia.cuda_nvcc") if importlib.util.find_spec("nvidia") else None
    )
    places = [
        os.environ.get("CUDA_HOME"),
        "/usr/local/cuda",
        *(spec.submodule_search_locations if spec else ()),
    ]
    places += [Path(ptxas).resolve().parents[1]] if ptxas else []
    places += sorted(Path("/usr/local").glob("cuda-*"))
    return next((p for p in places if p and (Path(p) / "nvvm/libdevice").is_dir()), None)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="no jax-cuda12-plugin"
)
def test_kernels_compile_for_hopper(tmp_path):
    toolkit = cuda()
    if toolkit is None:
        pytest.skip("no CUDA toolkit: pip install nvidia-cuda-nvcc-cu12")
    found = compiled(
        "sm_90a",
        XLA_FLAGS=f"--xla_gpu_cuda_data_dir={toolkit}",
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
        MOSAIC_GPU_DUMP_TO=str(tmp_path),
        MOSAIC_GPU_DUMP_PTX="1",
    )
    check(found)
    programs = [path.read_text() for path in tmp_path.glob("*.ptx")]
    assert programs
    assert all(".target sm_90a" in program for program in programs)
