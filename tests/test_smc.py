"""Sequential Monte Carlo: unbiased in both directions, by enumerating particles and ancestors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nested import check, equal, exact

import varax as vx
from varax import dist as d
from varax import errors
from varax import estimators as est
from varax.transforms.inference.resampling import Ancestors, RetainedAncestors

FALSE_ALARM = 1e-6
STEPS = np.array([0.0, 1.0])


@vx.model
def markov():
    """Two hidden steps, two observations."""

    def step(z, b):
        z = vx.sample("z", d.Bernoulli(0.3 + 0.4 * z + 0.1 * b))
        vx.sample("x", d.Bernoulli(0.2 + 0.6 * z))
        return z, None

    jax.lax.scan(step, 0, jnp.array(STEPS))


@vx.model
def more():
    """Choices before and after the scan, an output of the steps, an observation at the end."""
    a = vx.sample("a", d.Bernoulli(0.4))

    def step(z, b):
        z = vx.sample("z", d.Bernoulli(0.3 + 0.2 * z + 0.1 * b + 0.2 * a))
        vx.sample("x", d.Bernoulli(0.2 + 0.6 * z))
        return z, z * (1 + a)

    last, all_z = jax.lax.scan(step, 0, jnp.array(STEPS))
    vx.sample("y", d.Bernoulli(0.1 + 0.2 * all_z.sum() + 0.05 * last))


@vx.model
def backwards():
    def step(z, b):
        z = vx.sample("z", d.Bernoulli(0.3 + 0.4 * z + 0.1 * b))
        vx.sample("x", d.Bernoulli(0.2 + 0.6 * z))
        return z, None

    jax.lax.scan(step, 0, jnp.array(STEPS), reverse=True)


@vx.model
def look_ahead(kept):
    """A proposal that sees the observations."""

    def step(z, x):
        return vx.sample("z", d.Bernoulli(0.2 + 0.5 * x + 0.1 * z)), None

    jax.lax.scan(step, 0, kept["x"])


@vx.model
def target():
    def step(z, x):
        z = vx.sample("z", d.Bernoulli(0.3 + 0.4 * z))
        vx.sample("x", d.Bernoulli(0.2 + 0.6 * z), obs=x)
        return z, None

    jax.lax.scan(step, 0, jnp.array([1, 0]))


def every(m):
    """All values of a measure over bits."""
    shapes = {tuple(a.split("/")): s for a, s in m.addresses.items()}
    size = sum(int(np.prod(s)) for s in shapes.values())
    for bits in itertools.product((0, 1), repeat=size):
        left, choices = iter(bits), {}
        for (name,), shape in shapes.items():
            count = int(np.prod(shape))
            choices[name] = jnp.array([next(left) for _ in range(count)]).reshape(shape)
        yield choices


def laws(m, some=slice(None)):
    values = list(every(m))

    def drawn():
        trace = m.simulate()
        hit = jnp.stack([equal(trace.choices, v) for v in values])
        return jnp.concatenate([hit * 1.0, hit * jnp.exp(-trace.log_density)])

    q, inverse = np.split(np.array(exact(drawn)), 2)
    density = [exact(lambda v=v: jnp.exp(m.log_density(v))) for v in values[some]]
    return q, inverse, np.array(density)


CASES = {
    "systematic": lambda: vx.marginal(markov(), "x", vx.smc(2)),
    "stratified": lambda: vx.marginal(markov(), "x", vx.smc(2, resample="stratified")),
    "multinomial": lambda: vx.marginal(markov(), "x", vx.smc(2, resample="multinomial")),
    "one particle": lambda: vx.marginal(markov(), "x", vx.smc(1)),
    "adaptive": lambda: vx.marginal(markov(), "x", vx.smc(2, threshold=0.9)),
    "proposal": lambda: vx.marginal(markov(), "x", vx.smc(2, look_ahead)),
    "before and after": lambda: vx.marginal(more(), ("x", "y"), vx.smc(2)),
    "backwards": lambda: vx.marginal(backwards(), "x", vx.smc(2)),
    "normalised": lambda: vx.normalize(target(), vx.smc(2)),
}


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", CASES)
def test_both_directions_are_unbiased(name):
    with jax.enable_x64(True):
        check(*laws(CASES[name]()), True)


# ---- resampling


WEIGHTS = np.log([0.5, 0.15, 0.35])
SCHEMES = ["multinomial", "stratified", "systematic"]


def frequencies(law, base):
    """Probabilities of all values, after a comparison with the frequencies of draws."""
    support = law.enumerate_support()
    p = np.asarray(jnp.exp(jax.vmap(law.log_prob)(support)))
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (100_000,)))(jax.random.key(0)))
    powers = base ** np.arange(draws.shape[1])[::-1]
    often = np.bincount(draws @ powers, minlength=len(p)) / len(draws)
    assert (often[p == 0] == 0).all()
    error = np.sqrt(abs(p * (1 - p)) / len(draws))
    assert (abs(often - p) <= 5.8 * error + 1e-12).all()
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    return p, np.asarray(support)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_have_the_probability_that_is_said(scheme):
    with jax.enable_x64(True):
        p, support = frequencies(Ancestors(WEIGHTS, 3, scheme), 3)
    count = (support[:, :, None] == np.arange(3)).sum(1)
    np.testing.assert_allclose(p @ count, 3 * np.exp(WEIGHTS), rtol=1e-12)


@pytest.mark.thin(3)
@pytest.mark.parametrize("slot", [0, 1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_retained_particle_goes_on(scheme, slot):
    with jax.enable_x64(True):
        p, support = frequencies(RetainedAncestors(WEIGHTS, slot, scheme), 3)
    kept = np.take_along_axis(support[:, :-1], support[:, -1:], 1)[:, 0]
    assert (kept[p > 0] == slot).all()


# ---- on a model with a known evidence

T, PHI, Q, R = 20, 0.9, 0.5, 0.7
DATA = np.random.default_rng(3).normal(size=T).cumsum() * 0.4


@vx.model
def linear(t):
    def step(z, _):
        z = vx.sample("z", d.Normal(t[0] * z, jnp.exp(t[1])))
        vx.sample("x", d.Normal(z, jnp.exp(t[2])))
        return z, None

    jax.lax.scan(step, 0.0, None, length=T)


TRUE = (PHI, np.log(Q), np.log(R))


def kalman(data):
    mean, var, total = 0.0, 0.0, 0.0
    for x in data:
        mean, var = PHI * mean, PHI**2 * var + Q**2
        s = var + R**2
        total += -0.5 * (np.log(2 * np.pi * s) + (x - mean) ** 2 / s)
        gain = var / s
        mean, var = mean + gain * (x - mean), (1 - gain) * var
    return total


def evidence(using, key, n=4000):
    m = vx.marginal(linear(TRUE), "x", using)
    run = jax.jit(jax.vmap(lambda key: m.log_density({"x": jnp.array(DATA)}, key)))
    return np.asarray(run(jax.random.split(key, n)), float)


@pytest.mark.optimized
@pytest.mark.thin(2)
@pytest.mark.parametrize("resample", ["systematic", "stratified", "multinomial"])
def test_evidence_of_a_linear_gaussian_model(resample):
    log_w = evidence(vx.smc(50, resample=resample), jax.random.key(1))
    ratio = np.exp(log_w - kalman(DATA))
    assert abs(ratio.mean() - 1) < 5.3 * ratio.std() / np.sqrt(len(ratio))
    assert log_w.std() < 0.6 * evidence(vx.importance(50), jax.random.key(2)).std()


def test_a_filter_that_never_resamples_is_importance_sampling():
    never = evidence(vx.smc(50, threshold=0.0), jax.random.key(1))
    plain = evidence(vx.importance(50), jax.random.key(2))
    assert abs(never.mean() - plain.mean()) < 0.2 * abs(plain.mean() - kalman(DATA)) + 1.0


def test_normalised_paths_follow_the_smoother():
    """The first state's posterior mean, of paths that one filter of many particles gives."""
    observed = linear(TRUE).condition({"x": jnp.array(DATA)})
    m = vx.normalize(observed, vx.smc(200))
    run = jax.jit(jax.vmap(lambda key: m.simulate(key)["z"][-1]))
    last = np.asarray(run(jax.random.split(jax.random.key(0), 2000)), float)
    cov = Q**2 * np.array(
        [
            [sum(PHI ** (i - k) * PHI ** (j - k) for k in range(min(i, j) + 1)) for j in range(T)]
            for i in range(T)
        ]
    )
    gain = np.linalg.solve(cov + R**2 * np.eye(T), cov[:, -1])
    assert abs(last.mean() - gain @ DATA) < 5.3 * last.std() / np.sqrt(2000) + 0.02


