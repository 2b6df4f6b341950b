"""Centrings: densities by change of variables; evidence and posterior; learned, measured ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import varax as vx
from varax import dist as d
from varax import errors
from varax import estimators as est
from varax.ppl import parameterization
from varax.transforms.choices import flatten, nest

AFFINE = d.transforms.AffineTransform
L = np.array([[1.3, 0.0], [-0.4, 0.6]])
KEY = jax.random.key(1)

LAWS = {  # of a location m and a scale s
    "normal": lambda m, s: d.Normal(m, s),
    "student": lambda m, s: d.StudentT(4.0, m, s),
    "cauchy": lambda m, s: d.Cauchy(m, s),
    "laplace": lambda m, s: d.Laplace(m, s),
    "logistic": lambda m, s: d.Logistic(m, s),
    "gumbel": lambda m, s: d.Gumbel(m, s),
    "lognormal": lambda m, s: d.LogNormal(m, s),
    "multivariate": lambda m, s: d.MultivariateNormal(m * jnp.ones(2), scale_tril=s * L),
    "batch": lambda m, s: d.Normal(m, s * np.array([[1.0], [2.0]])).expand([2, 3]).to_event(1),
    "batch of multivariate": lambda m, s: d.MultivariateNormal(
        m + np.arange(6.0).reshape(3, 2), scale_tril=s * L
    ),
    "affine": lambda m, s: d.TransformedDistribution(
        d.Normal(0.5, 2.0), [AFFINE(1.0, -3.0), AFFINE(m, s), d.transforms.ExpTransform()]
    ),
    "transformed vector": lambda m, s: d.TransformedDistribution(
        d.Normal(m * jnp.ones(3), s).to_event(1), d.transforms.OrderedTransform()
    ),
    "affine of gumbel": lambda m, s: d.TransformedDistribution(d.Gumbel(m, 1.0), AFFINE(1.0, -s)),
    "masked": lambda m, s: vx.masked(d.Normal(m, s * jnp.ones(2)), jnp.array([True, False])),
}


@vx.model
def one_choice(law):
    m = vx.sample("m", d.Normal(0.3, 1.0))
    s = vx.sample("s", d.LogNormal(0.0, 0.5))
    theta = vx.sample("theta", law(m, s))
    vx.sample("y", d.Normal(jnp.sum(theta), 1.0), obs=0.4)


def raw(address):
    return (*address[:-1], address[-1] + "_raw")


def check_change_of_variables(measure, centring, x64, absent=()):
    """log p'(raw) == log p(theta) + log |det d theta / d raw|, at a draw."""
    new = vx.reparameterize(measure, centring)
    moved = [tuple(a.split("/")) for a in centring]
    choices = flatten(new.generate(KEY, {})[0].choices)
    at = {raw(a): choices.pop(raw(a)) for a in moved}
    free, back = ravel_pytree(at)

    @jax.jit
    def values(free):
        trace, _ = new.generate(KEY, nest(choices | back(free)))
        return {a: flatten(trace.recorded)[a] for a in moved}

    jacobian = jax.jacobian(lambda free: ravel_pytree(values(free))[0])(free)
    here = np.setdiff1d(np.arange(len(free)), absent)
    log_det = np.linalg.slogdet(np.asarray(jacobian, float)[np.ix_(here, here)])[1]
    expected = measure.log_density(nest(choices | values(free))) + log_det
    found = new.log_density(nest(choices | at))
    np.testing.assert_allclose(found, expected, rtol=1e-9 if x64 else 2e-4)
    assert set(flatten(measure.generate(KEY, {})[0].choices)) == choices.keys() | set(moved)


CASES = [(name, c) for name in LAWS for c in ("noncentred", 0.3)]
CASES += [(name, "centred") for name in ("student", "multivariate", "affine", "masked")]


@pytest.mark.thin(4)
@pytest.mark.parametrize(("name", "c"), CASES)
def test_density_is_the_change_of_variables(name, c):
    with jax.enable_x64(True):
        absent = [1] if name == "masked" else []
        check_change_of_variables(one_choice(LAWS[name]), {"theta": c}, True, absent)


