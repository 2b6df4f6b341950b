"""`vx.from_numpyro`: the density, its gradient and the draws of NumPyro models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from gradient_checks import FALSE_ALARM
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.util import log_density
from numpyro.primitives import mutable
from scipy.special import ndtri

import varax as vx
from varax import errors

KEY = jax.random.key(0)
Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
ROWS = jax.random.normal(jax.random.key(3), (5, 3))
BATCH = jnp.array([4, 0, 2])


def eight_schools():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)
    numpyro.deterministic("ratio", theta / tau)


def nested_plates():
    """The outer plate at dimension -2; one site in both, one in each."""
    with numpyro.plate("rows", 5, dim=-2):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))  # [5, 1]
    with numpyro.plate("columns", 3, dim=-1):
        b = numpyro.sample("b", dist.Gamma(2.0, 1.0))  # [3]
    with numpyro.plate("rows", 5, dim=-2), numpyro.plate("columns", 3, dim=-1):
        numpyro.sample("y", dist.StudentT(4.0, a * b, b), obs=ROWS)


def broadcast_observations():
    """No plate: the observations alone have the data's axis."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 10.0), sample_shape=(3,))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(loc, scale), obs=ROWS)
    numpyro.sample("total", dist.Normal(loc.sum(), 1.0), obs=jnp.array([1.0, 2.0]))


def subsampled():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 5, subsample_size=3) as at, handlers.scale(scale=0.5):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).expand([2]).to_event(1))  # [3, 2]
        y = numpyro.subsample(ROWS, event_dim=1)
        numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y[:, 0])
        numpyro.sample("same", dist.Normal(mu, 1.0), obs=ROWS[at, 1])
        numpyro.factor("penalty", -(z**2).sum(-1))


def masked():
    """A mask inside a plate, one around it, one of single entries of an event; missing data."""
    seen = jnp.array([True, False, True, True, False])
    y = jnp.where(seen, ROWS[:, 0], jnp.nan)
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with handlers.mask(mask=seen), numpyro.plate("rows", 5):
        numpyro.sample("around", dist.Normal(mu, 1.0), obs=ROWS[:, 0])
        numpyro.sample("missing", dist.Normal(mu, 1.0), obs=y)
        numpyro.factor("f", mu * ROWS[:, 1])
    with numpyro.plate("rows", 5), handlers.mask(mask=jnp.array(True)):
        inside = dist.Normal(mu, 1.0).mask(jnp.array(False))
        numpyro.sample("inside", inside, obs=ROWS[:, 1])
        entries = dist.Normal(mu, jnp.ones(3)).mask(jnp.array([True, False, True])).to_event(1)
        with handlers.scale(scale=jnp.arange(5.0) + 1.0):
            numpyro.sample("entries", entries, obs=ROWS)
    with handlers.mask(mask=False):
        numpyro.sample("never", dist.Normal(mu, 1.0), obs=3.0)


