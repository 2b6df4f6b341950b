"""vx.quantize: the modules that come out, under every transformation, and what it says of them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_runs import run

import varax as vx
from varax import errors
from varax.kernels.errors import KernelValueError
from varax.kernels.quant import Scheme
from varax.models import vae, vae_quantized

KEY = jax.random.key(0)
SCHEMES = [
    Scheme(bits=8),
    Scheme(bits=4, symmetric=False),
    Scheme(bits=3, method="higgs"),
    Scheme(bits=4, grid="nf4", outliers=0.02),
]


@functools.cache
def net():
    return eqx.nn.MLP(5, 3, 40, 2, key=KEY)


def inputs(count=30):
    return jax.random.normal(jax.random.key(1), (count, 5))


def dense(module):
    """The module with floats again: what the quantized one has to compute."""

    def back(x):
        if not isinstance(x, vx.QuantizedLinear):
            return x
        plain = eqx.nn.Linear(x.in_features, x.out_features, x.use_bias, key=KEY)
        new = (x.matrix.dequantize().T, x.bias)
        where = lambda n: (n.weight, n.bias) if x.use_bias else n.weight  # noqa: E731
        return eqx.tree_at(where, plain, new if x.use_bias else new[0])

    return jax.tree.map(back, module, is_leaf=lambda x: isinstance(x, vx.QuantizedLinear))


# ---- the module


@pytest.mark.thin(4)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_quantized_module_computes_what_its_weights_say(scheme):
    small, x = vx.quantize(net(), scheme), inputs()
    plain = dense(small)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(small(x[0]), plain(x[0]))
    expected = jax.vmap(plain)(x)
    close(jax.vmap(small)(x), expected)
    close(eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(small, x), expected)
    close(jax.jit(jax.vmap(small))(x), expected)
    twice = jax.jit(jax.vmap(jax.vmap(small, 1), 1))(x.reshape(5, 6, 5).transpose(2, 0, 1))
    close(twice, expected.reshape(5, 6, 3))
    close(jax.lax.map(small, x), expected)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: plain(x).sum())))(x)
    close(jax.jit(jax.vmap(jax.grad(lambda x: small(x).sum())))(x), slope)
    close(jax.jit(jax.jacfwd(small))(x[0]), jax.jit(jax.jacfwd(plain))(x[0]))


def test_int8_activations_are_near_and_have_the_derivative_without_rounding():
    small, x = vx.quantize(net(), Scheme(bits=8, activations="int8")), inputs()
    plain = dense(small)
    np.testing.assert_allclose(jax.vmap(small)(x), jax.vmap(plain)(x), atol=0.02)
    slope = jax.grad(lambda x: small(x).sum())(x[0])
    np.testing.assert_allclose(slope, jax.grad(lambda x: plain(x).sum())(x[0]), atol=0.02)


def test_scales_and_biases_can_be_trained_and_codes_stay():
    small, x = vx.quantize(net(), Scheme(bits=3, method="higgs")), inputs()
    y = jax.vmap(net())(x)

    @eqx.filter_value_and_grad
    def loss(m):
        return ((jax.vmap(m)(x) - y) ** 2).mean()

    before, slope = eqx.filter_jit(loss)(small)
    step = jax.tree.map(lambda g: -0.02 * g, slope)
    after, _ = eqx.filter_jit(loss)(eqx.apply_updates(small, step))
    assert after < before
    assert slope.layers[0].matrix.weights.packed is None and slope.layers[0].matrix.signs is None
    assert jnp.abs(slope.layers[0].matrix.weights.scales).max() > 0


def test_modules_anywhere_in_a_pytree_scalars_and_shared_layers():
    one, two = eqx.nn.Linear("scalar", 4, key=KEY), eqx.nn.Linear(4, "scalar", False, key=KEY)
    tree = {"a": [one, two, one], "b": jnp.ones(3), "c": "text"}
    small = vx.quantize(tree, Scheme(bits=8))
    assert small["a"][0] is small["a"][2] and small["c"] == "text"
    x = jnp.array(0.7)
    np.testing.assert_allclose(small["a"][0](x), one(x), atol=0.02)
    np.testing.assert_allclose(small["a"][1](one(x)), two(one(x)), atol=0.02)
    assert small["a"][1](one(x)).shape == ()
    assert isinstance(vx.quantize(one, Scheme()), vx.QuantizedLinear)
    again = vx.quantize({"old": small, "new": two}, Scheme(bits=2))
    assert again["old"]["a"][0].matrix.scheme.bits == 8 and again["new"].matrix.scheme.bits == 2


def test_skipped_layers_stay():
    small = vx.quantize(net(), Scheme(skip="layers/[02]"))
    assert small.layers[0] is net().layers[0] and small.layers[2] is net().layers[2]
    assert isinstance(small.layers[1], vx.QuantizedLinear)


# ---- calibration


def test_calibration_by_arrays_and_by_functions_is_the_same():
    scheme, x = Scheme(bits=2, method="gptq"), inputs(200)
    ways = [
        x,
        (x,),
        lambda m: jax.vmap(m)(x),
        lambda m: jax.jit(jax.vmap(m))(x).sum(),
        lambda m: jax.lax.map(m, x),
        lambda m: vx.seed(lambda: jax.vmap(m)(x))(KEY),
    ]
    found = [vx.quantize(net(), scheme, calibration=way) for way in ways]
    for other in found[1:]:
        for a, b in zip(found[0].layers, other.layers, strict=True):
            same = np.asarray(a.matrix.dequantize() == b.matrix.dequantize())
            assert same.mean() > 0.99  # a sum in float32 may round once the other way


def test_errors_of_gptq_are_smaller_and_shown():
    x = inputs(200)
    reports = [
        vx.quantization_report(net(), vx.quantize(net(), s, calibration=x), calibration=x)
        for s in (Scheme(bits=3, method="gptq"), Scheme(bits=3))
    ]
    for a, b in zip(*(r.layers for r in reports), strict=True):
        assert a.output_error <= b.output_error * (1 + 1e-5)
    assert reports[0].layers[1].output_error < 0.6 * reports[1].layers[1].output_error


def test_the_report_counts_and_prints():
    small = vx.quantize(net(), Scheme(bits=4, skip="layers/2"))
    report = vx.quantization_report(net(), small)
    assert report.bytes_before == 4 * sum(x.size for x in jax.tree.leaves(net()) if eqx.is_array(x))
    middle = report.layers[1]
    # 40 inputs are padded to 64, 40 outputs to 48; one scale an output; the bias
    assert middle.bytes_after == 64 * 48 // 2 + 40 * 4 + 40 * 4
    assert middle.bits == 8 * (middle.bytes_after - 160) / 1600
    w, v = net().layers[1].weight, small.layers[1].matrix.dequantize().T
    np.testing.assert_allclose(
        middle.weight_error, jnp.linalg.norm(v - w) / jnp.linalg.norm(w), rtol=1e-4
    )
    assert report.layers[2].scheme is None and report.layers[2].weight_error == 0
    assert set(report.to_dict()) >= {"path", "bits", "weight_error"}
    shown = repr(report)
    assert "layers/1" in shown and "40 x 40" in shown and "left as it was" in shown
    assert f"{report.bytes_before:,} -> {report.bytes_after:,}" in shown.splitlines()[-1]
    assert report._repr_html_().count("<tr>") == 5


# ---- errors

GPTQ = Scheme(method="gptq")


@pytest.mark.parametrize(
    ("module", "scheme", "calibration", "match"),
    [
        (lambda: {"a": jnp.ones((3, 3))}, Scheme(), None, "no linear layer to quantize"),
        (net, Scheme(skip="*"), None, r"(?s)no linear layer.*3 that are all skipped"),
        (net, {"bits": 4}, None, "given by a scheme"),
        (net, GPTQ, None, "GPTQ needs calibration"),
        (net, GPTQ, np.ones((7, 4), np.float32), r"(?s)do not fit.*\[7, 4\]"),
        (net, GPTQ, np.ones(5, np.float32), r"(?s)do not fit"),
        (net, GPTQ, "images", "do not fit the module"),
        (net, GPTQ, lambda m: None, r"(?s)No calibration input.*layers/0"),
        (net, GPTQ, lambda m: m(jnp.ones((2, 5))), r"(?s)another shape.*jax.vmap"),
        (lambda: [net()], GPTQ, np.ones((7, 5)), "a module that can be called"),
    ],
)
def test_what_cannot_be_quantized_is_said(module, scheme, calibration, match):
    with pytest.raises(errors.QuantizationError, match=match):
        vx.quantize(module(), scheme, calibration=calibration)


def test_weights_and_calibration_are_finite_and_weights_are_matrices():
    weight = net().layers[1].weight.at[2, 3].set(jnp.nan)
    bad = eqx.tree_at(lambda m: m.layers[1].weight, net(), weight)
    with pytest.raises(KernelValueError, match="Weights are finite") as found:
        vx.quantize(bad, Scheme())
    assert found.value.__notes__ == ["in the layer layers/1"]
    with pytest.raises(KernelValueError, match="inputs is not finite"):
        vx.quantize(net(), Scheme(method="gptq"), calibration=inputs().at[0, 0].set(jnp.inf))
    stacked = eqx.filter_vmap(lambda k: eqx.nn.Linear(2, 3, key=k))(jax.random.split(KEY, 4))
    with pytest.raises(errors.QuantizationError, match="several layers lie in one array"):
        vx.quantize(stacked, Scheme())
    with pytest.raises(KernelValueError, match="outside of jit"):
        eqx.filter_jit(lambda m: vx.quantize(m, Scheme()))(net())
    small = vx.quantize(net(), Scheme())
    with pytest.raises(errors.QuantizationError, match=r"(?s)another shape.*jax.vmap\(layer\)"):
        small(jnp.ones((2, 5)))
    with pytest.raises(errors.QuantizationError, match="what quantization made of it"):
        vx.quantization_report(net(), small.layers[0])


# ---- the digits' autoencoder


@functools.cache
def trained():
    """The demo's autoencoder after a short fit."""
    train = vae.data()[0]
    options = {"data": train, "batch_size": 100, "progress": False}
    nets = vx.fit(vae.elbo, vae.init(KEY), optax.adam(2e-3), 300, KEY, **options).params
    return nets, vae_quantized.codes(nets, jnp.asarray(train), KEY)


