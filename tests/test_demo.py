"""What a newcomer runs: the README's snippets as printed, the documents' code, the command line."""

import os
import re
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

import varax as vx
from varax import cli
from varax.kernels import native
from varax.models import vae

ROOT = Path(__file__).resolve().parents[1]
matplotlib.use("Agg")
SMALL = f"--xla_backend_extra_options={cli.SMALL_LOOPS}"


def blocks(name):
    """The Python blocks of a document, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.optimized
def test_readme_snippets_run_as_printed_and_learn():
    first, second, third, _, kernels = blocks("README.md")
    assert len([line for line in first.splitlines() if line.strip()]) <= 30
    scope = {}
    exec(first, scope)
    elbo = scope["result"].history
    assert elbo[:50].mean() < -200 and elbo[-200:].mean() > -95
    exec(second, scope)
    assert scope["result"].history[-200:].mean() > elbo[-200:].mean() + 1
    exec(third, scope)
    assert np.isfinite(scope["value"]) and scope["gradient"].shape == (3,)
    exec(kernels, scope)
    assert np.isfinite(scope["slope"])


@pytest.mark.slow
def test_readme_posterior_runs_as_printed_and_knows_when_not_to_trust():
    first, _, _, posterior, _ = blocks("README.md")
    scope = {}
    exec("".join(line for line in first.splitlines(True) if "import" in line), scope)
    exec(posterior, scope)
    assert scope["result"].summary().columns["mean"].shape == (10,)
    assert abs(scope["draws"]["mu"].mean() - 4.4) < 1.0
    line = str(scope["draws"].summary())
    assert "diverged" in line and "Do not trust this" in line  # centred: NUTS meets a funnel


def test_the_estimator_of_the_documents_is_unbiased_and_better_than_plain_score():
    (code,) = blocks("docs/estimators.md")
    scope = {}
    exec(code, scope)
    mean, sd = scope["with_baseline"]
    rate = np.exp(0.5)  # E[(x + 100)^2] = rate + (rate + 100)^2
    exact = rate * (1 + 2 * (rate + 100))
    assert abs(mean - exact) < 5.0 * sd / np.sqrt(10_000)
    assert sd < 1000


def test_vae_reads_like_the_readme():
    """The README's model is the library's, with the library's numbers written out."""
    source = (ROOT / "models" / "vae.py").read_text()
    for line in (
        'q.choices | {"x": x}) - q.log_density',
        "mean, log_sd = jnp.split(",
        'vx.sample("z", d.Normal(mean, jnp.exp(log_sd)))',
    ):
        assert line in source and line in (ROOT / "README.md").read_text()


@pytest.mark.thin(2)
@pytest.mark.parametrize("objective", ["elbo", "iwelbo"])
def test_run_vae_prints_bounds_and_writes_picture_and_parameters(objective, tmp_path, capsys):
    out = tmp_path / "out"
    rest = ["--steps", "300", "--objective", objective, "--out", str(out)]
    assert cli.main(["run", "vae", *rest]) == 0
    captured = capsys.readouterr()
    assert "300/300" in captured.err
    number = r"-\d+\.\d\d"
    train = re.search(rf"train +({number}) +({number})", captured.out)
    held_out = re.search(rf"held out +({number}) +({number})", captured.out)
    assert train and held_out
    for row in (train, held_out):
        elbo, iwae = map(float, row.groups())
        assert -200 < elbo < iwae < -80
    import equinox as eqx

    saved = eqx.tree_deserialise_leaves(out / "vae.eqx", vae.init(jax.random.key(0)))
    assert np.isfinite(saved["decoder"].layers[0].weight).all()
    assert matplotlib.image.imread(out / "vae.png").shape[1] > 1000


def test_vae_elbo_is_that_of_a_hand_written_one():
    """Same parameters, same noise: the objective equals the formula in plain JAX."""
    nets = vae.init(jax.random.key(1))
    images = vae.data()[0][:20]
    trace = jax.vmap(lambda x, k: vae.encoder(nets["encoder"], x).simulate(k))(
        images, jax.random.split(jax.random.key(2), 20)
    )
    z = trace["z"]  # [20, 8]
    mean, log_sd = np.split(np.asarray(jax.vmap(nets["encoder"])(images / 16)), 2, axis=1)
    log_q = (-0.5 * ((z - mean) / np.exp(log_sd)) ** 2 - log_sd - 0.5 * np.log(2 * np.pi)).sum(1)
    logits = np.asarray(jax.vmap(nets["decoder"])(z), float)
    from scipy import stats

    log_x = stats.binom.logpmf(images, 16, 1 / (1 + np.exp(-logits))).sum(1)
    log_z = stats.norm.logpdf(z).sum(1)
    densities = jax.vmap(lambda z, x: vae.decoder(nets["decoder"]).log_density({"z": z, "x": x}))(
        z, images
    )
    np.testing.assert_allclose(trace.log_density, log_q, rtol=1e-4)
    np.testing.assert_allclose(densities, log_x + log_z, rtol=1e-4)


def test_command_line(capsys):
    assert cli.main(["list"]) == 0
    assert "vae" in capsys.readouterr().out
    assert cli.main(["run", "no-such-model"]) == 2
    assert re.search(r"there are: .*\bvae\b", capsys.readouterr().err)
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert vx.__version__ in shown and jax.__version__ in shown and "devices" in shown
    used = native.instruction_set()
    assert f"instruction set {used}" in shown if used else f"native     {native.missing()}" in shown
    by_platform = {line.split()[0]: line for line in shown.splitlines() if ": " in line}
    assert re.search(r"native: .*kalman_filter" if used else "xla: .*kalman", shown)
    assert {"cpu", "cuda", "tpu"} <= by_platform.keys()
    assert re.search(r"tpu +pallas: .*covariance_matmul.*quantized_matmul", shown)


@pytest.mark.parametrize("given", ["", "--xla_cpu_use_fusion_emitters=true", SMALL + "=7"])
def test_commands_set_the_threshold_for_small_loops(monkeypatch, capsys, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    cli.doctor()
    assert ("helps scans" in capsys.readouterr().out) == (given != SMALL + "=7")
    cli._set_xla_flags()
    flags = os.environ["XLA_FLAGS"]
    assert given in flags  # what the user has set is kept
    assert flags.count("small_while_loop_byte_threshold") == 1
    assert given == SMALL + "=7" or SMALL + "=65536" in flags
    cli.doctor()
    assert "threshold for small loops is set" in capsys.readouterr().out
