"""The frame of the kernels: laws of derivatives and batching, the choice of an implementation."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import varax as vx
from varax import dist as d
from varax import kernels
from varax.kernels import Call, Implementation, Operation
from varax.kernels.errors import ImplementationRefusedError, NoSuchImplementationError
from varax.kernels.frame.operation import OPERATIONS


def definition(a, x, count, *, power):
    y = jnp.sin(a @ x)
    return (y**power).sum() * count, y


def saving(a, x, count, *, power):
    return definition(a, x, count, power=power), (a @ x,)


def adjoint(operands, residuals, cotangents, *, power):
    (a, x, count), (u,), (total, each) = operands, residuals, cotangents
    y = jnp.sin(u)
    g = jnp.zeros_like(y)
    if total is not None:
        g += total * count * power * y ** (power - 1)
    if each is not None:
        g += each
    g *= jnp.cos(u)
    return jnp.outer(g, x), a.T @ g, None


CALLS = []  # what an implementation was told


def value_by_numpy(call: Call, a, x, count):
    CALLS.append(call)
    front = () if call.batch is None else (call.batch,)
    a, x, count = (
        v if has or call.batch is None else jnp.broadcast_to(v, (*front, *v.shape))
        for v, has in zip((a, x, count), call.batched, strict=True)
    )
    u = (a * x[..., None, :]).sum(-1)
    y = jnp.sin(u)
    outputs = ((y ** call.statics["power"]).sum(-1) * count, y)
    return outputs, (u,) if call.save else ()


def adjoint_by_hand(call, operands, residuals, cotangents):
    def one(operands, residuals, cotangents):
        return adjoint(operands, residuals, cotangents, **call.statics)

    if call.batch is None:
        return one(operands, residuals, cotangents)
    axes = tuple(0 if has else None for has in call.batched)
    return jax.vmap(one, (axes, 0, 0))(operands, residuals, cotangents)


def refuse_large(call):
    return "takes at most five columns" if call.operands[0].shape[1] > 5 else None


@pytest.fixture(scope="module")
def toy():
    by_hand = Implementation(
        "by_hand", ("cpu",), value_by_numpy, adjoint_by_hand, refuse=refuse_large
    )
    gpu = Implementation("by_hand", ("cuda",), value_by_numpy)
    operation = Operation(
        "toy", definition, saving=saving, adjoint=adjoint, implementations=(by_hand, gpu)
    )
    yield operation
    del OPERATIONS["toy"]


def sizes(*front):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((*front, 3, 4))), jnp.asarray(
        rng.standard_normal((*front, 4))
    )


def reduced(f):
    return lambda a, x: (
        f(a, x, jnp.asarray(2), power=3)[0]
        + jnp.exp(f(a, x, jnp.asarray(2), power=3)[1]).sum() * x.sum()
    )


DERIVATIVES = {
    "value": lambda f: f,
    "grad": jax.grad,
    "grad_x": lambda f: jax.grad(f, 1),
    "jvp": lambda f: lambda a, x: jax.jvp(f, (a, x), (jnp.cos(a), x**2)),
    "jacfwd": lambda f: jax.jacfwd(f, 1),
    "hessian": lambda f: jax.hessian(f, (0, 1)),
    "grad_of_grad": lambda f: jax.grad(lambda a, x: jnp.cos(jax.grad(f)(a, x)).sum(), 1),
    "reverse_of_forward": lambda f: jax.jacrev(jax.jacfwd(f, 0), 1),
    "third": lambda f: jax.jacfwd(jax.jacfwd(jax.grad(f, 1), 1), 1),
    "linear_transpose": lambda f: (
        lambda a, x: jax.linear_transpose(jax.linearize(lambda a: f(a, x), a)[1], a)(jnp.ones(()))
    ),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}
AXES = {"unmapped": None, "both": (0, 0), "first": (0, None), "second": (None, 0)}


def close(found, expected):
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-10), found, expected
    )


@pytest.mark.thin(6)
@pytest.mark.parametrize("implementation", ["by_hand", "xla"])
@pytest.mark.parametrize("axes", list(AXES.values()), ids=list(AXES))
@pytest.mark.parametrize("derivative", list(DERIVATIVES.values()), ids=list(DERIVATIVES))
def test_derivatives_and_vmaps_compose(toy, derivative, axes, implementation):
    with jax.enable_x64(True), kernels.using(toy=implementation):
        (a, x), (many_a, many_x) = sizes(), sizes(5)
        ours, plain = derivative(reduced(toy)), derivative(reduced(definition))
        if axes is not None:
            a, x = (many_a if axes[0] == 0 else a), (many_x if axes[1] == 0 else x)
            ours, plain = jax.vmap(ours, axes), jax.vmap(plain, axes)
        close(jax.jit(ours)(a, x), jax.jit(plain)(a, x))


def summing(call, operands, residuals, cotangents):
    """Gives the cotangents of `a` summed, where that is all that is wanted."""
    SUMMED.append(call.summed)
    da, dx, _ = adjoint_by_hand(call, operands, residuals, cotangents)
    return (da.sum(0) if 0 in call.summed else da), dx, None


SUMMED = []


@pytest.mark.parametrize("form", ["by_hand", "summing", "xla"])
def test_cotangents_of_shared_operands_are_sums_over_the_batch(toy, form):
    toy.add(Implementation("summing", ("cpu",), value_by_numpy, summing))

    def over_batch(f):
        return lambda a, x: jnp.cos(jax.vmap(f, (None, 0))(a, x)).sum()

    of = {
        "both": lambda f: jax.grad(over_batch(f), (0, 1)),
        "shared": lambda f: jax.grad(over_batch(f)),
        "mapped": lambda f: jax.grad(over_batch(f), 1),
        "each": lambda f: jax.vmap(jax.grad(f), (None, 0)),
        "of a batch of batches": lambda f: (
            lambda a, x: jax.vmap(jax.grad(over_batch(f), (0, 1)), (None, 0))(
                a, jnp.stack([x, 2 * x, x - 1])
            )
        ),
        "in another sum": lambda f: jax.grad(
            lambda a, x: over_batch(over_batch(f))(a, jnp.stack([x, 2 * x]))
        ),
        "hessian": lambda f: jax.hessian(over_batch(f)),
    }
    try:
        SUMMED.clear()
        with jax.enable_x64(True), kernels.using(toy=form):
            a, x = sizes()[0], sizes(5)[1]
            for derivative in of.values():
                close(
                    jax.jit(derivative(reduced(toy)))(a, x),
                    jax.jit(derivative(reduced(definition)))(a, x),
                )
        if form == "summing":  # counts are constants: their cotangents are never wanted
            assert SUMMED[:8] == [(0, 2)] * 6 + [(2,)] * 2  # the function calls it twice
    finally:
        del toy.implementations[0]


def test_an_adjoint_is_told_whose_cotangents_are_wanted(toy):
    wanted = []

    def choosy(call, operands, residuals, cotangents):
        wanted.append(call.wanted)
        found = adjoint_by_hand(call, operands, residuals, cotangents)
        return tuple(ct if i in call.wanted else None for i, ct in enumerate(found))

    toy.add(Implementation("choosy", ("cpu",), value_by_numpy, choosy))
    try:
        with jax.enable_x64(True), kernels.using(toy="choosy"):
            a, x = sizes()
            for of in (0, 1, (0, 1)):
                ours, plain = (jax.jit(jax.grad(reduced(f), of)) for f in (toy, definition))
                close(ours(a, x), plain(a, x))
        assert wanted == [(0,)] * 2 + [(1,)] * 2 + [(0, 1)] * 2  # the function calls it twice
    finally:
        del toy.implementations[0]


def test_an_operation_runs_outside_jit(toy):
    with jax.enable_x64(True):
        a, x = sizes()
        close(jax.grad(reduced(toy))(a, x), jax.grad(reduced(definition))(a, x))
        many = jnp.stack([x, 2 * x])
        ours, plain = (jax.vmap(reduced(f), (None, 0)) for f in (toy, definition))
        close(ours(a, many), plain(a, many))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_derivatives_of_a_mapped_call(toy, axes):
    with jax.enable_x64(True):
        (a, x), (many_a, many_x) = sizes(), sizes(5)
        a, x = (many_a if axes[0] == 0 else a), (many_x if axes[1] == 0 else x)

        def total(f):
            return lambda a, x: jnp.sin(jax.vmap(reduced(f), axes)(a, x)).sum()

        for derivative in (jax.grad, lambda f: jax.grad(f, 1), lambda f: jax.hessian(f, 1)):
            ours, plain = jax.jit(derivative(total(toy))), jax.jit(derivative(total(definition)))
            close(ours(a, x), plain(a, x))


OUTER, INNER = [(0, None), (None, 0), (0, 0)], [(0, None), (None, 0), (0, 0)]


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(OUTER, INNER)))
def test_nested_vmaps_are_one_batch(toy, outer, inner):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        front = [[n for n, o in ((2, outer[k]), (5, inner[k])) if o == 0] for k in (0, 1)]
        a = jnp.asarray(rng.standard_normal((*front[0], 3, 4)))
        x = jnp.asarray(rng.standard_normal((*front[1], 4)))

        def nested(f):
            return jax.vmap(jax.vmap(jax.value_and_grad(reduced(f), (0, 1)), inner), outer)

        CALLS.clear()
        close(jax.jit(nested(toy))(a, x), jax.jit(nested(definition))(a, x))
        assert {call.batch for call in CALLS} <= {10, 2, 5, None} and CALLS


def test_a_scan_and_a_cond(toy):
    with jax.enable_x64(True):
        a, x = sizes()

        def long(f):
            def step(c, _):
                y = jax.lax.cond(c.sum() > 0, lambda c: f(a, c, 1, power=2)[0], jnp.sum, c)
                return jnp.cos(c) * y, y

            return lambda x: jax.lax.scan(step, x, None, length=4)[1].sum()

        close(jax.grad(long(toy))(x), jax.grad(long(definition))(x))


def test_an_integer_operand_has_no_derivative(toy):
    a, x = sizes()
    f = jax.grad(lambda a, n: toy(a, x, n, power=2)[0])
    assert f(a, jnp.asarray(3)).shape == a.shape


def test_the_first_derivative_is_the_implementations(toy):
    a, x = sizes()
    explained = kernels.explain(jax.grad(reduced(toy)), a, x)
    chosen = {
        (use.part, platform): n for use in explained.uses for platform, n in use.chosen.items()
    }
    assert chosen["value", "cpu"] == chosen["adjoint", "cpu"] == "by_hand"
    assert chosen["value", "cuda"] == "by_hand" and chosen["adjoint", "cuda"] == "xla"
    assert chosen["value", "tpu"] == "xla"
    assert "not by_hand: runs on" in str(explained)


def test_explain_says_why_an_implementation_refuses(toy):
    a = jax.ShapeDtypeStruct((3, 7), jnp.float32)
    x = jax.ShapeDtypeStruct((7,), jnp.float32)
    shown = str(kernels.explain(lambda a, x: toy(a, x, 1, power=2), a, x, platform="cpu"))
    assert "toy (value) of float32[3,7], float32[7]" in shown
    assert "cpu   xla" in shown and "not by_hand: takes at most five columns" in shown


def test_explain_without_operations():
    assert str(kernels.explain(jnp.sin, jnp.ones(3))) == "no operation of varax.kernels is used"


def test_what_is_forced_runs_also_where_a_compiled_form_is_remembered():
    """Implementations that differ, which must not be, tell who ran."""
    other = Implementation("other", (), lambda call, x: ((x + 2,), ()))
    which = Operation("which", lambda x: x + 1, implementations=(other,))
    f = jax.jit(lambda x: which(x)[0])
    try:
        assert f(0) == 2
        for name, expected in (("xla", 1), ("other", 2), ("xla", 1), ("other", 2)):
            with kernels.using(which=name):
                assert f(0) == expected and which(0)[0] == expected
        assert f(0) == 2
    finally:
        del OPERATIONS["which"]


def test_forcing_changes_no_cached_result_outside(toy):
    a, x = sizes()
    f = jax.jit(lambda a, x: toy(a, x, 1, power=2))
    forced = []
    for context in (kernels.using(toy="xla"), kernels.using("by_hand"), kernels.using(toy="xla")):
        with context:
            jaxpr = jax.make_jaxpr(f)(a, x)
            forced.append("forced=xla" in str(jaxpr))
    assert forced == [True, False, True]
    assert "forced=None" in str(jax.make_jaxpr(f)(a, x))


def test_an_unknown_name_is_refused(toy):
    with pytest.raises(NoSuchImplementationError, match="No operation has this implementation"):  # noqa: SIM117
        with kernels.using("fortran"):
            pass
    with pytest.raises(NoSuchImplementationError, match="toy has not this"):  # noqa: SIM117
        with kernels.using(toy="fortran"):
            pass
    once = r"expected: native, parallel, xla, square_root\n"  # "parallel" is there twice
    with pytest.raises(NoSuchImplementationError, match=once):  # noqa: SIM117
        with kernels.using(kalman_smoother="squareroot"):
            pass
    with pytest.raises(NoSuchImplementationError, match="There is no operation toys"):  # noqa: SIM117
        with kernels.using(toys="xla"):
            pass


def test_a_forced_implementation_that_refuses_is_an_error(toy):
    with (
        kernels.using(toy="by_hand"),
        pytest.raises(ImplementationRefusedError, match="by_hand: takes at most five columns"),
    ):
        toy(jnp.ones((3, 7)), jnp.ones(7), 1, power=2)


def test_every_error_of_the_kernels_says_where(toy):
    with kernels.using(toy="by_hand"), pytest.raises(vx.errors.KernelError, match="no implement"):
        toy(jnp.ones((3, 7)), jnp.ones(7), 1, power=2)
    with pytest.raises(vx.errors.KernelError, match=r"test_kernels_frame.py:\d+.*says_where"):
        kernels.covariance_matmul("cubic", *jnp.ones((3, 2, 1)), length_scale=1.0)


def test_one_export_serves_every_platform(toy):
    a, x = sizes()
    with kernels.using(toy="xla"):
        f = jax.jit(jax.grad(reduced(toy)))
        exported = jax.export.export(f, platforms=("cpu", "cuda", "tpu"))(a, x)
        artifact = jax.export.deserialize(exported.serialize())
        np.testing.assert_allclose(artifact.call(a, x), f(a, x), rtol=1e-6)
    assert artifact.platforms == ("cpu", "cuda", "tpu")


def test_an_operation_in_a_differentiated_program(toy):
    a, _ = sizes()

    def objective(theta):
        z = vx.sample("z", d.Normal(theta, 1.0).to_event(1))
        return toy(a, z, 1, power=2)[1].sum()  # sum_i sin(a_i . z)

    theta = jnp.asarray([0.1, -0.2, 0.3, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: vx.grad(objective)(k, theta)))(keys))
    # E sin(s) = sin(m) exp(-v / 2) for s ~ N(m, v)
    variance = (np.asarray(a) ** 2).sum(1)
    exact = (np.cos(a @ theta) * np.exp(-variance / 2)) @ np.asarray(a)
    z = (draws.mean(0) - exact) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))
    assert (abs(z) < 5.5).all()  # a false alarm of 1e-6 / 4 in each of four


def in_a_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_the_library_xla_is_used_and_said_once():
    code = """