def test_density_in_both_precisions(x64):
    check_change_of_variables(one_choice(LAWS["student"]), {"theta": 0.3}, x64)


@pytest.mark.parametrize("name", ["batch", "batch of multivariate"])
def test_a_centring_for_each_element(name, x64):
    shape = (2, 3) if name == "batch" else (3,)
    c = jnp.linspace(0.0, 1.0, np.prod(shape)).reshape(shape)
    check_change_of_variables(one_choice(LAWS[name]), {"theta": c}, x64)


def test_the_ends_are_the_centred_and_the_noncentred_choice():
    """theta_raw is theta, or standard and unrelated to m and s."""
    for c in ("centred", 1.0, jnp.array(1.0)):
        trace, _ = vx.reparameterize(one_choice(LAWS["affine"]), {"theta": c}).generate(KEY, {})
        np.testing.assert_allclose(trace["theta"], jnp.exp(trace["theta_raw"]), rtol=1e-5)
    for c in ("noncentred", 0, jnp.array(0.0)):
        trace, _ = vx.reparameterize(one_choice(LAWS["normal"]), {"theta": c}).generate(KEY, {})
        expected = trace["m"] + trace["s"] * trace["theta_raw"]
        np.testing.assert_allclose(trace["theta"], expected, rtol=1e-5)


# ---- where choices sit


@vx.model
def everywhere(up):
    """Lanes with parameters of their own and shared ones, a scan, nesting, a cond."""
    tau = vx.sample("tau", d.LogNormal(0.0, 0.3))
    means = vx.sample("means", d.Normal(jnp.zeros(3), 2.0))

    def lane(m):
        return jax.vmap(lambda _: vx.sample("lane", d.Normal(m, tau)))(jnp.arange(2))

    lanes = jax.vmap(lane)(means)

    def step(x, t):
        x = vx.sample("step", d.Normal(0.9 * x + lanes[t].sum(), tau))
        return x, jax.vmap(lambda m: vx.sample("both", d.Cauchy(m * x, 1.0 + t)))(means)

    last, _ = jax.lax.scan(step, 0.0, jnp.arange(3))
    inner = vx.sample("inner", one_choice(LAWS["normal"]))
    x = jax.lax.cond(
        up > 0,
        lambda: vx.sample("branch", d.Normal(last, tau)),
        lambda: vx.sample("branch", d.Normal(-last, 2.0)),
    )
    return x, inner


