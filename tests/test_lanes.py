"""Lanes: `jax.vmap` draws independently in every lane, wherever the random choice sits."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM, check_mean
from jax import lax
from scipy import stats
from scipy.special import ndtri
from test_laws import DATA, PLAIN, QUICK, before, chain, check_densities, coin, gauss, normal, pair

import varax as vx
from varax import dist as d
from varax import sample

KEY = jax.random.key(0)
TWO = jnp.arange(2.0)
CASES = {}


def case(exact):
    def register(f):
        CASES[f.__name__] = (vx.model(f), exact)
        return f

    return register


# ---- forms of control flow in each other, with their densities (see test_laws.py)


def starts(a):
    return jnp.stack([a, 0 * a])


@case(lambda c, a: {"z": normal(c["z"], before(c["z"], [a, 0]))})
def vmap_in_scan(a):
    return chain(jax.vmap(lambda z: gauss("z", z)), starts(a), 3)


@case(lambda c, a: {"z": normal(c["z"], np.sin(before(c["z"], [a, 0])))})
def checkpoint_in_scan_in_vmap(a):
    step = jax.checkpoint(lambda z: gauss("z", jnp.sin(z)))
    return jax.vmap(lambda z: chain(step, z, 3))(starts(a))


@case(lambda c, a: pair(c["u"], before(c["u"]["y"], [a, 0]), "u/"))
def nested_model_in_vmap_in_scan(a):
    return chain(jax.vmap(lambda z: sample("u", PLAIN(z))), starts(a), 3)


def walk(c, a):
    """Densities of a chain of `up_or_down`, one from a or two from a and 0."""
    a, up, down = np.array([a, 0]) if c["b"].ndim == 2 else a, 0, 0
    for b, x, y in zip(c["b"], c["up"], c["down"], strict=True):
        up, down = up + normal(x, a, where=b), down + normal(y, -a, where=1 - b)
        a = np.where(b, x, y)
    return {"b": coin(c["b"]), "up": up, "down": down}


def up_or_down(z):
    b = sample("b", d.Bernoulli(0.5))
    return lax.cond(b == 1, jax.jit(lambda z: gauss("up", z)), lambda z: gauss("down", -z), z)


@case(walk)
def jit_in_cond_in_scan(a):
    return chain(up_or_down, a, 4)


@case(walk)
def cond_in_vmap_in_scan(a):
    return chain(jax.vmap(up_or_down), starts(a), 3)


@case(walk)
def cond_in_scan_in_vmap(a):
    return jax.vmap(lambda z: chain(up_or_down, z, 3))(starts(a))


@case(
    lambda c, a: {
        "k": 2 * -np.log(3),
        "x": normal(c["x"], [a, 0], where=c["k"] == 1),
        "y": normal(c["y"], [2 * a, 0], where=c["k"] == 2),
        "i": normal(c["i"], c["y"], where=(c["k"] == 2) & (c["y"] > 0)),
        **pair(c["s"], [a, 0], "s/", where=c["k"] == 0),
    }
)
def cond_in_switch_in_vmap(a):
    def two(m):
        y = gauss("y", 2 * m)
        return lax.cond(y > 0, lambda: gauss("i", y), lambda: y)

    def lane(m):
        k = sample("k", d.Categorical(jnp.ones(3) / 3))
        return lax.switch(k, [lambda m: sample("s", PLAIN(m)), lambda m: gauss("x", m), two], m)

    return jax.vmap(lane)(starts(a))


@case(
    lambda c, a: {
        "b": coin(c["b"]),
        "z": normal(c["z"], before(c["z"], a), where=1 - c["b"]),
        **pair(c["u"], [a, 0], "u/", where=c["b"]),
        "factors": 2 * c["b"] + 3 * (1 - c["b"]),
    }
)
def vmap_and_scan_in_cond(a):
    def lane(m):
        vx.factor("of a lane", 1.0)
        return sample("u", PLAIN(m))

    def step(z):
        vx.factor("of a step", 1.0)
        return gauss("z", z)

    def yes():
        return jax.vmap(lane)(starts(a)).sum()

    return lax.cond(sample("b", d.Bernoulli(0.5)) == 1, yes, lambda: chain(step, a, 3))


@case(
    lambda c, a: {
        "x": normal(c["x"], a),
        "observed": normal(DATA, c["x"], where=DATA > 0) - DATA[DATA < 0].sum(),
    }
)
def observations_and_factors_in_cond_in_vmap(a):
    def seen(y):
        sample("y", d.Normal(x, 1.0), obs=y)

    x = gauss("x", a)
    lane = lambda y: lax.cond(y > 0, seen, lambda y: vx.factor("f", -y), y)  # noqa: E731
    jax.vmap(lane)(jnp.asarray(DATA, a.dtype))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CASES)
def test_densities_agree_with_scipy(name, x64):
    check_densities(*CASES[name])


# ---- every lane has its own draw, also when nothing is mapped


def z():
    return gauss("z", 0.0)


def custom_vjp():
    f = jax.custom_vjp(lambda _: z())
    f.defvjp(lambda _: (z(), None), lambda _, g: (g,))
    return f(0.0)


def custom_jvp():
    f = jax.custom_jvp(lambda _: z())
    f.defjvp(lambda primals, tangents: (z(), tangents[0]))
    return f(0.0)


PLACES = {  # the program, and the axes of scans that it adds
    "direct": (z, ()),
    "jit": (jax.jit(z), ()),
    "jit in jit": (jax.jit(lambda: jax.jit(z)()), ()),
    "checkpoint": (jax.checkpoint(z), ()),
    "nested model": (lambda: sample("u", vx.model(z)()), ()),
    "custom_vjp": (custom_vjp, ()),
    "custom_jvp": (custom_jvp, ()),
    "cond": (lambda: lax.cond(jnp.array(True), z, lambda: 0.0), ()),
    "switch": (lambda: lax.switch(jnp.array(1), [lambda: 0.0, z, z]), ()),
    "scan": (lambda: lax.scan(lambda c, _: (c, z()), None, None, length=2)[1].sum(), (2,)),
    "scan's carry": (lambda: chain(lambda _: z(), 0.0, 2), (2,)),
    "map": (lambda: lax.map(lambda _: z(), TWO).sum(), (2,)),
    "fori_loop": (lambda: lax.fori_loop(0, 2, lambda i, _: z(), 0.0), (2,)),
    "jit in cond in scan": (
        lambda: chain(lambda c: lax.cond(c > -9, jax.jit(z), lambda: c), 0.0, 2),
        (2,),
    ),
    "custom_vjp in checkpoint": (jax.checkpoint(custom_vjp), ()),
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
@pytest.mark.parametrize("place", PLACES)
def test_lanes_are_independent(place, used):
    """Of two vmaps, the outer with no mapped operand at all; scan axes lead, then lanes."""
    f, scans = PLACES[place]

    @vx.model
    def program():
        inner = lambda _: f() if used else (f(), 0.0)[1]  # noqa: E731
        return jax.vmap(lambda: jax.vmap(inner)(TWO), axis_size=3)()

    trace = QUICK(jax.vmap(program().simulate))(jax.random.split(KEY, 2000))
    (draws,) = jax.tree.leaves(trace.choices)
    assert draws.shape == (2000, *scans, 3, 2)
    np.testing.assert_allclose(trace.log_density, density(draws), rtol=1e-4)
    check_independent(draws.reshape(2000, -1))
    if used:
        last = draws.sum(1) if place in ("scan", "map") else draws[:, -1] if scans else draws
        np.testing.assert_allclose(trace.value, last, rtol=1e-5)


def density(draws):
    return stats.norm.logpdf(draws).reshape(len(draws), -1).sum(1)


def check_independent(draws):
    """Columns are standard normal and uncorrelated."""
    n, p = draws.shape
    draws = np.asarray(draws, np.float64)
    limit = -ndtri(FALSE_ALARM / (p * (p + 3)))
    products = draws.T @ draws / n - np.eye(p)
    assert (abs(draws.mean(0)) < limit / np.sqrt(n)).all()
    assert (abs(products) < limit * np.sqrt((1 + np.eye(p)) / n)).all()


def test_the_test_of_independence_sees_a_shared_draw():
    draws = np.asarray(jax.random.normal(KEY, (2000, 3)))
    check_independent(draws)
    with pytest.raises(AssertionError):
        check_independent(draws[:, [0, 1, 0]])


def test_all_choices_of_a_program_are_independent():
    """Sites, lanes, steps, batch entries, branches and nested models; drawn as their laws say."""

    def program():
        b = sample("b", d.Bernoulli(0.3))
        n = sample("n", d.Poisson(2.0))
        x = gauss("x", 3.0, 2.0)
        out = [(x - 3) / 2, gauss("y", x) - x, *(gauss("v", x * jnp.ones(2)) - x)]
        out += [sample("u", PLAIN(0.0)) / np.sqrt(4.25), sample("w", PLAIN(0.0)) / np.sqrt(4.25)]
        out += list(jax.vmap(lambda m: gauss("lane", m) - m)(TWO))
        out += [lax.cond(b == 1, lambda: gauss("left", x), lambda: gauss("right", x)) - x]
        step = lambda z, _: ((new := jax.vmap(lambda z: gauss("z", z))(z)), new - z)  # noqa: E731
        out += list(lax.scan(step, TWO, None, length=3)[1].ravel())
        out += [jax.jit(lambda: gauss("j", 0.0))(), jax.checkpoint(lambda: gauss("c", 0.0))()]
        return b, n, jnp.stack(out)

    both = lambda key: (vx.seed(program)(key), vx.model(program)().simulate(key).value)  # noqa: E731
    for b, n, normals in QUICK(jax.vmap(both))(jax.random.split(KEY, 20_000)):
        check_independent(normals)
        scores = np.c_[(b - 0.3) / np.sqrt(0.21), (n - 2) / np.sqrt(2), normals]
        corr = np.corrcoef(scores.T) - np.eye(scores.shape[1])
        assert abs(corr).max() < -ndtri(FALSE_ALARM / scores.shape[1] ** 2) / np.sqrt(20_000)
        pvalues = [stats.kstest(x, "norm").pvalue for x in np.asarray(normals).T]
        pvalues += [stats.binomtest(int(b.sum()), b.size, 0.3).pvalue]
        counts = np.bincount(np.minimum(n, 6), minlength=7)
        law = np.append(stats.poisson.pmf(np.arange(6), 2), stats.poisson.sf(5, 2))
        pvalues += [stats.chisquare(counts, 20_000 * law).pvalue]
        assert min(pvalues) > FALSE_ALARM / len(pvalues)


# ---- axes


def test_lanes_come_outermost_first_whatever_axes_a_vmap_reads_and_writes():
    @vx.model
    def program(p, shift):
        def lane(p, shift):
            return sample("x", d.Normal(p["m"] + shift, p["s"]).to_event(1)), gauss("y", shift)

        inner = jax.vmap(lane, in_axes=({"m": 1, "s": None}, 0), out_axes=(-1, 0))
        return jax.vmap(inner, in_axes=({"m": 2, "s": None}, None), out_axes=(1, -1))(p, shift)

    m, shift = jnp.arange(24.0).reshape(4, 2, 3), jnp.array([100.0, 200.0])
    measure = program({"m": m, "s": 0.01}, shift)
    assert measure.addresses == {"x": (3, 2, 4), "y": (3, 2)}
    trace = QUICK(measure.simulate)(KEY)
    x, y = trace["x"], trace["y"]
    np.testing.assert_array_equal(trace.value[0], x.transpose(2, 0, 1))
    np.testing.assert_array_equal(trace.value[1], y.T)
    means = (m + shift[:, None]).transpose(2, 1, 0)
    np.testing.assert_allclose(x, means, atol=0.06)
    expected = normal(x, means, 0.01) + normal(y, shift)
    np.testing.assert_allclose(measure.log_density(trace.choices), expected, rtol=1e-3)
    assert len(np.unique(y)) == y.size


def test_scan_axes_lead_then_lanes_outermost_first():
    @vx.model
    def program():
        def step(_):
            return jax.vmap(lambda: chain(lambda _: sample("x", law).sum(), 0.0, 3), axis_size=4)()

        law = d.Normal(jnp.zeros(6), 1.0)
        return jax.vmap(lambda: chain(lambda z: step(z).sum(), 0.0, 2), axis_size=5)()

    assert program().addresses == {"x": (2, 3, 5, 4, 6)}


# ---- a mapped predicate: each lane has the choices of its own branch


@pytest.mark.parametrize("right", ["right", "left"], ids=["own address", "shared address"])
@pytest.mark.parametrize("event", [(), (2,)], ids=["scalar", "vector"])
def test_a_lane_has_only_its_branchs_choices(event, right):
    yes, means = np.array([True, False, True]), np.arange(3.0)
    column = (..., *[None] * len(event))

    def branch(name, sd):
        return lambda m: sample(name, d.Normal(m * jnp.ones(event), sd).to_event(len(event)))

    @vx.model
    def program():
        def lane(yes, m):
            return lax.cond(yes, branch("left", 1.0), branch(right, 2.0), m)

        return jax.vmap(lane)(yes, means)

    trace = QUICK(program().simulate)(KEY)
    draws = {name: np.asarray(x) for name, x in trace.choices.items()}
    assert draws.keys() == {"left", right}
    assert all(x.shape == (3, *event) for x in draws.values())
    mine = np.where(yes[column], draws["left"], draws[right])
    np.testing.assert_array_equal(trace.value, mine)
    expected = normal(mine, means[column], np.where(yes, 1.0, 2.0)[column])
    np.testing.assert_allclose(trace.log_density, expected, rtol=1e-5)
    if right == "right":
        np.testing.assert_array_equal(trace.present["left"], yes)
        np.testing.assert_array_equal(trace.present["right"], ~yes)
        draws["left"] = np.where(yes[column], mine, np.nan)
        draws["right"] = np.where(yes[column], np.nan, mine)
    assert np.all(trace.present.get("left", True)) == (right == "left")
    np.testing.assert_allclose(program().log_density(draws), expected, rtol=1e-5)


# ---- while loops, forward


def test_while_loops_of_lanes_end_apart():
    """The number of coins until the first head is geometric, lane by lane."""

    def coins(p):
        toss = lambda c: (c[0] + 1, sample("b", d.Bernoulli(p)))  # noqa: E731
        return lax.while_loop(lambda c: c[1] == 0, toss, (0, 0))[0]

    def program():
        own = jax.vmap(coins)(jnp.array([0.5, 0.8]))
        return jnp.concatenate([own, jax.vmap(lambda: coins(0.5), axis_size=2)()])

    n = np.asarray(QUICK(jax.vmap(vx.seed(program)))(jax.random.split(KEY, 20_000)))
    p = np.array([0.5, 0.8, 0.5, 0.5])
    check_mean(n, 1 / p)
    check_mean((n - 1 / p) ** 2, (1 - p) / p**2)
    check_mean(n[:, [0, 0, 2]] * n[:, [2, 1, 3]], np.array([4, 2.5, 4]))


LOOP_IN_BRANCH = """
import jax, jax.numpy as jnp, varax as vx
more = lambda z: z + jnp.abs(vx.sample("z", vx.dist.Normal(0.0, 1.0)))
loop = lambda z: jax.lax.while_loop(lambda z: z < 3.0, more, z)
lane = lambda yes: jax.lax.cond(yes, loop, lambda z: z, 0.0)
print(vx.seed(lambda: jax.vmap(lane)(jnp.array([True, False])))(jax.random.key(0)).tolist())
"""


def test_a_loop_in_a_branch_that_a_lane_does_not_take_ends():
    """In a process of its own: a lane that draws nothing must not wait for its draws for ever."""
    run = subprocess.run(
        [sys.executable, "-c", LOOP_IN_BRANCH], capture_output=True, text=True, timeout=60
    )
    taken, other = json.loads(run.stdout)
    assert taken >= 3 and other == 0
