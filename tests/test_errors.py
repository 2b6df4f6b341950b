"""Every exception: its class, its address, and a message that says what was expected, what came,
in which line of the user's program, and the way out.

The user's line is that of the lambda, or of a function the line that ends in `# here`.
"""

import inspect
import operator
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import varax as vx
from varax import dist as d
from varax import errors as e
from varax import estimators as est
from varax import sample

KEY = jax.random.key(0)
NORMAL, GAMMA, COIN = d.Normal(0.0, 1.0), d.Gamma(1.0, 1.0), d.Bernoulli(0.5)
CLASSES = d.Categorical(probs=jnp.ones(4) / 4)
COINS, FORTY = (d.Bernoulli(np.full(n, 0.5)) for n in (3, 40))
ONE_TWO = jnp.array([1.0, 2.0])
STRAIGHT = est.Biased(est.StraightThrough())
CASES = []


def line_of(f):
    if f.__name__ == "<lambda>":
        return f.__code__.co_firstlineno
    lines, first = inspect.getsourcelines(f)
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))


def raises(kind, address, *says, line=None):
    """Register a function that raises, on the marked line of `line` where that is another."""

    def register(f, *args):
        at = line_of(line or f)
        name = f"{kind.__name__}, line {f.__code__.co_firstlineno}, {says[0]}"
        CASES.append(pytest.param(lambda: f(*args), kind, address, says, at, id=name))

    return register


def simulate(f):
    return vx.model(f)().simulate(KEY)


def density(f, choices=None):
    return vx.model(f)().log_density(choices or {})


def expect(f):
    return vx.expect(f)(KEY)


def pair():
    x = sample("x", NORMAL)
    return sample("y", d.Normal(x, 1.0))  # here


def two():
    x = sample("x", NORMAL)
    return sample("x", d.Normal(x, 1.0))  # here


def one():
    return sample("x", NORMAL)  # here


PAIR, ONE = vx.model(pair), vx.model(one)

# ---- addresses

SAME = (e.DuplicateAddressError, "x", "every address once", "a second one; the first is at")
raises(*SAME, f"test_errors.py:{line_of(two) - 1} (two)", "rename one", line=two)(
    lambda: simulate(two)
)
raises(*SAME)(lambda: density(lambda: (sample("x", NORMAL), sample("x", NORMAL, obs=1.0))))
raises(*SAME)(lambda: simulate(lambda: (sample("x", NORMAL), vx.deterministic("x", 1.0))))
raises(*SAME, "jax.vmap or jax.lax.scan", line=one)(
    lambda f: simulate(lambda: f() + f()), jax.jit(one)
)
raises(e.DuplicateAddressError, "u/x", *SAME[2:], line=one)(
    lambda: simulate(lambda: (sample("u", ONE()), sample("u", ONE())))
)
raises(e.DuplicateAddressError, "u", *SAME[2:], line=one)(
    lambda: simulate(lambda: (sample("u", NORMAL), sample("u", ONE())))
)
raises(e.MissingAddressError, "u/x", "missing {u/x}", "{u/x}", "choices |", line=one)(
    lambda: density(lambda: sample("u", ONE()))
)
raises(e.UnknownAddressError, "w", "unknown {w}", "{x}", "{x, w}", "exactly", line=one)(
    lambda: ONE().log_density({"x": 0.0, "w": 0.0})
)
raises(e.AddressMismatchError, "scale", "missing {scale} and unknown {scael}", "is near scale")(
    lambda: density(lambda: sample("scale", NORMAL), {"scael": 0.0})
)
raises(e.UnknownAddressError, "w", "condition: unknown {w}", "{x}", line=one)(
    lambda: ONE().condition({"w": 0.0}).log_density({"x": 0.0})
)
raises(e.UnknownAddressError, "w", "do: unknown {w}", "{x}", line=one)(
    lambda: ONE().do({"w": 0.0}).simulate(KEY)
)
raises(e.UnknownAddressError, "w", "reparameterize: unknown {w}", "{x}", line=one)(
    lambda: vx.reparameterize(ONE(), {"w": "noncentred"}).simulate(KEY)
)
raises(e.UnknownAddressError, "w", "generate: unknown {w}", "{x}", line=one)(
    lambda: ONE().generate(KEY, {"w": 0.0})
)
raises(e.UnknownAddressError, "x/y", "one of {x}", "trace['outer', 'inner']")(
    lambda: ONE().simulate(KEY)["x", "y"]
)
raises(e.AddressError, None, "a dict", "Trace", "trace.choices")(
    lambda: ONE().log_density(ONE().simulate(KEY))
)
raises(e.VaraxError, None, "a non-empty string", "3", "the address comes first")(
    lambda: vx.seed(lambda: sample(3, NORMAL))(KEY)
)

