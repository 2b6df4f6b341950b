"""Nested measures: their two estimates are unbiased, by enumeration of every draw."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import varax as vx
from varax import dist as d
from varax import errors

P_U = np.array([0.5, 0.2, 0.3])
P_X = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
P_Y = np.array([[0.2, 0.8], [0.5, 0.5]])


@vx.model
def pair(shift=0.0):
    """u is not uniform and x depends on it: a weight by the joint density would be wrong."""
    u = vx.sample("u", d.Categorical(P_U))
    x = vx.sample("x", d.Bernoulli(jnp.asarray(P_X)[u, 1] * jnp.exp(-shift)))
    return x


@vx.model
def three():
    u = vx.sample("u", d.Categorical(P_U))
    x = vx.sample("x", d.Bernoulli(jnp.asarray(P_X)[u, 1]))
    vx.sample("y", d.Bernoulli(jnp.asarray(P_Y)[x, 1] * (0.4 + 0.2 * u)))


@vx.model
def proposal(probs):
    vx.sample("u", d.Categorical(probs))


@vx.model
def two_step(probs):
    """A proposal whose own density is an integral."""
    v = vx.sample("v", d.Bernoulli(0.3))
    vx.sample("u", d.Categorical(jnp.where(v == 1, probs, probs[::-1])))


@vx.model
def coin():
    vx.sample("x", d.Bernoulli(0.4))


@vx.model
def observed():
    u = vx.sample("u", d.Categorical(P_U))
    vx.sample("x", d.Bernoulli(jnp.asarray(P_X)[u, 1]), obs=1)
    vx.factor("bonus", 0.3 * u)


@vx.model
def of_a_marginal(k):
    """A model with a marginal in it, whose draw enters what follows."""
    inner = vx.sample("inner", vx.marginal(three(), ("x", "y"), vx.importance(k)))
    vx.sample("z", d.Bernoulli(0.2 + 0.3 * inner["x"] + 0.4 * inner["y"]))


RIGHT = np.array([0.2, 0.3, 0.5])
KEPT = {"fixed": proposal(RIGHT), "of kept": lambda kept: proposal(P_U * (1.0 + kept["x"]) / 2)}
MARGINALS = {
    "prior, 1": lambda: vx.marginal(pair(), "x", vx.importance(1)),
    "prior, 2": lambda: vx.marginal(pair(), "x", vx.importance(2)),
    "prior, 3": lambda: vx.marginal(pair(), "x", vx.importance(3)),
    "keep the cause": lambda: vx.marginal(pair(), "u", vx.importance(2)),
    "two kept": lambda: vx.marginal(three(), ("x", "y"), vx.importance(2)),
    "the middle": lambda: vx.marginal(three(), "x", vx.importance(2)),
    "proposal": lambda: vx.marginal(pair(), "x", vx.importance(2, proposal(RIGHT))),
    "proposal of kept": lambda: vx.marginal(
        pair(), "x", vx.importance(2, lambda kept: proposal(jnp.where(kept["x"] == 1, RIGHT, P_U)))
    ),
    "estimated proposal": lambda: vx.marginal(
        pair(), "x", vx.importance(2, vx.marginal(two_step(RIGHT), "u", vx.importance(2)))
    ),
    "marginal of a marginal": lambda: vx.marginal(
        vx.marginal(three(), ("x", "y"), vx.importance(2)), "y", vx.importance(2, coin())
    ),
    "nested in a model": lambda: vx.marginal(of_a_marginal(1), "z", vx.importance(1)),
    "all": lambda: of_a_marginal(2),
}
NORMALIZED = {
    "prior, 1": lambda: vx.normalize(observed(), vx.importance(1)),
    "prior, 2": lambda: vx.normalize(observed(), vx.importance(2)),
    "proposal, 3": lambda: vx.normalize(observed(), vx.importance(3, proposal(RIGHT))),
    "estimated proposal": lambda: vx.normalize(
        observed(), vx.importance(2, vx.marginal(two_step(RIGHT), "u", vx.importance(1)))
    ),
    "of an estimated target": lambda: vx.normalize(
        vx.marginal(three(), ("x", "y"), vx.importance(1)), vx.importance(2)
    ),
}


def values_of(m):
    """Every value of a measure's choices, as choices."""
    names = list(m.addresses)
    sizes = [3 if name.endswith("u") else 2 for name in names]
    grid = np.indices(sizes).reshape(len(sizes), -1).T
    out = []
    for row in grid:
        choices = {}
        for name, value in zip(names, row, strict=True):
            at = choices
            *path, last = name.split("/")
            for part in path:
                at = at.setdefault(part, {})
            at[last] = int(value)
        out.append(choices)
    return out


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([jnp.all(x == y) for x, y in pairs]).all()


