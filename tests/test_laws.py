"""The laws of seed, simulate, log_density, generate, condition and do.

Every program stands under its density: per address (or observation, or factor) the sum of SciPy's
log probabilities at the choices `c`, written in NumPy and without varax. Programs whose forms of
control flow are nested in each other are in test_lanes.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM, QUICKLY, check_biased, check_mean
from jax import lax
from scipy import stats

import varax as vx
from varax import dist as d
from varax import sample

COV = np.array([[2.0, 0.5], [0.5, 1.0]])
DATA = np.array([0.5, -1.0, 2.0])
YES = np.array([True, False, True])
CASES = {}


def case(exact, into=CASES):
    def register(f):
        into[f.__name__] = (vx.model(f), exact)
        return f

    return register


def gauss(name, mean, sd=1.0):
    return sample(name, d.Normal(mean, sd))


def chain(step, first, length, **how):
    """`step` again and again, as a scan."""
    return lax.scan(lambda z, _: (step(z), None), first, None, length=length, **how)[0]


def normal(x, mean, sd=1.0, where=True):
    return (stats.norm.logpdf(x, mean, sd) * where).sum()


def coin(b, p=0.5):
    return stats.bernoulli.logpmf(b, p).sum()


def before(z, first):
    """Each entry's predecessor along the first axis."""
    return np.concatenate([np.broadcast_to(first, z[:1].shape), z[:-1]])


def pair(c, a, under="", where=True):
    """Densities of `plain`."""
    x, y = normal(c["x"], a, 2, where), normal(c["y"], c["x"], 0.5, where)
    return {under + "x": x, under + "y": y}


# ---- programs


@case(pair)
def plain(a):
    return gauss("y", gauss("x", a, 2.0), 0.5)


PLAIN = vx.model(plain)


@case(pair)
def in_jit_and_checkpoint(a):
    return jax.jit(lambda a: jnp.sin(jax.checkpoint(jax.jit(plain))(a)))(a)


@case(lambda c, a: pair(c["u"], a, "u/") | pair(c["w"]["i"], c["u"]["y"], "w/i/"))
def nested(a):
    u = sample("u", PLAIN(a))
    return sample("w", vx.model(lambda: sample("i", PLAIN(u)))())


@case(
    lambda c, a: {
        "b": coin(c["b"], 0.3),
        "n": stats.poisson.logpmf(c["n"], np.exp(a + c["b"])),
        "g": stats.expon.logpdf(c["g"], scale=1 / (1 + c["n"])),
        "k": np.log([0.2, 0.3, 0.5])[c["k"]],
    }
)
def discrete(a):
    sample("k", d.Categorical(jnp.array([0.2, 0.3, 0.5])))
    n = sample("n", d.Poisson(jnp.exp(a + sample("b", d.Bernoulli(0.3)))))
    return sample("g", d.Exponential(1.0 + n))


@case(
    lambda c, a: {
        "v": normal(c["v"], a, [1, 2, 3]),
        "e": normal(c["e"], c["v"] * np.ones((2, 1))),
        "m": stats.multivariate_normal.logpdf(c["m"], [a, 0], COV),
    }
)
def vectors(a):
    v = gauss("v", a, jnp.arange(1.0, 4.0))
    sample("m", d.MultivariateNormal(jnp.stack([a, 0.0 * a]), jnp.asarray(COV, a.dtype)))
    return sample("e", d.Normal(v, 1.0).expand((2, 3)).to_event(1)).sum()


@case(lambda c, a: pair(c, a + np.arange(3)))
def in_vmap(a):
    return jax.vmap(plain)(a + jnp.arange(3)).sum()


@case(
    lambda c, a: {
        "z": normal(c["z"], before(c["z"], a)),
        "r": normal(c["r"][::-1], before(c["r"][::-1], c["z"][-1])),
        "f": normal(c["f"], before(c["f"], a), [1, 2, 3]),
    }
)
def in_scan(a):
    z = chain(lambda z: gauss("z", z), a, 4)
    lax.fori_loop(0, 3, lambda i, z: gauss("f", z, i + 1.0), a)
    return chain(lambda z: gauss("r", z), z, 3, reverse=True)