# ---- guides

raises(e.GuideMismatchError, "y", "{x, y}", "guide {x}", "data {}", "in the guide", line=pair)(
    lambda: expect(lambda: vx.objectives.elbo(PAIR(), ONE(), {}))
)


@pytest.mark.parametrize("objective", ["elbo", "iwelbo"])
@pytest.mark.parametrize(
    ("wrong", "names", "data"),
    [("w", "xw", "y"), ("w, y", "xw", ""), ("y", "xy", "y"), ("w", "x", "yw")],
    ids=["other in guide", "other and missing", "drawn and given", "other in data"],
)
def test_guides(objective, wrong, names, data):
    q = vx.model(lambda: [sample(name, NORMAL) for name in names])()
    more = (3,) if objective == "iwelbo" else ()
    with pytest.raises(e.GuideMismatchError) as caught:
        values = dict.fromkeys(data, 1.0)
        expect(lambda: getattr(vx.objectives, objective)(PAIR(), q, values, *more))
    assert caught.value.address == wrong
    sets = ("{" + ", ".join(sorted(s)) + "}" for s in ("xy", names, data))
    for part in (*sets, "in the guide", __file__):
        assert part in str(caught.value)


# ---- shapes and supports


def in_scan_and_vmap():
    draw = lambda: sample("z", d.Normal(jnp.zeros(4), 1.0))  # noqa: E731  # here
    return lax.scan(lambda c, _: (c, jax.vmap(draw, axis_size=2)()), 0.0, None, length=3)[1]


def of_branches(statement):
    def program():
        yes = lambda: statement(jnp.zeros(()))  # noqa: E731  # here
        return lax.cond(sample("b", COIN) == 1, yes, lambda: statement(jnp.zeros(2)).sum())

    return program


raises(e.ShapeError, "y", "shape () of Normal", "shape (3,)", "jax.vmap over the data")(
    lambda: density(lambda: sample("y", NORMAL, obs=jnp.arange(3.0)))
)
raises(e.ShapeError, "y", "shape (3,) of Normal", "shape ()", "jnp.broadcast_to(obs, shape)")(
    lambda: density(lambda: sample("y", d.Normal(jnp.zeros(3), 1.0), obs=1.0))
)
for wrong in [(), (4,), (2, 3, 4)]:
    form = "(3, 2, 4) (scan 3, lane 2, then (4,))"
    raises(e.ShapeError, "z", form, f"shape {wrong}", "full array", line=in_scan_and_vmap)(
        lambda z: density(in_scan_and_vmap, {"z": z}), np.zeros(wrong)
    )
raises(e.ShapeError, None, "batch shape (2,)", "shape (3,)", "one mask per lane")(
    lambda: vx.masked(d.Normal(jnp.zeros(2), 1.0), np.ones(3, bool))
)
raises(e.ShapeError, None, "batch shape ()", "shape (3,)", "one mask per lane")(
    lambda: vx.masked(ONE(), np.ones(3, bool))
)
raises(e.ShapeError, None, "batch shape ()", "shape (3,)", "one factor per lane")(
    lambda: vx.scaled(NORMAL, jnp.ones(3))
)
raises(e.ShapeError, "w", "shape ()", "shape (2,)", "sum it")(lambda: vx.factor("w", jnp.zeros(2)))
for statement in (
    lambda m: sample("x", d.Normal(m, 1.0)),
    lambda m: sample("x", d.Normal(m, 1.0), obs=m),
    lambda m: vx.deterministic("x", m),
):
    raises(e.ShapeError, "x", "float32[2]", "float32[]", "addresses of their", line=statement)(
        lambda program: vx.model(program)().generate(KEY, {}), of_branches(statement)
    )