def exact(program):
    """Its mean over all draws."""
    return jax.jit(vx.expect(program, using=vx.strategies.Enumeration()))(jax.random.key(0))


def laws(m):
    """By value: how often it is drawn, E[1 / w; drawn], E[w given it]."""
    values = values_of(m)

    def drawn():
        trace = m.simulate()
        hit = jnp.stack([equal(trace.choices, v) for v in values])
        return jnp.concatenate([hit * 1.0, hit * jnp.exp(-trace.log_density)])

    q, inverse = jnp.split(exact(drawn), 2)
    density = [exact(lambda v=v: jnp.exp(m.log_density(v))) for v in values]
    return np.array(q), np.array(inverse), np.array(density)


def check(q, inverse, density, x64):
    rtol = 1e-10 if x64 else 1e-5
    np.testing.assert_allclose(q.sum(), 1, rtol=rtol)
    np.testing.assert_allclose(inverse, 1, rtol=rtol)  # E[1 / w | x] = 1 / q(x), times q(x)
    np.testing.assert_allclose(density, q, rtol=rtol)


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", MARGINALS)
def test_a_marginal_is_unbiased_in_both_directions(name, x64):
    m = MARGINALS[name]()
    q, inverse, density = laws(m)
    check(q, inverse, density, x64)


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_normalised_target_is_unbiased_in_both_directions(name, x64):
    check(*laws(NORMALIZED[name]()), x64)


@vx.model
def normal_pair():
    u = vx.sample("u", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(u, 1.0))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_normal_auxiliary_choice(k):
    """Against N(0, 2): E[w given x] = p(x), and E[h(x) / w] = 1 for a density h."""
    m = vx.marginal(normal_pair(), "x", vx.importance(k))
    keys = jax.random.split(jax.random.key(k), 100_000)
    found = jax.jit(jax.vmap(lambda key: m.log_density({"x": 0.7}, key)))(keys)
    w = np.exp(np.asarray(found, float))
    exact_density = float(jnp.exp(d.Normal(0.0, 2**0.5).log_prob(0.7)))
    assert abs(w.mean() - exact_density) < 4.9 * w.std() / len(w) ** 0.5
    trace = jax.jit(jax.vmap(m.simulate))(keys)
    h = jnp.exp(d.Normal(0.7, 0.5).log_prob(trace["x"]) - trace.log_density)
    ratio = np.asarray(h, float)
    assert abs(ratio.mean() - 1) < 4.9 * ratio.std() / len(ratio) ** 0.5
    again = jax.jit(jax.vmap(lambda key, x: m.log_density({"x": x}, key)))  # the other direction
    wrong = again(jax.random.split(jax.random.key(9), 100_000), trace["x"])
    twin = np.asarray(jnp.exp(d.Normal(0.7, 0.5).log_prob(trace["x"]) - wrong), float)
    assert k != 3 or abs(twin.mean() - 1) > 4.9 * twin.std() / len(twin) ** 0.5


# ---- inside programs


def biased(m, x64):
    """The twin: both directions taken from the other operation."""
    values = values_of(m)

    def drawn():
        trace = m.simulate()
        hit = jnp.stack([equal(trace.choices, v) for v in values])
        return hit * jnp.exp(-m.log_density(trace.choices))

    return np.array(exact(drawn))


def test_the_density_of_a_draw_is_not_the_one_to_divide_by(x64):
    assert abs(biased(MARGINALS["prior, 2"](), x64) - 1).max() > 0.01


@vx.model
def plate():
    """Each lane has its own auxiliary choice and its own estimate."""

    def lane(shift):
        local = vx.sample("local", vx.marginal(pair(shift), "x", vx.importance(2)))
        return local["x"]

    return jax.vmap(lane)(jnp.array([0.0, 0.5]))