@case(
    lambda c, a: {
        "b": coin(c["b"]),
        "x": normal(c["x"], a if c["b"] else 0),
        "g": stats.expon.logpdf(c["g"]) if c["b"] else 0,
    }
)
def in_cond(a):
    def yes(a):
        return gauss("x", a) + sample("g", d.Exponential(1.0))

    return lax.cond(sample("b", d.Bernoulli(0.5)) == 1, yes, lambda a: gauss("x", 0 * a), a)


@case(
    lambda c, a: {
        "k": -np.log(3),
        "x": normal(c["x"], a * c["k"]) if c["k"] else 0,
        **pair(c["s"], a, "s/", where=c["k"] == 0),
    }
)
def in_switch(a):
    k = sample("k", d.Categorical(jnp.ones(3) / 3))
    two = jax.jit(lambda m: gauss("x", m))
    return lax.switch(k, [lambda: sample("s", PLAIN(a)), lambda: gauss("x", a), lambda: two(2 * a)])


@case(
    lambda c, a: {
        "b": coin(c["b"]),
        "v": normal(c["v"], a, where=YES),
        "g": stats.expon.logpdf(c["g"]) if c["b"] else 0,
        **pair(c["u"], a, "u/", where=c["b"]),
    }
)
def in_mask(a):
    b = sample("b", d.Bernoulli(0.5)) == 1
    sample("g", vx.masked(d.Exponential(1.0), b))
    sample("u", vx.masked(PLAIN(a), b))
    return sample("v", vx.masked(d.Normal(a, jnp.ones(3)), YES)).sum()


@case(
    lambda c, a: {
        "x": a * normal(c["x"], [1, 2]),
        "m": 3 * normal(c["m"], a, where=YES),
        **pair(c["u"], a, "u/", where=0.25),
    }
)
def in_scale(a):
    sample("u", vx.scaled(vx.scaled(PLAIN(a), 0.5), 0.5))
    sample("m", vx.scaled(vx.masked(d.Normal(a, jnp.ones(3)), YES), 3.0))
    return sample("x", vx.scaled(d.Normal(jnp.array([1.0, 2.0]), 1.0), a)).sum()


@case(
    lambda c, a: {
        "x": normal(c["x"], a, 2),
        "u/x": normal(c["u"]["x"], c["x"], 2),
        "observed": normal(1.5, c["u"]["x"], 0.5) + normal(DATA, c["x"]) + normal(DATA, c["x"], 3),
        "observed by every lane": 3 * coin(1, 0.3),
        "factors": -(c["x"] ** 2) + 3 * a - DATA.sum() - 6,
    }
)
def weighed(a):
    def lane(y):
        sample("y", d.Normal(x, 1.0), obs=y)
        sample("shared", d.Bernoulli(0.3), obs=1)
        vx.factor("mapped", -y)
        vx.factor("shared factor", a)

    def step(_, y):
        sample("z", d.Normal(x, 3.0), obs=y)
        return None, vx.factor("of a step", -2.0)

    x = gauss("x", a, 2.0)
    vx.factor("square", -(x**2))
    sample("u", PLAIN(x), obs={"y": 1.5})
    jax.vmap(lane)(jnp.asarray(DATA, a.dtype))
    lax.scan(step, None, jnp.asarray(DATA, a.dtype))
    return x


# ---- laws

QUICK = functools.partial(jax.jit, compiler_options=QUICKLY)


def flat(choices):
    """Choices by address, `outer/inner`."""
    leaves = jax.tree_util.tree_flatten_with_path(choices)[0]
    return {"/".join(key.key for key in path): x for path, x in leaves}


def nest(by_address):
    nested = {}
    for address, x in by_address.items():
        *outer, last = address.split("/")
        at = nested
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = x
    return nested


def split(choices):
    """Every other choice, and the rest."""
    items = list(flat(choices).items())
    return nest(dict(items[::2])), nest(dict(items[1::2]))


def draw(measure, key):
    if vx.Capability.SAMPLEABLE in measure.capabilities:
        return measure.simulate(key)
    return measure.generate(key, {})[0]