@vx.model
def short(t):
    def step(z, _):
        z = vx.sample("z", d.Bernoulli(jax.nn.sigmoid(t[0] + t[1] * z)))
        vx.sample("x", d.Bernoulli(jax.nn.sigmoid(t[2] - 2.0 * z)))
        return z, None

    jax.lax.scan(step, 0, None, length=3)


def fivo(t, estimator=None):
    using = vx.smc(2, estimator=estimator, resample="multinomial")
    return vx.marginal(short(t), "x", using).log_density({"x": jnp.array([1, 0, 1])})


def test_the_gradient_includes_the_ancestors():
    """By default unbiased; without the ancestors' score it is not."""
    with jax.enable_x64(True):
        theta, key = jnp.array([0.3, 0.8, 0.4]), jax.random.key(0)
        right = jax.grad(lambda t: vx.expect(fivo, using=vx.strategies.Enumeration())(key, t))(
            theta
        )
        scores = dict.fromkeys(["particles/z", "particles/ancestors"], est.Score())
        each = jax.jit(jax.vmap(lambda k: vx.grad(fivo, estimators=scores)(k, theta)))
        draws = np.asarray(each(jax.random.split(key, 40000)))
        z = (draws.mean(0) - right) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))
        assert (abs(z) < 5.3).all()
        left = scores | {"particles/ancestors": est.Biased(est.StopGradient())}
        each = jax.jit(jax.vmap(lambda k: vx.grad(fivo, estimators=left)(k, theta)))
        draws = np.asarray(each(jax.random.split(key, 40000)))
        z = (draws.mean(0) - right) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))
        assert (abs(z) > 5.3).any()