def imputed():
    """`obs_mask`: NumPyro draws what is missing at the address `y_unobserved`."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 5):
        seen = jnp.array([True, False, True, True, False])
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=ROWS[:, 0], obs_mask=seen)


def correlated():
    scale = numpyro.sample("scale", dist.Exponential(1.0).expand([3]).to_event(1))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("rows", 5):
        numpyro.sample(
            "y", dist.MultivariateNormal(0.0, scale_tril=scale[:, None] * factor), obs=ROWS
        )


def mixture():
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("components", 3):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", 5):
        of = dist.MixtureSameFamily(dist.Categorical(weight), dist.Normal(loc, 1.0))
        numpyro.sample("y", of, obs=ROWS[:, 0])


def chain(y=ROWS, reverse=False):
    """A random walk, its observations plated in the step."""
    step_size = numpyro.sample("step", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, step_size))
        numpyro.deterministic("twice", 2 * x)
        with numpyro.plate("columns", 3):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    return scan(step, start, y, reverse=reverse)[1]


def branches():
    side = numpyro.sample("side", dist.Normal(0.0, 1.0))

    def branch(loc):
        return lambda scale: numpyro.sample("x", dist.Normal(loc, scale))

    x = cond(side > 0.3, branch(20.0), branch(0.0), 2.0)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=10.0)


def discrete():
    """Counts and labels with parameters by logits; a truncated and an improper prior."""
    rate = numpyro.sample("rate", dist.TruncatedNormal(1.0, 1.0, low=0.1))
    bias = numpyro.sample("bias", dist.ImproperUniform(dist.constraints.real, (), ()))
    with numpyro.plate("rows", 5):
        n = numpyro.sample("n", dist.Poisson(rate))
        numpyro.sample("y", dist.Bernoulli(logits=bias + 0.1 * n), obs=jnp.array([0, 1, 1, 0, 1]))


def scoped():
    """Two copies of one program, their names in scopes."""

    def part():
        return numpyro.sample("z", dist.Normal(0.0, 1.0))

    a = handlers.scope(part, prefix="a")()
    b = handlers.scope(part, prefix="b")()
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=1.0)


def trained():
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    z = numpyro.sample("z", dist.Normal(loc, scale))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=1.0)


INNER = handlers.condition(chain, {"start": jnp.array(0.5)})  # a handler around the model
PARAMS = {"loc": jnp.array(0.3), "scale": jnp.array(2.0)}
MODELS = {
    "eight schools": (eight_schools, {}),
    "nested plates": (nested_plates, {}),
    "broadcast observations": (broadcast_observations, {}),
    "subsampled": (subsampled, {"subsample": {"data": BATCH}}),
    "masked": (masked, {}),
    "imputed": (imputed, {}),
    "correlated": (correlated, {}),
    "mixture": (mixture, {}),
    "chain": (chain, {}),
    "branches": (branches, {}),
    "discrete": (discrete, {}),
    "scoped": (scoped, {}),
    "trained": (trained, {"params": PARAMS}),
}


def point(name):
    """NumPyro's values for all latents, by site, from a generator of no importance."""
    fn, given = MODELS[name]
    fixed = {**given.get("subsample", {}), **given.get("params", {})}
    fn = handlers.seed(handlers.substitute(fn, fixed), 1)
    if name == "discrete":
        fn = handlers.substitute(fn, {"bias": jnp.array(0.2)})
    trace = handlers.trace(fn).get_trace()
    return {
        at: site["value"]
        for at, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def nested(values):
    """A site's name with slashes is a path."""
    tree = {}
    for name, value in values.items():
        *outer, last = name.split("/")
        at = tree
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = value
    return tree


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", MODELS)
def test_the_density_and_its_gradient_are_numpyros(name, x64):
    fn, given = MODELS[name]
    values = {k: jnp.asarray(v, jnp.result_type(v)) for k, v in point(name).items()}
    fixed = {**given.get("subsample", {}), **given.get("params", {})}
    measure = vx.from_numpyro(fn, **given)()
    floats = {k: v for k, v in values.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def theirs(floats):
        return log_density(fn, (), {}, {**fixed, **values, **floats})[0]

    def ours(floats):
        return measure.log_density(nested({**values, **floats}))

    tol = 1e-9 if x64 else 2e-4
    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(floats) for f in (theirs, ours))
    np.testing.assert_allclose(a, b, rtol=tol)
    if name == "masked":  # NumPyro's derivative meets the missing value
        assert np.isfinite(db["mu"])
        da = {"mu": jax.grad(functools.partial(_masked_by_hand))(floats["mu"])}
    for k in floats:
        np.testing.assert_allclose(da[k], db[k], rtol=tol, atol=tol, err_msg=k)


def _masked_by_hand(mu):
    seen, weight = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]), jnp.arange(5.0) + 1.0

    def normal(y):
        return -0.5 * (y - mu) ** 2

    return (
        normal(0.0)
        + (seen * (2 * normal(ROWS[:, 0]) + mu * ROWS[:, 1])).sum()
        + (weight * (normal(ROWS[:, 0]) + normal(ROWS[:, 2]))).sum()
    )


def test_a_scan_in_reverse_stacks_its_values_as_jax_does():
    """The density of NumPyro's own draws, where NumPyro substitutes them the other way round."""
    trace = handlers.trace(handlers.seed(chain, 1)).get_trace(reverse=True)
    sites = [s for s in trace.values() if s["type"] == "sample"]
    exact = sum(s["fn"].log_prob(s["value"]).sum() for s in sites)
    values = {s["name"]: s["value"] for s in sites if not s["is_observed"]}
    found = vx.from_numpyro(chain)(reverse=True).log_density(values)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_addresses_values_and_recorded_are_numpyros():
    measure = vx.from_numpyro(eight_schools)()
    assert measure.addresses == {"mu": (), "tau": (), "theta": (8,)}
    trace, _ = measure.generate(KEY, {})
    np.testing.assert_allclose(trace["ratio"], trace["theta"] / trace["tau"], rtol=1e-6)
    np.testing.assert_array_equal(trace["y"], Y)
    measure = vx.from_numpyro(chain)()
    assert measure.addresses == {"step": (), "start": (), "x": (5,)}
    trace, _ = measure.generate(KEY, {})
    assert trace["twice"].shape == trace.value.shape == (5,)
    assert vx.from_numpyro(INNER)().addresses == {"step": (), "x": (5,)}
    assert vx.from_numpyro(scoped)().addresses == {"a/z": (), "b/z": ()}
    assert vx.from_numpyro(subsampled, subsample={"data": BATCH})().addresses["z"] == (3, 2)