def check_densities(model, exact):
    """All densities of a draw, and with every other choice given, conditioned on or set."""

    def run(key, a):
        m = model(a)
        trace = draw(m, key)
        given, rest = split(trace.choices)
        generated, weight = m.generate(key, given)
        densities = {
            "simulate": trace.log_density,
            "log_density": m.log_density(trace.choices),
            "condition": m.condition(given).log_density(rest),
            "do": m.do(given).log_density(rest),
            "generate": generated.log_density,
            "weight": weight,
            "derivative": jax.grad(lambda a: model(a).log_density(trace.choices))(a),
        }
        return trace.choices, generated.choices, densities

    keys, a = jax.random.split(jax.random.key(1), 4), jnp.linspace(0.3, 1.2, 4)
    results = QUICK(jax.vmap(run))(keys, a)
    assert {x.dtype for x in flat(results[0]).values() if x.dtype.kind == "f"} <= {a.dtype}
    wide = a.dtype == jnp.float64
    for i in range(4):
        (c, g, got), at = jax.tree.map(lambda x, i=i: np.asarray(x[i]), (results, np.float64(a)))
        terms, given = exact(c, at), flat(split(c)[0])
        total = sum(terms.values())
        expected = dict.fromkeys(("simulate", "log_density", "condition"), total)
        expected["do"] = sum(v for k, v in terms.items() if k not in given)
        expected["generate"] = sum(exact(g, at).values())
        drawn = flat(c).keys() - given.keys()
        expected["weight"] = sum(v for k, v in exact(g, at).items() if k not in drawn)
        if wide:
            up, down = (sum(exact(c, at + h).values()) for h in (1e-5, -1e-5))
            expected["derivative"] = (up - down) / 2e-5
        for what, value in expected.items():
            rtol = 1e-6 if what == "derivative" else 1e-10 if wide else 1e-5
            np.testing.assert_allclose(got[what], value, rtol, 10 * rtol, err_msg=what)


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CASES)
def test_densities_agree_with_scipy(name, x64):
    check_densities(*CASES[name])


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", CASES)
def test_transformations_run_inside_others(name):
    """One key gives one result, in whatever program a law is evaluated; other keys, others."""
    model, _ = CASES[name]
    keys, a = jax.random.split(jax.random.key(2), (2, 2)), jnp.linspace(0.3, 0.9, 4).reshape(2, 2)

    def law(key, a):
        trace = draw(model(a), key)
        return trace, model(a).log_density(trace.choices), vx.seed(model)(key, a)

    @QUICK
    def everywhere():
        steps = lax.scan(lambda _, xs: (None, jax.vmap(law)(*xs)), None, (keys, a))[1]
        first = jax.tree.map(lambda x: jnp.zeros_like(x[0, 0]), steps)
        branch = lax.cond(a[0, 0] > 0, law, lambda *_: first, keys[0, 0], a[0, 0])
        return steps, branch

    steps, branch = everywhere()
    trace, again, value = steps
    np.testing.assert_allclose(again, trace.log_density, rtol=2e-5)
    jax.tree.map(lambda x, y: close(x[0, 0], y), steps, branch)
    assert np.unique(value).size == 4
    for address, x in flat(trace.choices).items():
        x = x[np.broadcast_to(flat(trace.present).get(address, True), x.shape)]
        assert x.dtype.kind == "i" or np.unique(x).size == x.size, f"{address} repeats a draw"


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "in_cond"])
def test_eager_evaluation_is_the_compiled_one(name):
    model, _ = CASES[name]
    key, a = jax.random.key(3), jnp.array(0.7)
    eager = vx.simulate(model(a), key)
    jax.tree.map(close, eager, jax.jit(vx.simulate, static_argnums=0)(model(a), key))
    close(vx.log_density(model(a), eager.choices), eager.log_density)


@pytest.mark.parametrize("name", ["in_cond", "in_switch", "in_mask"])
def test_absent_choices_have_no_influence(name):
    model, _ = CASES[name]

    @QUICK
    @jax.vmap
    def run(key):
        trace = model(0.7).simulate(key)
        present = flat(trace.present)
        choices = {
            k: jnp.where(present.get(k, True), x, jnp.nan) if x.dtype.kind == "f" else x
            for k, x in flat(trace.choices).items()
        }
        score = jax.value_and_grad(lambda a, c: model(a).log_density(c), (0, 1), allow_int=True)
        value, slopes = score(0.7, nest(choices))
        return trace.log_density, value, jax.tree.leaves(slopes)

    expected, value, slopes = run(jax.random.split(jax.random.key(5), 8))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in slopes if x.dtype.kind == "f")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float16, np.float32, np.float64])