raises(e.SupportError, "y", "Positive", "of Gamma", "[-1.0]", "vx.masked(distribution, mask)")(
    lambda: density(lambda: sample("y", GAMMA, obs=-1.0))
)
raises(e.SupportError, "y", "of Gamma", "[-1.0, -2.0]", "correct the data")(
    lambda y: jax.jit(lambda m: density(lambda: sample("y", d.Gamma(m), obs=y)))(np.ones(3)),
    np.array([-1.0, 3.0, -2.0]),
)
raises(e.SupportError, "n", "IntegerNonnegative", "of Poisson", "[1.5]")(
    lambda: density(lambda: sample("n", d.Poisson(1.0)), {"n": 1.5})
)
raises(e.SupportError, "k", "index, and floats", "integers", "float32", "data.astype(int)")(
    lambda ks: jax.vmap(lambda k: density(lambda: sample("k", CLASSES, obs=k)))(ks),
    np.array([1.0, 2.0]),
)
raises(e.SupportError, "k", "IntegerInterval", "of Categorical", "[1.5]")(
    lambda: density(lambda: sample("k", CLASSES, obs=1.5))
)
raises(e.SupportError, "y", "Positive", "of Gamma", "[-1.0]")(
    lambda: jax.jit(lambda: density(lambda: sample("y", GAMMA), {"y": -1.0}))()
)

# ---- where a program runs

OUTSIDE = (e.UnhandledSampleError, "x", "outside any transformation", "vx.seed(program)(key, ...)")
raises(*OUTSIDE)(lambda: sample("x", NORMAL))
raises(*OUTSIDE)(lambda: jax.jit(lambda: sample("x", NORMAL))())
raises(*OUTSIDE)(lambda: jax.vmap(lambda m: sample("x", d.Normal(m, 1.0)))(jnp.zeros(3)))
raises(*OUTSIDE, line=one)(lambda: ONE().simulate())


def differentiated(around):
    def program():
        f = around(lambda m: m * sample("x", NORMAL))  # here
        return jax.grad(f)(1.0)

    return program


own = jax.custom_jvp(lambda m: m + sample("x", NORMAL))
own.defjvp(lambda primals, tangents: (own(*primals), tangents[0]))

raises(e.DifferentiationError, "x", "needs an estimator", "use vx.grad or vx.value_and_grad")(
    lambda: jax.grad(lambda m: sample("x", d.Normal(m, 1.0)))(0.0)
)
raises(e.DifferentiationError, "b", "reparameterizable", "Bernoulli", "vx.grad", "stop_gradient")(
    lambda: jax.grad(vx.seed(lambda p: p * sample("b", d.Bernoulli(p))), 1)(KEY, 0.5)
)
raises(e.DifferentiationError, "x", "custom_jvp", "draw outside the function", line=own.fun)(
    lambda: jax.grad(vx.seed(own), 1)(KEY, 0.0)
)
for name, around in {
    "jit": jax.jit,
    "jax.checkpoint": jax.checkpoint,
    "scan": lambda f: lambda m: lax.scan(lambda m, _: (f(m), None), m, None, length=2)[0],
    "cond": lambda f: lambda m: lax.cond(m > 0, f, lambda m: m, m),
}.items():
    inside = f"inside `{name}`"
    raises(e.DifferentiationError, "x", inside, "draw outside the f", line=differentiated)(
        lambda program: vx.seed(program)(KEY), differentiated(around)
    )


def in_solver():
    solve = lambda _, b: b / 2 + sample("x", NORMAL)  # noqa: E731  # here
    return lax.custom_linear_solve(lambda x: 2 * x, jnp.ones(()), solve)


def in_predicate():
    more = lambda _: sample("x", COIN) == 1  # noqa: E731  # here
    return lax.while_loop(more, lambda n: n + 1, 0)


def until_three():
    body = lambda z: z + jnp.abs(sample("z", NORMAL))  # noqa: E731  # here
    return lax.while_loop(lambda z: z < 3, body, 0.0)


def traced_bound():
    body = lambda i, z: z + jnp.abs(sample("z", NORMAL))  # noqa: E731  # here
    return jax.jit(lambda n: lax.fori_loop(0, n, body, 0.0))(3)


HIDDEN = (e.HiddenSampleError, "x", "draw outside and pass the value in", "inside jit, vmap, scan")
for program, says in (in_solver, "`custom_linear_solve` at"), (in_predicate, "`while` at"):
    raises(*HIDDEN, says, f"test_errors.py:{line_of(program) + 1}", line=program)(
        lambda program: vx.seed(program)(KEY), program
    )
LOOP = (e.LoopDensityError, "z", "steps known while tracing", "jax.lax.scan over the", "vx.seed")
for program in (until_three, traced_bound):
    m = vx.model(program)()
    raises(*LOOP, "simulate: ", line=program)(lambda m: m.simulate(KEY), m)
    raises(*LOOP, "log_density: ", line=program)(lambda m: m.log_density({"z": 1.0}), m)
    raises(*LOOP, "generate: ", line=program)(lambda m: m.generate(KEY, {}), m)
    raises(*LOOP, "condition: ", line=program)(lambda m: m.condition({"z": 1.0}).addresses, m)


