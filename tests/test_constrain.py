"""`vx.constrain`: exact densities by hand, in every place where a measure can stand, as a guide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import check_mean
from numpy.polynomial.hermite_e import hermegauss

import varax as vx
from varax import dist as d
from varax import errors

KEY = jax.random.key(0)
QUICKLY = {"xla_backend_optimization_level": 0}


@vx.model
def model(y):
    mu = vx.sample("mu", d.Normal(0.0, 2.0))
    tau = vx.sample("tau", d.LogNormal(0.0, 1.0))
    w = vx.sample("w", d.Dirichlet(jnp.ones(3)))
    z = jax.vmap(lambda y: vx.sample("z", d.Uniform(mu, mu + tau)) + 0.0 * y)(jnp.ones(2))
    vx.sample("y", d.Normal(z.sum() + w[0], 1.0), obs=y)


@vx.model
def same(phi):
    """Noise by the model's addresses, tau's moved by mu's."""
    u = vx.sample("mu", d.Normal(phi["loc"], 1.5))
    vx.sample("tau", d.Normal(phi["slope"] * u, 0.5))
    vx.sample("w", d.Normal(jnp.zeros(2), 1.0))
    jax.vmap(lambda _: vx.sample("z", d.StudentT(5.0, u, 1.0)))(jnp.arange(2))


PHI = {"loc": jnp.array(0.4), "slope": jnp.array(0.7)}


@vx.model
def vector(phi):
    """The same noise as one vector, and as numbers of a scan."""
    u = vx.sample("first", d.Normal(phi["loc"], 1.5))
    rest = d.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    vx.sample("second", d.Normal(phi["slope"] * u, 0.5))
    vx.sample("third", rest)
    vx.sample("fourth", d.StudentT(5.0, u, jnp.ones(2)))


def by_hand(choices, phi):
    """log q(u(x)) - log |det dx/du|, with one coordinate of w left out."""
    mu, tau, w, z = (choices[a] for a in ("mu", "tau", "w", "z"))
    first = w[0]  # stick breaking: logit(first) = a - log 2, then the share of the rest
    second = w[1] / (1 - w[0])
    unit = (z - mu) / tau
    log_q = d.Normal(phi["loc"], 1.5).log_prob(mu)
    log_q += d.Normal(phi["slope"] * mu, 0.5).log_prob(jnp.log(tau)) - jnp.log(tau)
    for share, offset in ((first, jnp.log(2.0)), (second, 0.0)):
        u = jnp.log(share) - jnp.log1p(-share) + offset
        log_q += d.Normal(0.0, 1.0).log_prob(u) - jnp.log(share * (1 - share))
    log_q -= jnp.log(1 - w[0])  # of w[1] = second (1 - w[0])
    logit = jnp.log(unit) - jnp.log1p(-unit)
    log_q += (d.StudentT(5.0, mu, 1.0).log_prob(logit) - jnp.log(tau * unit * (1 - unit))).sum()
    return log_q


@pytest.mark.parametrize("noise", [same, vector], ids=["same", "vector"])
def test_density_is_the_change_of_variables(noise, x64):
    guide = vx.constrain(noise(PHI), model(0.3))
    trace = guide.simulate(KEY)
    assert guide.addresses == {"mu": (), "tau": (), "w": (3,), "z": (2,)}
    expected = by_hand(trace.choices, PHI)
    tol = 1e-9 if x64 else 1e-4
    np.testing.assert_allclose(trace.log_density, expected, rtol=tol)
    np.testing.assert_allclose(guide.log_density(trace.choices), expected, rtol=tol)
    assert trace.value.keys() == trace.choices.keys() and trace.value["w"].shape == (3,)


def test_it_is_sampleable_and_exact():
    guide = vx.constrain(same(PHI), model(0.3))
    assert guide.capabilities == {vx.Capability.SAMPLEABLE, vx.Capability.DENSITY}
    assert vx.bound(lambda: model(0.3).log_density(guide.simulate().choices)) == "exact"
    assert "constrain(same, model)" in repr(guide)


def test_noise_with_scans_and_lanes_of_its_own():
    """The order of numbers is that of the noise's program, also out of a scan."""

    @vx.model
    def three():
        vx.sample("x", d.LogNormal(0.0, jnp.ones(4)))

    @vx.model
    def noise():
        def step(c, _):
            return vx.sample("b", d.Normal(c + 5.0, 1.0)), vx.sample("a", d.Normal(c, 0.1))

        jax.lax.scan(step, 0.0, None, length=2)

    trace = vx.constrain(noise(), three()).simulate(KEY)
    u = jnp.log(trace["x"])  # b, b, a, a
    assert (u[:2] > 2.0).all()
    expected = noise().log_density({"b": u[:2], "a": u[2:]}) - u.sum()
    np.testing.assert_allclose(trace.log_density, expected, rtol=1e-5)
    again = vx.constrain(noise(), three()).log_density(trace.choices)
    np.testing.assert_allclose(again, expected, rtol=1e-5)