def test_given_values_take_the_dtype_of_their_choice(dtype, x64):
    discrete = np.issubdtype(dtype, np.integer) or dtype is bool
    law = d.Bernoulli(0.3) if discrete else d.Normal(0.0, 1.0)
    m, x, y = vx.model(lambda: gauss("y", sample("x", law) + 1))(), {"x": dtype(1)}, {"y": 0.0}
    after = normal(0, 2)
    both = after + (np.log(0.3) if discrete else normal(1, 0))
    close(m.log_density(x | y), both)
    close(m.condition(x).log_density(y), both)
    close(m.do(x).log_density(y), after)
    assert m.generate(jax.random.key(0), x)[0]["x"] == 1


def test_a_point_mass_is_its_value():
    trace = vx.model(lambda: sample("x", d.Delta(2.0)) + 1)().simulate(jax.random.key(0))
    assert (trace["x"], trace.value, trace.log_density) == (2.0, 3.0, 0.0)


def test_weights_are_unbiased_for_the_evidence():
    """x ~ N(0, 1), y_i ~ N(x, 1): the evidence of y is N(y; 0, I + 1 1')."""

    @vx.model
    def program():
        x = gauss("x", 0.0)
        jax.vmap(lambda sd: gauss("y", x, sd))(jnp.ones(3))
        sample("last", d.Normal(x, 1.0), obs=0.3)

    def ratio(key):
        trace, weight = program().generate(key, {"y": jnp.array(DATA)})
        return jnp.exp(jnp.stack([weight, trace.log_density]) - exact)  # the twin counts x too

    data = np.append(DATA, 0.3)
    exact = stats.multivariate_normal.logpdf(data, np.zeros(4), np.eye(4) + 1)
    draws = np.asarray(QUICK(jax.vmap(ratio))(jax.random.split(jax.random.key(6), 50_000)))
    check_mean(draws[:, 0], 1.0)
    check_biased(draws[:, 1], 1.0)


def test_condition_and_do_change_what_follows():
    key, m = jax.random.key(7), PLAIN(0.0)
    conditioned, intervened = m.condition({"x": 3.0}), vx.do(m, {"x": 3})
    assert conditioned.addresses == intervened.addresses == {"y": ()}
    assert vx.Capability.SAMPLEABLE not in conditioned.capabilities
    assert vx.Capability.SAMPLEABLE in intervened.capabilities
    assert vx.condition(m, {}).addresses == m.do({}).addresses == m.addresses
    y = QUICK(jax.vmap(lambda key: intervened.simulate(key)["y"]))(jax.random.split(key, 10_000))
    check_mean(np.asarray(y), 3.0)
    assert stats.kstest((y - 3) / 0.5, "norm").pvalue > FALSE_ALARM


def test_a_trace_is_a_pytree_that_reads_well():
    @vx.model
    def program(a):
        u = sample("local", PLAIN(a))
        vx.deterministic("twice", 2 * u)
        sample("data", d.Normal(jnp.zeros(3) + u, 1.0), obs=jnp.array(DATA))
        lax.cond(u > 0, lambda: sample("n", d.Poisson(1.0)), lambda: 0)
        return sample("many", d.Normal(jnp.zeros(40), 1.0))

    shown = []

    @jax.jit
    def run(key):
        trace = vx.generate(program(0.7), key, {})[0]
        shown.append(repr(trace))
        return trace

    trace = run(jax.random.key(8))
    assert isinstance(trace, vx.Trace)
    assert trace["local", "y"] is trace["local"]["y"] is trace.choices["local"]["y"]
    assert trace["twice"] == trace.recorded["twice"] == 2 * trace["local", "y"]
    np.testing.assert_array_equal(trace["data"], DATA.astype(np.float32))
    np.testing.assert_array_equal(trace["many"], trace.value)
    assert trace.present == {"n": trace["local", "y"] > 0}
    for text in (*shown, repr(trace), trace._repr_html_()):
        for part in ("local/x", "local/y", "twice", "data", "n", "many", "[40]", "recorded"):
            assert part in text