# ---- bad input


def test_ways_to_resample():
    with pytest.raises(errors.ParticleError, match=r"systematic(.|\n)*resample='roulette'"):
        vx.smc(3, resample="roulette")
    with pytest.raises(errors.ParticleError, match=r"threshold=2\.0"):
        vx.smc(3, threshold=2.0)
    with pytest.raises(errors.ParticleError, match="at least 1"):
        vx.smc(0)


def test_a_program_without_a_scan():
    @vx.model
    def flat():
        z = vx.sample("z", d.Normal(0.0, 1.0))
        vx.sample("x", d.Normal(z, 1.0))

    with pytest.raises(errors.CapabilityError, match=r"no scan that draws(.|\n)*vx.importance"):
        vx.marginal(flat(), "x", vx.smc(3)).log_density({"x": 0.0}, jax.random.key(0))


def test_a_proposal_with_other_scans():
    @vx.model
    def wrong(kept):
        vx.sample("z", d.Bernoulli(0.5 * jnp.ones(2)))

    with pytest.raises(errors.CapabilityError, match=r"scans that draw of lengths \[2\]"):
        vx.marginal(markov(), "x", vx.smc(3, wrong)).simulate(jax.random.key(0))


@vx.model
def estimated():
    """Each step observes through a marginal."""

    @vx.model
    def noisy(z):
        u = vx.sample("u", d.Bernoulli(0.4))
        vx.sample("x", d.Bernoulli(0.2 + 0.3 * z + 0.4 * u))

    def step(z, _):
        z = vx.sample("z", d.Bernoulli(0.3 + 0.4 * z))
        vx.sample("seen", vx.marginal(noisy(z), "x", vx.importance(1)))
        return z, None

    jax.lax.scan(step, 0, None, length=2)


def test_observations_may_be_estimated_but_not_those_of_a_path():
    m = vx.marginal(estimated(), "seen", vx.smc(2, resample="multinomial"))
    plain = vx.marginal(estimated(), "seen", vx.importance(1))
    x = {"seen": {"x": jnp.array([1, 0])}}
    with jax.enable_x64(True):
        found, right = (exact(lambda m=m: jnp.exp(m.log_density(x))) for m in (m, plain))
        np.testing.assert_allclose(found, right, rtol=1e-10)
    with pytest.raises(errors.CapabilityError, match=r"weighed by exact densities(.|\n)*noisy"):
        m.simulate(jax.random.key(0))