@vx.model
def chain():
    """A marginal in a scan."""

    def step(before, shift):
        local = vx.sample("local", vx.marginal(pair(shift + before), "x", vx.importance(1)))
        return 0.3 * local["x"], None

    jax.lax.scan(step, 0.0, jnp.array([0.0, 0.5]))


@vx.model
def plate_inside():
    """What is kept has a scan inside and lanes outside."""

    @vx.model
    def inner(a):
        u = vx.sample("u", d.Bernoulli(0.3))

        def step(x, b):
            x = vx.sample("x", d.Bernoulli(0.2 + 0.2 * x + 0.3 * u + 0.1 * b))
            return x, None

        jax.lax.scan(step, 0, a * jnp.array([0.0, 1.0]))

    jax.vmap(lambda a: vx.sample("m", vx.marginal(inner(a), "x", vx.importance(1))))(jnp.ones(2))


PROGRAMS = {"plate": plate, "chain": chain, "plate_inside": plate_inside}
SHAPES = {"plate": (2,), "chain": (2,), "plate_inside": (2, 2)}
ADDRESS = {"plate": "local", "chain": "local", "plate_inside": "m"}


def grid(name):
    shape = SHAPES[name]
    rows = np.indices([2] * int(np.prod(shape))).reshape(int(np.prod(shape)), -1).T
    return [{ADDRESS[name]: {"x": jnp.array(row.reshape(shape))}} for row in rows]