def needs_value(use):
    def program():
        rain = sample("weather", d.Poisson(1.0))
        return use(rain * 2)  # here

    return program


def needs_value_in_scan():
    def step(carry, _):
        rain = sample("weather", NORMAL)
        return (carry if rain > 0 else -carry), None  # here

    return lax.scan(step, 1.0, None, length=2)[0]


TRACED = (e.TracedBranchError, "weather", "random choice weather", "a Python value", "jax.lax.cond")
item, index = operator.methodcaller("item"), [1, 2].__getitem__
for use in (bool, int, float, range, item, index, np.asarray, np.sin):
    raises(*TRACED, "shape ()", line=needs_value)(
        lambda program: vx.seed(program)(KEY), needs_value(use)
    )
raises(*TRACED, line=needs_value_in_scan)(lambda: simulate(needs_value_in_scan))

# ---- capabilities and estimators

raises(e.CapabilityError, "x", "Sampleable", "an observation", "m.generate(key, {})")(
    lambda: simulate(lambda: sample("x", NORMAL, obs=1.0))
)
raises(e.CapabilityError, "w", "Sampleable", "a factor", "m.generate(key, {})")(
    lambda: simulate(lambda: vx.factor("w", 1.0))
)
raises(e.CapabilityError, "x", "random choices only", "an observation", "m.log_density(choices)")(
    lambda: expect(lambda: sample("x", NORMAL, obs=1.0))
)
for thing in (3.0, ONE, d.Normal):
    raises(e.CapabilityError, "x", "a distribution", repr(thing), "call the model")(
        lambda thing: simulate(lambda: sample("x", thing)), thing
    )
raises(e.CapabilityError, "x", "an array", "a dict with ['x']")(
    lambda: density(lambda: sample("x", NORMAL, obs={"x": 1.0}))
)
raises(e.CapabilityError, "x", "Sampleable", "ImproperUniform")(
    lambda: simulate(lambda: sample("x", d.ImproperUniform(d.constraints.real, (), ())))
)
raises(e.EstimatorError, "u", "a nested model has its own", "set estimator= inside one")(
    lambda: simulate(lambda: sample("u", ONE(), estimator=est.Reparam()))
)
raises(e.EstimatorError, "x", "an instance", "Score'>")(
    lambda: simulate(lambda: sample("x", NORMAL, estimator=est.Score))
)
raises(e.NotReparameterizableError, "b", "rsample", "Bernoulli", "estimator=Score()")(
    lambda: expect(lambda: sample("b", COIN, estimator=est.Reparam()))
)
raises(e.EnumerationError, "n", "a finite support", "Poisson", "estimator=Score()")(
    lambda: expect(lambda: sample("n", d.Poisson(1.0), estimator=est.Enumerate()))
)
raises(e.EnumerationError, "x", "a finite support", "Normal", "Reparam()")(
    lambda: expect(lambda: sample("x", NORMAL, estimator=est.Enumerate()))
)
raises(e.EnumerationError, "b", "at most 65536", "(40,)", "2 values for each of 40", "a sum over")(
    lambda: expect(lambda: sample("b", FORTY, estimator=est.Enumerate()).sum() ** 2)
)
raises(e.EnumerationError, "b24", "paths", "estimator=Score() for some sites")(
    lambda: expect(lambda: [sample(f"b{i}", COIN, estimator=est.Enumerate()) for i in range(30)])
)