def test_arguments_and_prior_draws():
    """With no data the model simulates: mean and variance of a walk of three steps."""

    def walk(n):
        def step(x, _):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            return x, numpyro.sample("y", dist.Normal(x, 0.5))

        return scan(step, 0.0, None, length=n)[1]

    measure = vx.from_numpyro(walk)(3)
    y = jax.vmap(lambda k: measure.simulate(k)["y"])(jax.random.split(KEY, 20_000))  # [n, 3]
    exact = np.minimum(*np.ogrid[1:4, 1:4]) + 0.25 * np.eye(3)
    z = -ndtri(FALSE_ALARM / 24)
    assert (abs(y.mean(0)) < z * np.sqrt(np.diag(exact) / len(y))).all()
    products = y[:, :, None] * y[:, None, :]
    assert (abs(products.mean(0) - exact) < z * products.std(0) / np.sqrt(len(y))).all()


def test_it_is_a_model_like_any_other():
    """Nested in a varax model, conditioned, differentiated by an objective, in a NumPyro run."""

    def local(scale):
        return numpyro.sample("z", dist.Normal(0.0, scale))

    @vx.model
    def whole():
        z = vx.sample("local", vx.from_numpyro(local)(2.0))
        vx.sample("x", vx.dist.Normal(z, 1.0))

    log_p = whole().log_density({"local": {"z": 1.0}, "x": 2.0})
    exact = dist.Normal(0.0, 2.0).log_prob(1.0) + dist.Normal(1.0, 1.0).log_prob(2.0)
    np.testing.assert_allclose(log_p, exact, rtol=1e-6)

    def objective(p):
        q = vx.from_numpyro(trained, params=p)().condition({"z": 0.5})
        return q.log_density({})

    grads = vx.grad(objective)(KEY, PARAMS)
    slope = jax.grad(lambda p: dist.Normal(p["loc"], p["scale"]).log_prob(0.5))(PARAMS)
    for k in PARAMS:
        np.testing.assert_allclose(grads[k], slope[k], rtol=1e-6)

    def outer():  # a density in the middle of a NumPyro model leaves no site there
        numpyro.factor("inner", whole().log_density({"local": {"z": 1.0}, "x": 2.0}))

    np.testing.assert_allclose(log_density(outer, (), {}, {})[0], exact, rtol=1e-6)


def test_subsampling_is_unbiased():
    """Over all subsets of the plate, the mean density is that of the full plate."""

    def model(size):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 5, subsample_size=size) as at:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=ROWS[at, 0])

    pairs = jnp.array([(i, j) for i in range(5) for j in range(i)])

    def part(at):
        return vx.from_numpyro(model, subsample={"data": at})(2).log_density({"mu": 0.7})

    full = vx.from_numpyro(model)(5).log_density({"mu": 0.7})
    np.testing.assert_allclose(jax.vmap(part)(pairs).mean(), full, rtol=1e-5)


def refuse(match, fn, **given):
    with pytest.raises(errors.ForeignModelError, match=match):
        vx.from_numpyro(fn, **given)().generate(KEY, {})


def test_what_has_no_meaning_is_refused():
    refuse(r"(?s)not a NumPyro model.*pass the function itself", 3)
    refuse(r"(?s)parameter loc.*params=\{'loc': value\}.*test_from_numpyro.py:\d+", trained)
    refuse(r"(?s)plate data takes a subsample.*shape \(3,\)", subsampled)
    refuse(r"(?s)3 integers from 0 to 4.*float32", subsampled, subsample={"data": jnp.ones(3)})
    refuse(r"(?s)3 integers from 0 to 4.*\[2\]", subsampled, subsample={"data": BATCH[:2]})
    refuse("`numpyro.prng_key` has no meaning", lambda: numpyro.prng_key())
    refuse("`numpyro.mutable` has no meaning", lambda: mutable("m", 1.0))
    refuse(
        "(?s)do not reach into a scan.*address: +x.*condition the measure",
        handlers.condition(chain, {"x": Y[:5]}),
    )
    refuse("do not reach into a scan", handlers.substitute(chain, substitute_fn=lambda _: None))
    refuse(
        r"(?s)does not fit its distribution.*\(3,\)",
        lambda: numpyro.sample("y", dist.Normal(jnp.zeros(3), 1.0), obs=jnp.zeros(2)),
    )


def test_a_refusal_leaves_numpyro_as_it_was():
    refuse("parameter loc", trained)
    with handlers.seed(rng_seed=0):
        assert numpyro.sample("z", dist.Normal(0.0, 1.0)).shape == ()