PLACES = {
    "lane": (3, 2),
    "step": (3,),
    "both": (3, 3),
    "inner/theta": (),
    "branch": (),
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_lanes_scans_nesting_and_branches(own):
    with jax.enable_x64(True):
        at = jax.random.uniform
        centring = {a: at(KEY, s) if own else 0.4 for a, s in PLACES.items()}
        check_change_of_variables(everywhere(1.0 if own else -1.0), centring, True)


def test_jit_vmap_and_gradient_of_a_centring():
    with jax.enable_x64(True):
        choices = vx.reparameterize(everywhere(1.0), {"lane": 0.5}).generate(KEY, {})[0].choices

        def density(c):
            return vx.reparameterize(everywhere(1.0), {"lane": c}).log_density(choices)

        cs = jnp.array([0.2, 0.5, 0.8])
        np.testing.assert_allclose(
            jax.jit(jax.vmap(density))(cs), [density(c) for c in cs], rtol=1e-10
        )
        slope = (density(0.5 + 1e-5) - density(0.5 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(density)(0.5), slope, rtol=1e-6)


def test_a_model_gives_a_model_and_a_measure_a_measure():
    model = vx.reparameterize(everywhere, {"inner": {"theta": 0.0}})
    assert isinstance(model, vx.Model)
    expected = vx.reparameterize(everywhere(1.0), {"inner/theta": 0.0})
    assert model(1.0).addresses == expected.addresses
    assert "inner/theta_raw" in expected.addresses and "inner/theta" not in expected.addresses
    assert expected.choices is None

    class Holder:
        @vx.model
        def method(self, m):
            vx.sample("z", d.Normal(m, 1.0))

        raw = vx.reparameterize(method, {"z": "noncentred"})

    assert Holder().raw(2.0).simulate(KEY)["z"] == Holder().raw(0.0).simulate(KEY)["z"] + 2.0


def test_interventions_and_replay_after_reparameterizing():
    @vx.model
    def program():
        m = vx.sample("m", d.Normal(0.0, 1.0))
        vx.sample("z", d.Normal(m, 2.0))

    for measure in (program(), program().do({"m": 0.5})):
        new = vx.reparameterize(measure, {"z": 0.0})
        trace = vx.reparameterize(program(), {"z": 0.0}).simulate(KEY)
        other = new.do({} if "m" not in new.addresses else {"m": 0.5}).replay(trace).simulate()
        np.testing.assert_allclose(other["z"], 0.5 + 2.0 * trace["z_raw"], rtol=1e-6)


def test_the_estimator_of_a_choice_goes_to_its_raw_choice():
    """E[theta^2] has the derivative 2 m by the score of theta_raw, baselines by lane included."""

    def objective(m, c):
        @vx.model
        def program():
            def lane(b):
                return vx.sample("theta", d.Normal(m, 1.0), estimator=est.Score(b))

            return (jax.vmap(lane)(jnp.array([0.5, 1.0])) ** 2).sum()

        return vx.reparameterize(program(), {"theta": c}).simulate().value

    assert "Score" in str(vx.check(lambda m: objective(m, 0.7), 0.3, draws=16))
    keys = jax.random.split(KEY, 40_000)
    grads = jax.jit(jax.vmap(lambda k: vx.grad(lambda m: objective(m, 0.7))(k, 0.3)))(keys)
    error = grads.std() / len(keys) ** 0.5
    assert abs(grads.mean() - 2 * 2 * 0.3) < 4.9 * error


def test_a_choice_in_a_while_loop_is_drawn():
    @vx.model
    def program():
        def body(state):
            return vx.sample("z", d.Normal(state[0], 1.0)), state[1] + 1

        return jax.lax.while_loop(lambda s: s[1] < 3, body, (10.0, 0))[0]

    assert 0 < vx.seed(vx.reparameterize(program, {"z": 0.0}))(KEY) < 20


# ---- what it leaves alone


@vx.model
def two_level(y, noise):
    """theta [n] about a common scale."""
    tau = vx.sample("tau", d.LogNormal(0.0, 0.7))
    theta = vx.sample("theta", d.Normal(0.5, tau))
    vx.sample("y", d.Normal(theta, noise), obs=y)


def test_evidence_and_posterior_stay():
    """By quadrature over the unconstrained plane, with theta or its raw choice."""
    with jax.enable_x64(True):
        measure = two_level(1.3, 0.8)
        grid = jnp.linspace(-9.0, 9.0, 301)
        plane = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)

        def moments(measure):
            potential = measure.potential()

            def at(vector):
                u = potential.unravel(vector)
                known = potential.constrain(u) | potential.recorded(u)
                values = jnp.stack([known["theta"], known["tau"], known["theta"] * known["tau"]])
                return jnp.exp(potential.log_density(u)), values

            weights, values = jax.jit(jax.vmap(at))(plane)
            step = grid[1] - grid[0]
            return weights.sum() * step**2, weights @ values / weights.sum()

        z, means = moments(measure)
        for c in (0.0, 0.5, 1.0):
            other_z, other = moments(vx.reparameterize(measure, {"theta": c}))
            np.testing.assert_allclose(other_z, z, rtol=1e-5)
            np.testing.assert_allclose(other, means, rtol=1e-4)


# ---- a centring that is learned


Y = np.array([0.8, -0.3, 1.1, 0.4])


@vx.model
def linear(noise):
    mu = vx.sample("mu", d.Normal(0.0, 1.0))

    def group(y):
        theta = vx.sample("theta", d.Normal(mu, 1.0))
        vx.sample("y", d.Normal(theta, noise), obs=y)

    jax.vmap(group)(jnp.asarray(Y))


@vx.model
def independent(phi):
    vx.sample("mu", d.Normal(phi["loc"][0], jnp.exp(phi["log_scale"][0])))
    vx.sample("theta_raw", d.Normal(phi["loc"][1:], jnp.exp(phi["log_scale"][1:])))


def best_elbo(noise, c=None):
    """The highest ELBO of independent normals, and the centring; learned where it is not given."""

    def elbo(params):
        centring = jax.nn.sigmoid(params["centring"]) if c is None else c
        model = vx.reparameterize(linear(noise), {"theta": centring})
        q = independent(params["guide"]).simulate()
        return model.log_density(q.choices) - q.log_density

    n = len(Y) + 1
    params = {
        "guide": {"loc": jnp.zeros(n), "log_scale": jnp.zeros(n)},
        "centring": jnp.array(1.0),
    }
    exact = vx.strategies.SigmaPoints()  # the objective is quadratic
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    fitted = vx.fit(elbo, params, optimizer, 600, KEY, using=exact, progress=False).params
    return vx.expect(elbo, using=exact)(KEY, fitted), jax.nn.sigmoid(fitted["centring"])


def test_a_learned_centring_beats_both_ends():
    """Noise as large as the groups' spread: mu and theta_raw are independent at c = 1/2."""
    with jax.enable_x64(True):
        cov = np.ones((4, 4)) + (1.0 + 1.0) * np.eye(4)
        evidence = multivariate_normal(np.zeros(4), cov).logpdf(Y)
        learned, c = best_elbo(1.0)
        np.testing.assert_allclose(c, 0.5, atol=0.02)
        np.testing.assert_allclose(learned, evidence, atol=1e-3)
        for end in (0.0, 1.0):
            assert best_elbo(1.0, end)[0] < evidence - 0.1


# ---- a centring that is chosen


@vx.model
def schools(y, sigma):
    mu = vx.sample("mu", d.Normal(0.0, 5.0))
    tau = vx.sample("tau", d.HalfCauchy(5.0))
    scale = vx.sample("unrelated", d.Normal(0.0, 1.0))

    def school(y, sigma):
        theta = vx.sample("theta", d.Normal(mu, tau))
        vx.sample("y", d.Normal(theta, sigma), obs=y)

    jax.vmap(school)(y, sigma)
    vx.factor("known", -(scale**2))


EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@pytest.mark.slow
def test_eight_schools_are_noncentred():
    new = vx.reparameterize(schools(EFFECTS, ERRORS), "measure", key=KEY)
    (row,) = new.choices.rows
    assert row.address == "theta" and row.noncentred > row.centred + 1
    assert new.choices.centring == {"theta": "noncentred"}
    assert list(new.addresses) == ["mu", "tau", "unrelated", "theta_raw"]
    assert "noncentred" in repr(new.choices).splitlines()[1]


@pytest.mark.slow
def test_informative_data_are_centred():
    new = vx.reparameterize(schools(EFFECTS, ERRORS / 30), "measure", key=KEY)
    (row,) = new.choices.rows
    assert row.centred > row.noncentred + 1
    assert new.choices.centring == {} and "theta" in new.addresses
    assert repr(new.choices).splitlines()[1].endswith("  centred")


def test_the_choices_that_are_measured():
    """Location-scale ones whose law depends on other choices, earlier steps of a scan included."""

    @vx.model
    def program():
        a = vx.sample("a", d.Normal(0.0, 1.0))
        vx.sample("alone", d.Normal(0.0, jnp.ones(2)))
        vx.sample("gamma", d.Gamma(jnp.exp(a), 1.0))
        vx.sample("scaled", vx.scaled(d.Normal(a, 1.0), 2.0))
        vx.sample("y", d.Normal(a, 1.0), obs=0.0)
        jax.vmap(lambda _: vx.sample("by_scale", d.LogNormal(0.0, jnp.exp(a))))(jnp.arange(2))

        def step(x, _):
            x = vx.sample("chain", d.Normal(x, 1.0))
            return x, None

        jax.lax.scan(step, 0.0, None, length=2)
        vx.sample("inner", one_choice(LAWS["normal"]))

    found = parameterization.dependent(program())
    assert found == [("by_scale",), ("chain",), ("inner", "theta")]


def test_nothing_to_measure():
    @vx.model
    def program():
        vx.sample("z", d.Normal(0.0, 1.0))

    new = vx.reparameterize(program(), "measure", key=KEY)
    assert new.choices.rows == () and "no location-scale choice" in repr(new.choices)
    assert new.addresses == {"z": ()}


# ---- errors


@vx.model
def refusing(branch):
    a = vx.sample("a", d.Normal(0.0, 1.0))
    vx.sample("gamma", d.Gamma(2.0, 1.0))
    vx.sample("scaled", vx.scaled(d.Normal(a, 1.0), 2.0))
    vx.sample("vector", d.Normal(a, jnp.ones(3)))
    vx.sample("y", d.Normal(a, 1.0), obs=0.0)
    vx.constrain(one_number(), one_normal()).program()
    vx.sample("law", vx.marginal(one_latent(), keep=("x",), using=vx.importance(3)))

    def either(b):
        up, down = (lambda s=s: vx.sample("shared", d.Normal(a, s)) for s in (1.0, 2.0))
        return jax.lax.cond(b, up, down)

    jax.vmap(either)(branch)


@vx.model
def one_number():
    vx.sample("u", d.Normal(0.0, 1.0))


@vx.model
def one_normal():
    vx.sample("image", d.Normal(0.0, 1.0))


@vx.model
def one_latent():
    z = vx.sample("z", d.Normal(0.0, 1.0))
    vx.sample("x", d.Normal(z, 1.0))


E = errors.ReparameterizationError
REFUSED = {
    "unknown": ({"b": 0.0}, errors.UnknownAddressError, r"unknown \{b\}.*address:  b.*a, gamma"),
    "observed": ({"y": 0.0}, E, r"an observation.*address:  y"),
    "family": ({"gamma": 0.0}, E, r"address:  gamma.*Normal, StudentT.*got:\s+Gamma"),
    "scaled": ({"scaled": 0.0}, E, r"address:  scaled.*raised to a power.*vx.scaled\(vx.repar"),
    "nested": ({"law/x": 0.0}, E, r"address:  law/x.*nested measure"),
    "image": ({"image": 0.0}, E, r"address:  image.*nested measure"),
    "branches": ({"shared": 0.0}, E, r"address:  shared.*several branches.*of their own"),
    "large": ({"a": 1.5}, E, r"no centring.*address:  a.*from 0.*to 1.*got:\s+1.5"),
    "nan": ({"a": np.nan}, E, r"no centring.*address:  a"),
    "word": ({"a": "centered"}, E, r"no centring.*\"noncentred\".*got:\s+'centered'"),
    "shape": ({"vector": np.zeros(2)}, errors.ShapeError, r"address:  vector.*\(3,\).*\(2,\)"),
    "choices": (3.0, errors.AddressError, "Choices are a dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_centring(name):
    centring, kind, match = REFUSED[name]
    with pytest.raises(kind, match=f"(?s){match}"):
        vx.reparameterize(refusing(jnp.array([True, False])), centring).generate(KEY, {})


def test_what_is_no_model_and_what_cannot_be_measured():
    with pytest.raises(errors.CapabilityError, match=r"(?s)not a model.*a measure.*Normal"):
        vx.reparameterize(d.Normal(0.0, 1.0), {"z": 0.0})
    for model, asked, key in (
        (schools, "measure", KEY),
        (schools(EFFECTS, ERRORS), "measure", None),
        (schools(EFFECTS, ERRORS), "best", KEY),
    ):
        with pytest.raises(
            errors.ReparameterizationError, match=r'(?s)measure and a key.*"measure", key=key'
        ):
            vx.reparameterize(model, asked, key=key)

    @vx.model
    def discrete():
        vx.sample("z", d.Bernoulli(0.5))

    with pytest.raises(errors.CapabilityError, match=r"(?s)smooth bijection.*address:  z"):
        vx.reparameterize(discrete(), "measure", key=KEY)