import jax, warnings
from varax import kernels
from varax.kernels import native
from varax.kernels.frame import Call
warnings.simplefilter("always")
impl = native.native(None)
call = Call((jax.ShapeDtypeStruct((2,), "float32"),), None, (False,), {}, False, "cpu")
print(impl.reason_against(call), impl.reason_against(call))
try:
    native.call("varax_nothing", [])
except kernels.errors.NativeBuildError as error:
    print(error)
"""
    done = in_a_process(code, VARAX_NATIVE_LIBRARY="/nonexistent/libvarax.so")
    assert done.stdout.count("was not built when varax was installed") == 3
    assert done.stderr.count("XLA is used") == 1


def test_the_environment_forces_an_implementation():
    code = """
import jax.numpy as jnp
from varax.kernels import Operation, Implementation, explain
def twice(x): return 2 * x
other = Implementation("other", (), lambda call, x: ((x + x,), ()))
op = Operation("twice", twice, implementations=(other,))
print(explain(lambda x: op(x), jnp.ones(2), platform="cpu").uses[0].chosen)
"""
    assert "other" in in_a_process(code).stdout
    assert "xla" in in_a_process(code, VARAX_KERNELS="xla").stdout
    assert "xla" in in_a_process(code, VARAX_KERNELS="twice=xla").stdout


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kalman_filtre=xla", r"(?s)no operation kalman_filtre.*hmm_filter.*kalman_filter"),
        ("kalman_filter=nativ", r"(?s)kalman_filter has not this.*native, .*xla.*nativ"),
        ("nativ", r"(?s)No operation has this implementation.*native, .*xla.*nativ"),
        ("hmm_filter=xla, twice=xla", "no operation twice"),
    ],
)
def test_a_typo_in_the_environment_is_an_error(monkeypatch, text, match):
    monkeypatch.setenv("VARAX_KERNELS", text)
    with pytest.raises(NoSuchImplementationError, match=match):
        kernels.hmm_filter(jnp.ones(1), jnp.ones((1, 1)), jnp.zeros((3, 1)))


def test_lanes_of_a_mapped_operation_answer_for_themselves(toy):
    """The score of a lane's choice meets its own lane's cost: the variance does not grow."""
    lanes = 64

    def objective(theta):
        def lane(_):
            z = vx.sample("z", d.Bernoulli(logits=theta), estimator=vx.estimators.Score())
            return toy(jnp.ones((1, 1)) * z, jnp.ones(1), 1, power=2)[1].sum()

        return jax.vmap(lane)(jnp.arange(lanes)).sum()

    keys = jax.random.split(jax.random.key(0), 2000)
    gradients = jax.jit(jax.vmap(lambda k: vx.grad(objective)(k, 0.3)))(keys)
    p = float(jax.nn.sigmoid(0.3))
    local = (np.sin(1.0) * (1 - p)) ** 2 * p - (np.sin(1.0) * p * (1 - p)) ** 2  # of one lane
    assert np.var(gradients) < 3 * lanes * local  # together: about `lanes` times as much


def test_rounded_activations_are_refused_to_a_path():
    codes = np.arange(32).reshape(8, 4) % 15
    weights = kernels.PackedWeights.from_codes(codes, np.full((1, 4), 0.1), bits=4, group=0)

    def objective(theta, activations):
        z = vx.sample("z", d.Normal(theta, 1.0), estimator=vx.estimators.Reparam())
        return kernels.quantized_matmul(jnp.full(8, z), weights, activations).sum()

    vx.grad(objective)(jax.random.key(0), 0.1, "float32")
    with pytest.raises(vx.errors.UnsoundEstimatorError, match="quantized_matmul"):
        vx.grad(objective)(jax.random.key(0), 0.1, "int8")


def test_an_operation_that_jumps_is_refused_to_a_path():
    rounded = Operation("rounded", jnp.round, jumps=lambda statics: True)

    def objective(theta):
        z = vx.sample("z", d.Normal(theta, 1.0), estimator=vx.estimators.Reparam())
        return rounded(z)[0]

    try:
        with pytest.raises(vx.errors.UnsoundEstimatorError, match="rounded"):
            vx.grad(objective)(jax.random.key(0), 0.1)
    finally:
        del OPERATIONS["rounded"]