@pytest.mark.thin(3)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_at_most_rounding_on_the_decoder(bits):
    nets, z = trained()
    decoder = nets["decoder"]
    schemes = Scheme(bits=bits, method="gptq"), Scheme(bits=bits)
    small = [vx.quantize(decoder, s, calibration=z) for s in schemes]
    rows = [vx.quantization_report(decoder, m, calibration=z).layers for m in small]
    for gptq, nearest in zip(*rows, strict=True):
        assert gptq.output_error <= nearest.output_error * (1 + 1e-5)
    for gptq, nearest in zip(rows[0][1:], rows[1][1:], strict=True):
        assert gptq.output_error < 0.7 * nearest.output_error


def test_programs_with_quantized_networks_are_programs():
    """Densities; and bounds and their gradients, in the next test."""
    nets, z = trained()
    small = {**nets, "decoder": vx.quantize(nets["decoder"], Scheme(bits=8))}
    images = jnp.asarray(vae.data()[1][:8])
    exact = jax.vmap(lambda z, x: vae.decoder(nets["decoder"]).log_density({"z": z, "x": x}))
    near = jax.vmap(lambda z, x: vae.decoder(small["decoder"]).log_density({"z": z, "x": x}))
    np.testing.assert_allclose(near(z[:8], images), exact(z[:8], images), atol=1.0)