@pytest.mark.parametrize("name", PROGRAMS)
def test_lanes_and_steps_have_estimates_of_their_own(name, x64):
    m, values = PROGRAMS[name](), grid(name)
    assert list(m.addresses.values()) == [SHAPES[name]]

    def drawn():
        trace = m.simulate()
        hit = jnp.stack([equal(trace.choices, v) for v in values])
        return jnp.concatenate([hit * 1.0, hit * jnp.exp(-trace.log_density)])

    q, inverse = np.split(np.array(exact(drawn)), 2)
    some = values[:: max(1, len(values) // 5)]
    density = [exact(lambda v=v: jnp.exp(m.log_density(v))) for v in some]
    rtol = 1e-10 if x64 else 1e-5
    np.testing.assert_allclose(q.sum(), 1, rtol=rtol)
    np.testing.assert_allclose(inverse, 1, rtol=rtol)
    np.testing.assert_allclose(density, q[:: max(1, len(values) // 5)], rtol=rtol)


def test_a_lane_has_its_own_particles():
    """Log weights are averaged lane by lane: the spread of the estimate shows it."""

    @vx.model
    def normal(x):
        u = vx.sample("u", d.Normal(0.0, 1.0))
        vx.sample("x", d.Normal(u, 0.3))

    def plate():
        jax.vmap(lambda x: vx.sample("m", vx.marginal(normal(x), "x", vx.importance(20))))(
            jnp.zeros(30)
        )

    m = vx.model(plate)()
    keys = jax.random.split(jax.random.key(0), 200)
    found = jax.jit(jax.vmap(lambda k: m.log_density({"m": {"x": jnp.zeros(30)}}, k)))(keys)
    exact = 30 * float(d.Normal(0.0, np.sqrt(1.09)).log_prob(0.0))
    assert abs(found - exact).mean() < 10  # all lanes in one weight: about 60


def test_condition_and_do_reach_a_nested_measure(x64):
    m = of_a_marginal(1)
    both = {"inner": {"x": 1, "y": 0}}
    density = exact(lambda: jnp.exp(m.log_density(both | {"z": 1})))
    held = exact(lambda: jnp.exp(m.condition(both).log_density({"z": 1})))
    np.testing.assert_allclose(held, density, rtol=1e-6)
    assert vx.Capability.STOCHASTIC_DENSITY in m.condition(both).capabilities
    cut = exact(lambda: jnp.exp(m.do(both).log_density({"z": 1})))
    np.testing.assert_allclose(cut, 0.5, rtol=1e-6)
    weight = exact(lambda: jnp.exp(m.condition(both).generate(None, {"z": 1})[1]))
    np.testing.assert_allclose(weight, density, rtol=1e-6)


def test_a_program_that_draws_from_a_nested_measure_has_an_expectation(x64):
    def mean(p):
        inner = vx.sample("m", vx.marginal(of_probability(p), "x", vx.importance(3)))
        return inner["x"] * 2.0

    got = jax.jit(vx.value_and_grad(mean, estimators={"m/u": vx.estimators.Enumerate()}))
    value, grad = got(jax.random.key(0), 0.3)
    exact_value = 2 * (0.3 * 0.9 + 0.7 * 0.2)
    np.testing.assert_allclose(exact(lambda: mean(0.3)), exact_value, rtol=1e-6)
    assert value.shape == () and grad.shape == ()
    draws = vx.seed(lambda: vx.sample("m", vx.marginal(of_probability(0.3), "x", vx.importance(3))))
    assert set(draws(jax.random.key(0))) == {"x"}


@vx.model
def of_probability(p):
    u = vx.sample("u", d.Bernoulli(p))
    vx.sample("x", d.Bernoulli(0.2 + 0.7 * u))


# ---- gradients of bounds


@vx.model
def model(t):
    u = vx.sample("u", d.Bernoulli(jax.nn.sigmoid(t[0])))
    x = vx.sample("x", d.Bernoulli(jax.nn.sigmoid(t[1] - 2.0 * u)))
    vx.sample("y", d.Bernoulli(jax.nn.sigmoid(t[2] + 1.5 * x)))


@vx.model
def guide(t):
    v = vx.sample("v", d.Bernoulli(jax.nn.sigmoid(t[3])))
    vx.sample("x", d.Bernoulli(jax.nn.sigmoid(t[4] + t[5] * v)))


def bound(t):
    p = vx.marginal(model(t), ("x", "y"), vx.importance(2))
    q = vx.marginal(guide(t), "x", vx.importance(2))
    return vx.objectives.elbo(p, q, {"y": 1})


THETA = np.array([0.3, -0.2, 0.4, 0.5, -0.6, 0.8])


def test_the_gradient_of_a_bound_is_that_of_its_mean(x64):
    theta = jnp.asarray(THETA, float)
    mean = jax.jit(lambda t: vx.expect(bound, using=vx.strategies.Enumeration())(key, t))
    key = jax.random.key(0)
    grad = jax.grad(mean)(theta)
    if x64:
        step = 1e-5 * np.eye(6)
        slope = [(mean(theta + s) - mean(theta - s)) / 2e-5 for s in step]
        np.testing.assert_allclose(grad, slope, rtol=1e-6, atol=1e-8)
    score = dict.fromkeys(["v", "x", "particles/v", "particles/u"], vx.estimators.Score())
    each = jax.jit(jax.vmap(lambda k: vx.grad(bound, estimators=score)(k, theta)))
    draws = np.asarray(each(jax.random.split(key, 20000)), float)
    z = (draws.mean(0) - grad) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))
    assert (abs(z) < 5.6).all(), z


def log_evidence(t):
    u, x = np.arange(2), np.arange(2)
    s = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    p_u = np.where(u == 1, s(t[0]), 1 - s(t[0]))
    p_x = s(t[1] - 2.0 * u)[:, None]
    p_x = np.where(x == 1, p_x, 1 - p_x)
    return np.log((p_u[:, None] * p_x * s(t[2] + 1.5 * x)).sum())


def test_a_bound_with_two_estimates_is_below_the_evidence(x64):
    value = exact(lambda: bound(jnp.asarray(THETA, float)))
    assert value < log_evidence(THETA)
    assert vx.check(bound, jnp.asarray(THETA)).side.direction == "lower bound"


# ---- bad input


def test_no_particles():
    for k in (0, -1, 2.0, True):
        with pytest.raises(errors.ParticleError, match=r"at least 1(.|\n)*got: +" + str(k)):
            vx.importance(k)


def test_an_address_that_is_not_there():
    with pytest.raises(errors.UnknownAddressError, match=r"no such address(.|\n)*some of u, x"):
        vx.marginal(pair(), "q", vx.importance(2)).simulate(jax.random.key(0))
    with pytest.raises(errors.UnknownAddressError, match="nothing is kept"):
        vx.marginal(pair(), (), vx.importance(2)).simulate(jax.random.key(0))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: coin(), "missing u, extra x"),
        (lambda: pair(), "extra x"),
        (lambda: observed(), "observes or weighs"),
    ],
)
def test_a_proposal_with_other_addresses(made, says):
    m = vx.marginal(pair(), "x", vx.importance(2, made()))
    with pytest.raises(errors.ProposalMismatchError, match=says):
        m.simulate(jax.random.key(0))
    with pytest.raises(errors.ProposalMismatchError, match=r"test_nested\.py"):
        m.log_density({"x": 1}, jax.random.key(0))