# ---- where it stands


@vx.model
def positive(a):
    x = vx.sample("x", d.LogNormal(a, 1.0))
    vx.sample("y", d.Normal(x, 1.0), obs=0.5)


@vx.model
def normal(m, s):
    vx.sample("u", d.Normal(m, s))


def image(m, s=0.5):
    return vx.constrain(normal(m, s), positive(0.0))


def lognormal(x, m, s=0.5):
    return d.LogNormal(m, s).log_prob(x)


def test_under_jit_vmap_and_grad():
    ms = jnp.array([-1.0, 0.0, 2.0])
    keys = jax.random.split(KEY, 3)
    traces = jax.jit(jax.vmap(lambda k, m: image(m).simulate(k)))(keys, ms)
    assert len(set(np.asarray(jnp.log(traces["x"]) - ms).tolist())) == 3
    np.testing.assert_allclose(traces.log_density, lognormal(traces["x"], ms), rtol=1e-5)
    slope = jax.grad(lambda m: image(m).log_density({"x": 1.7}))(0.3)
    np.testing.assert_allclose(slope, jax.grad(lambda m: lognormal(1.7, m))(0.3), rtol=1e-5)


@vx.model
def program():
    """Nested, in lanes, in a scan, and in lanes of a scan."""
    m = vx.sample("m", d.Normal(0.0, 1.0))
    local = vx.sample("local", image(m))["x"]
    jax.vmap(lambda a: vx.sample("lanes", image(a))["x"])(jnp.array([local, -local]))

    def step(c, _):
        x = vx.sample("steps", image(c))["x"]
        both = jax.vmap(lambda a: vx.sample("both", image(a * x))["x"])(jnp.array([0.1, 0.2]))
        return 0.1 * x / (1.0 + both.sum()), None

    jax.lax.scan(step, 0.0, None, length=3)


def density_by_hand(choices):
    m, local = choices["m"], choices["local"]["x"]
    total = d.Normal(0.0, 1.0).log_prob(m) + lognormal(local, m)
    total += lognormal(choices["lanes"]["x"], jnp.array([local, -local])).sum()
    c = 0.0
    for x, both in zip(choices["steps"]["x"], choices["both"]["x"], strict=True):
        total += lognormal(x, c) + lognormal(both, jnp.array([0.1, 0.2]) * x).sum()
        c = 0.1 * x / (1.0 + both.sum())
    return total


def test_inside_other_programs():
    assert program().addresses == {
        "m": (),
        "local/x": (),
        "lanes/x": (2,),
        "steps/x": (3,),
        "both/x": (3, 2),
    }
    trace = jax.jit(program().simulate)(KEY)
    np.testing.assert_allclose(trace.log_density, density_by_hand(trace.choices), rtol=1e-4)
    again = program().log_density(trace.choices)
    np.testing.assert_allclose(again, trace.log_density, rtol=1e-5)
    lanes = jax.vmap(lambda k: program().simulate(k)["both", "x"])(jax.random.split(KEY, 2))
    assert len(jnp.unique(lanes)) == 12


def test_given_observed_and_intervened():
    x = {"local": {"x": 1.7}}
    trace, weight = program().generate(KEY, x)
    np.testing.assert_allclose(weight, lognormal(1.7, trace["m"]), rtol=1e-5)

    @vx.model
    def observing():
        m = vx.sample("m", d.Normal(0.0, 1.0))
        vx.sample("local", image(m), obs={"x": 1.7})

    expected = d.Normal(0.0, 1.0).log_prob(0.2) + lognormal(1.7, 0.2)
    np.testing.assert_allclose(observing().log_density({"m": 0.2}), expected, rtol=1e-5)
    fixed = program().do(x).simulate(KEY)
    assert "local" not in fixed.choices


def test_as_the_proposal_of_importance_sampling():
    """A proposal of exactly the posterior's shape: every weight is the evidence."""

    @vx.model
    def joint():
        x = vx.sample("x", d.LogNormal(0.3, 0.8))
        vx.sample("y", d.Normal(jnp.log(x), 0.6))

    precision = 1 / 0.64 + 1 / 0.36
    mean = (0.3 / 0.64 + 1.1 / 0.36) / precision
    proposal = vx.constrain(normal(mean, precision**-0.5), joint().condition({"y": 1.1}))
    marginal = vx.marginal(joint(), keep=("y",), using=vx.importance(3, proposal))
    evidence = d.Normal(0.3, 1.0).log_prob(1.1)
    np.testing.assert_allclose(marginal.log_density({"y": 1.1}, KEY), evidence, rtol=1e-4)
    posterior = vx.normalize(joint().condition({"y": 1.1}), vx.importance(3, proposal))
    trace = posterior.simulate(KEY)
    np.testing.assert_allclose(
        trace.log_density, lognormal(trace["x"], mean, precision**-0.5), rtol=1e-4
    )


# ---- as a guide

A, B = 0.3, 0.8  # x ~ LogNormal(A, B), no data: E[log p - log q] = -KL of normals