@pytest.mark.slow
def test_an_encoder_is_trained_against_a_quantized_decoder():
    nets, _ = trained()
    small = {**nets, "decoder": vx.quantize(nets["decoder"], Scheme(bits=8))}
    images = jnp.asarray(vae.data()[1][:8])
    params, static = eqx.partition(nets["encoder"], eqx.is_inexact_array)

    def slope(decoder):
        def objective(params):
            return vae.elbo({"encoder": eqx.combine(params, static), "decoder": decoder}, images)

        return jax.jit(vx.grad(objective))(KEY, params).layers[0].weight

    a, b = slope(small["decoder"]), slope(nets["decoder"])
    assert jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(b)


def test_run_vae_quantized_with_parameters(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "nets.eqx", trained()[0])
    options = ("--params", tmp_path / "nets.eqx", "--schemes", "GPTQ 2", "int2")
    found = run(vae_quantized, tmp_path, *options)
    assert found["float32"] > found["GPTQ 2"] > found["int2"]


@pytest.mark.slow
def test_run_vae_quantized(tmp_path, capsys):
    schemes = ["int4", "GPTQ 2", "int2", "HIGGS 2"]
    found = run(vae_quantized, tmp_path, "--steps", 300, "--schemes", *schemes)
    assert list(found) == ["float32", *schemes]
    lost = {name: found["float32"] - elbo for name, elbo in found.items()}
    assert lost["int4"] < lost["GPTQ 2"] < lost["HIGGS 2"] < lost["int2"]
    shown = capsys.readouterr().out
    assert "of float32" in shown and f"{found['GPTQ 2']:.2f}" in shown
    assert (tmp_path / "vae_quantized.png").stat().st_size > 5000