def test_a_proposal_that_is_no_measure():
    m = vx.marginal(pair(), "x", vx.importance(2, lambda kept: 3))
    with pytest.raises(errors.CapabilityError, match=r"not a measure(.|\n)*got: +3"):
        m.simulate(jax.random.key(0))


def test_what_is_not_an_algorithm():
    with pytest.raises(errors.CapabilityError, match=r"not an algorithm(.|\n)*got: +5"):
        vx.marginal(pair(), "x", 5)


def test_a_marginal_of_an_unnormalised_measure():
    with pytest.raises(errors.CapabilityError, match=r"Unnormalised(.|\n)*vx.normalize"):
        vx.marginal(observed(), "u", vx.importance(2)).simulate(jax.random.key(0))


def test_some_of_the_kept_addresses():
    m = vx.marginal(three(), ("x", "y"), vx.importance(2))
    with pytest.raises(errors.MissingAddressError, match=r"missing \{y\}"):
        m.log_density({"x": 1})
    with pytest.raises(errors.CapabilityError, match="all its addresses together"):
        m.generate(jax.random.key(0), {"x": 1})


@pytest.mark.parametrize(
    "use",
    [
        lambda m: vx.scaled(m, 2.0).log_density({"x": 1}),
        lambda m: vx.masked(m, jnp.array(True)).log_density({"x": 1}),
        lambda m: m.replay(m.simulate(jax.random.key(0))).simulate(jax.random.key(0)),
    ],
)
def test_where_an_exact_density_is_needed(use):
    with pytest.raises(errors.CapabilityError, match="is an estimate; an exact one is needed"):
        vx.seed(lambda: use(vx.marginal(pair(), "x", vx.importance(2))))(jax.random.key(0))


def test_objectives_that_need_an_exact_density():
    q = vx.marginal(pair(), "x", vx.importance(2))
    with pytest.raises(errors.CapabilityError, match="sticking_the_landing needs an exact density"):
        vx.grad(lambda t: vx.objectives.sticking_the_landing(coin(), q, {}))(jax.random.key(0), 0.0)


@vx.model
def narrow(t):
    """The proposal never hits: every weight is zero."""
    u = vx.sample("u", d.Normal(t, 1.0))
    vx.sample("x", d.Delta(u))


def fit_of(m):
    def objective(t):
        return m(t).log_density({"x": jnp.asarray(0.5) + 0 * t})

    return vx.fit(objective, 0.0, optax.sgd(0.1), 5, jax.random.key(0), progress=False)


def test_all_weights_are_zero():
    m = lambda t: vx.marginal(narrow(t), "x", vx.importance(4))  # noqa: E731
    message = r"At step 0(.|\n)*log w of marginal\(narrow, x\) is -inf: the weights of all"
    with pytest.raises(errors.NonFiniteError, match=message):
        fit_of(m)


def test_a_weight_is_not_finite():
    @vx.model
    def broken(t):
        u = vx.sample("u", d.Normal(0.0, 1.0))
        vx.sample("x", d.Normal(jnp.log(-abs(u)) + t, 1.0))

    m = lambda t: vx.marginal(broken(t), "x", vx.importance(4))  # noqa: E731
    with pytest.raises(errors.NonFiniteError, match=r"x(.|\n)*nan"):
        fit_of(m)


def test_some_weights_are_zero():
    """A particle without weight is no failure."""

    @vx.model
    def some(t):
        u = vx.sample("u", d.Bernoulli(0.5))
        vx.sample("x", d.Delta(0.5 * u + 0 * t))

    m = lambda t: vx.marginal(some(t), "x", vx.importance(64))  # noqa: E731
    assert fit_of(m).steps == 5


@pytest.mark.parametrize("make", [lambda m, u: vx.marginal(m, "x", u), vx.normalize])
def test_a_model_that_was_not_called(make):
    with pytest.raises(
        errors.CapabilityError, match=r"not a measure(.|\n)*Model\(pair\)(.|\n)*call"
    ):
        make(pair, vx.importance(2))