@vx.model
def prior():
    vx.sample("x", d.LogNormal(A, B))


def guide(phi):
    return vx.constrain(normal(phi[0], jnp.exp(phi[1])), prior())


def kl(phi):
    m, s = phi[0], jnp.exp(phi[1])
    return jnp.log(B / s) + (s**2 + (m - A) ** 2) / (2 * B**2) - 0.5


def iwelbo(phi):
    """E log of the mean of two weights, by quadrature."""
    x, w = hermegauss(40)
    w = w / np.sqrt(2 * np.pi)
    u = phi[0] + jnp.exp(phi[1]) * x
    log_w = d.Normal(A, B).log_prob(u) - d.Normal(phi[0], jnp.exp(phi[1])).log_prob(u)
    pairs = jnp.logaddexp(log_w[:, None], log_w[None, :]) - jnp.log(2.0)
    return w @ pairs @ w


OBJECTIVES = {
    "elbo": (lambda q: vx.objectives.elbo(prior(), q, {}), lambda phi: -kl(phi)),
    "stl": (lambda q: vx.objectives.sticking_the_landing(prior(), q, {}), lambda phi: -kl(phi)),
    "iwelbo": (lambda q: vx.objectives.iwelbo(prior(), q, {}, 2), iwelbo),
}


def draws_of(objective, phi, n):
    def one(key):
        value, grad = vx.value_and_grad(lambda phi: objective(guide(phi)))(key, phi)
        return jnp.concatenate([value[None], grad])

    run = jax.jit(jax.vmap(one), compiler_options=QUICKLY)
    return np.asarray(run(jax.random.split(KEY, n)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients_of_objectives(name):
    objective, exactly = OBJECTIVES[name]
    phi = jnp.array([0.9, -0.7])
    value, grad = jax.value_and_grad(exactly)(phi)
    draws = draws_of(objective, phi, 50_000)
    check_mean(draws, np.concatenate([value[None], grad]))


def test_sticking_the_landing_has_no_variance_at_the_posterior():
    draws = draws_of(OBJECTIVES["stl"][0], jnp.array([A, jnp.log(B)]), 100)
    np.testing.assert_allclose(draws, 0.0, atol=1e-5)


def test_the_score_function_is_that_of_the_noise():
    """An estimator that the noise asks for is used."""

    @vx.model
    def scored(m):
        vx.sample("u", d.Normal(m, 1.0), estimator=vx.estimators.Score())

    def elbo(m):
        return vx.objectives.elbo(prior(), vx.constrain(scored(m), prior()), {})

    assert "Score" in str(vx.check(elbo, jnp.array(0.2), draws=16))
    keys = jax.random.split(KEY, 50_000)
    grads = jax.jit(jax.vmap(lambda k: vx.grad(elbo)(k, 0.2)), compiler_options=QUICKLY)(keys)
    check_mean(np.asarray(grads), np.asarray(-(0.2 - A) / B**2))


# ---- errors


def test_what_does_not_fit():
    with pytest.raises(
        errors.ShapeError, match=r"(?s)does not fit.*mu: \(\).*w: \(2,\).*1 numbers"
    ):
        vx.constrain(normal(0.0, 1.0), model(0.3)).simulate(KEY)
    wrong = vx.model(lambda: vx.sample("x", d.Normal(jnp.zeros(1), 1.0)))
    with pytest.raises(errors.ShapeError, match=r"(?s)constrain\(.*x: \(\).*x: \(1,\).*shapes"):
        vx.constrain(wrong(), prior()).log_density({"x": 1.0})
    for pair in ((d.Normal(0.0, 1.0), prior()), (normal(0.0, 1.0), prior), (normal, prior())):
        with pytest.raises(errors.CapabilityError, match=r"(?s)not a measure.*vx.constrain\("):
            vx.constrain(*pair)
    discrete = vx.model(lambda: vx.sample("k", d.Poisson(1.0)))
    with pytest.raises(
        errors.CapabilityError, match=r"(?s)constrain\(normal.*address:  k.*discrete"
    ):
        vx.constrain(normal(0.0, 1.0), discrete()).simulate(KEY)
    masked = vx.model(lambda: vx.sample("x", vx.masked(d.Normal(0.0, 1.0), True)))
    with pytest.raises(errors.CapabilityError, match=r"(?s)address:  x.*may be absent"):
        vx.constrain(normal(0.0, 1.0), masked()).simulate(KEY)
    with pytest.raises(errors.MissingAddressError, match=r"missing \{w, z\}"):
        vx.constrain(same(PHI), model(0.3)).log_density({"mu": 0.0, "tau": 1.0})


def test_scaling_and_masking_need_choices_one_by_one():
    @vx.model
    def guide():
        vx.sample("local", vx.scaled(vx.constrain(same(PHI), model(0.0)), 2.0))

    with pytest.raises(errors.CapabilityError, match=r"(?s)one density for all.*in the objective"):
        guide().simulate(jax.random.key(0))