raises(e.UnsoundEstimatorError, "x", "continuous in the value", "comparison `>`", "Score()")(
    lambda: expect(lambda: jnp.where(sample("x", NORMAL, estimator=est.Reparam()) > 0, 1.0, 0.0))
)
raises(e.BaselineError, "b", "broadcasts to (3,)", "shape (2,)", "one number for each entry")(
    lambda: expect(lambda: sample("b", COINS, estimator=est.Score(jnp.zeros(2))))
)
raises(e.BaselineError, None, "n >= 2", "Score() has no baseline")(lambda: est.LeaveOneOut(1))
raises(e.RelaxationError, "b", "between those of the support", "conversion to int", "RELAX")(
    lambda: expect(lambda: ONE_TWO[sample("b", COIN, estimator=est.REBAR(0.5)).astype(int)])
)
raises(e.BiasedEstimatorError, "b", "strict=True", "StraightThrough", "or strict=False")(
    lambda: vx.expect(lambda: sample("b", COIN, estimator=STRAIGHT), strict=True)(KEY)
)
raises(e.EstimatorError, "b", "Biased(StraightThrough(...))", "wrong derivatives are accepted")(
    lambda: expect(lambda: sample("b", COIN, estimator=est.StraightThrough()))
)
raises(e.ObjectiveError, None, "a scalar of a floating-point type", "shape (2,)", "vx.expect(f)")(
    lambda: vx.grad(lambda t: t * jnp.ones(2))(KEY, 1.0)
)
raises(e.ObjectiveError, None, "a scalar, alone or first", "shape (3,)", "without them")(
    lambda: vx.expect(lambda: 1.0 * sample("b", COINS, estimator=est.Score(0.5)))(KEY)
)
raises(e.KeyArgumentError, None, "jax.random.key(0)", "got:      0.3", "vx.grad(f)(key, ...)")(
    lambda: vx.grad(lambda t: t * sample("x", NORMAL))(0.3)
)
raises(e.KeyArgumentError, None, "got:      an array of float32[2]", "the program's own arguments")(
    lambda: vx.expect(lambda t: t * sample("x", NORMAL))(jnp.ones(2))
)
raises(e.EstimatorError, None, "not an estimator", "Score()", "got:      <class")(
    lambda: vx.expect(lambda: sample("x", NORMAL), estimators={"x": est.Score})(KEY)
)
raises(e.EstimatorError, None, "not a strategy", "MonteCarlo(16)", "got:      <class")(
    lambda: vx.expect(lambda: sample("x", NORMAL), using=vx.strategies.MonteCarlo)
)
raises(e.BudgetError, None, "budget > 0 seconds", "got:      0")(
    lambda: vx.tune_estimators(lambda t: t, 1.0, KEY, budget=0)
)
raises(e.UnknownAddressError, "y", "one of x")(
    lambda: vx.expect(lambda: sample("x", NORMAL), estimators={"y": est.Score()})(KEY)
)
raises(e.EstimatorError, "p", "a finite support, a normal", "Gamma", "an estimator of its own")(
    lambda: vx.expect(lambda: sample("p", GAMMA), using=vx.strategies.Quadrature(4))(KEY)
)
raises(e.EstimatorError, None, "even n", "got:      3")(lambda: vx.strategies.Antithetic(3))
raises(e.ShapeError, None, "(), (n,) and (n,)", "(2,), (2,) and (2,)")(
    lambda: vx.learning_signals(*[jnp.ones(2)] * 3)
)


@pytest.mark.parametrize(("f", "kind", "address", "says", "line"), CASES)
def test_message(f, kind, address, says, line):
    with pytest.raises(e.VaraxError) as caught:
        f()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert caught.value.address == address, message
    for part in says:
        assert part in message
    assert not any(f"{folder}/" in message for folder in ("transforms", "ppl")), message
    if "outer" not in message:  # a trace does not know its program
        assert f"  at:       {__file__}:{line} (" in message


def test_every_exception_has_a_case():
    raised = {case.values[1] for case in CASES}
    every = {x for x in vars(e).values() if inspect.isclass(x) and issubclass(x, e.VaraxError)}
    here = Path(__file__)
    others = [path.read_text() for path in here.parent.glob("test_*.py") if path != here]
    named = {name for text in others for name in re.findall(r"raises\(\s*[\w.]*\b(\w+Error)", text)}
    assert {kind.__name__ for kind in every - raised} <= named


# ---- what works, next to what does not


def test_loops_and_custom_derivatives_run_forward():
    assert vx.seed(until_three)(KEY) >= 3
    trace = vx.model(lambda m: own(m))(5.0).simulate(KEY)
    assert trace.value == 5 + trace["x"]


def test_a_discrete_draw_from_parameters_that_are_not_differentiated():
    f = vx.seed(lambda p: p * sample("b", d.Bernoulli(lax.stop_gradient(p))))
    value, slope = jax.value_and_grad(f, 1)(KEY, 0.9)
    assert value == 0.9 * slope


def test_expectations_refuse_references():
    def stateful(t):
        r = jax.new_ref(jnp.zeros(()))
        r[...] = 2.0 * sample("z", d.Bernoulli(logits=t))
        return r[...]

    with pytest.raises(e.CapabilityError, match="not in references"):
        vx.grad(stateful)(KEY, 0.3)


def test_effects_in_a_program_are_kept(capfd):
    def noisy(t):
        z = sample("z", d.Bernoulli(logits=t), estimator=est.Score())
        jax.debug.print("drawn {}", z)
        return 1.0 * z

    vx.grad(noisy)(KEY, 0.3)
    jax.effects_barrier()
    assert "drawn" in capfd.readouterr().out
