"""Every objective against a version that a user writes in five lines: the same numbers.

The same key gives the same draws, so value and gradient agree to rounding. Also the tags.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from gradient_checks import QUICKLY
from linear_gaussian import DATA, X, guide, model, of
from numpyro.distributions.kl import kl_divergence

import varax as vx
from varax import dist as d
from varax import objectives as ob

K = 5
KEY = jax.random.key(7)
OWN = {}  # name -> (the library's program, one's own)


def own(name, program):
    """Register one's own version of an objective, both programs of t."""

    def add(function):
        OWN[name] = program, function
        return function

    return add


def log_w(t):
    q = guide(t).simulate()
    return model(t).log_density(q.choices | DATA) - q.log_density


def draws(t, k=K):
    return jax.vmap(lambda _: log_w(t))(jnp.arange(k))


def log_mean(x):
    return jax.nn.logsumexp(x, 0) - jnp.log(len(x))


def likelihood(t, z):
    return d.Normal(z, jnp.exp(t[1])).log_prob(X)


def both_terms(t):
    """log p(x | z) at a draw, and KL(q || p) in closed form."""
    z = guide(t).simulate()["z"]
    kl = kl_divergence(d.Normal(t[2], jnp.exp(t[3])), d.Normal(t[0], 1.0))
    return likelihood(t, z), kl


stop = jax.lax.stop_gradient

# ---- bounds


@own("elbo", of(ob.elbo))
def elbo(t):
    q = guide(t).simulate()
    return model(t).log_density(q.choices | DATA) - q.log_density


@own("elbo, analytic", of(ob.elbo, analytic_kl=True))
def elbo_analytic(t):
    log_likelihood, kl = both_terms(t)
    return log_likelihood - kl


@own("iwelbo", of(ob.iwelbo, K))
def iwelbo(t):
    return log_mean(draws(t))


@own("miwae", of(ob.miwae, K, 3))
def miwae(t):
    return jax.vmap(lambda _: log_mean(draws(t)))(jnp.arange(3)).mean()


@own("ciwae", of(ob.ciwae, K, 0.2))
def ciwae(t):
    w = draws(t)
    return 0.2 * w.mean() + 0.8 * log_mean(w)


@own("renyi", of(ob.renyi, K, 0.4))
def renyi(t):
    return log_mean(0.6 * draws(t)) / 0.6


@own("cubo", of(ob.cubo, K))
def cubo(t):
    return log_mean(2 * draws(t)) / 2


@own("exp_cubo", of(ob.exp_cubo, K, 2.0, -1.0))
def exp_cubo(t):
    return (jnp.exp(draws(t) + 1) ** 2).mean()


@own("sticking_the_landing", of(ob.sticking_the_landing))
def sticking_the_landing(t):
    z = guide(t).simulate().choices
    return model(t).log_density(z | DATA) - guide(stop(t)).log_density(z)


@own("dreg", of(ob.dreg, K))
def dreg(t):
    z = jax.vmap(lambda _: guide(t).simulate()["z"])(jnp.arange(K))
    w = jax.vmap(lambda z: model(t).log_density({"z": z} | DATA) - lg.log_guide(stop(t), z))
    v = stop(jax.nn.softmax(w(z)))
    score = v @ w(v * z + (1 - v) * stop(z))
    return score + stop(log_mean(w(z)) - score)


@own("vimco", of(ob.vimco, K))
def vimco(t):  # the guide is pathwise: no baselines
    return log_mean(draws(t))


# ---- groups


def total(groups):
    """One number whose gradient shows that of both groups."""
    return groups["model"] + 2 * groups["guide"]


@own("piwae", lambda t: total(of(ob.piwae, K, 3)(t)))
def piwae(t):
    w = jax.vmap(lambda _: draws(t))(jnp.arange(3))
    return log_mean(w.ravel()) + 2 * jax.vmap(log_mean)(w).mean()


def frozen(t):
    """log w with a constant guide, and log q at constant draws: [K]."""
    q = guide(stop(t))
    traces = jax.vmap(lambda _: q.simulate())(jnp.arange(K))
    log_p = jax.vmap(lambda z: model(t).log_density(z | DATA))(traces.choices)
    return log_p - traces.log_density, jax.vmap(guide(t).log_density)(traces.choices)


@own("wake_model", of(ob.wake_model, K))
def wake_model(t):
    return log_mean(frozen(t)[0])


@own("wake_guide", of(ob.wake_guide, K))
def wake_guide(t):
    w, log_q = frozen(t)
    return stop(jax.nn.softmax(w)) @ log_q


@own("wake_wake", lambda t: total(of(ob.wake_wake, K)(t)))
def wake_wake(t):
    w, log_q = frozen(t)
    return log_mean(w) + 2 * stop(jax.nn.softmax(w)) @ log_q


@vx.model
def encoder(t, data):
    vx.sample("z", d.Normal(t[2] * data["x"], jnp.exp(t[3])))


def of_encoder(objective, *args):
    return lambda t: objective(model(t), functools.partial(encoder, t), *args)


def dream(theta, t):
    """log q(z | x) at one simulation."""
    trace = model(theta).simulate()
    return encoder(t, {"x": trace["x"]}).log_density({"z": trace["z"]})


@own("sleep_guide", of_encoder(ob.sleep_guide, ["x"], K))
def sleep_guide(t):
    return jax.vmap(lambda _: dream(stop(t), t))(jnp.arange(K)).mean()


@own("forward_kl", of_encoder(ob.forward_kl, ["x"], K))
def forward_kl(t):
    return -jax.vmap(lambda _: dream(t, t))(jnp.arange(K)).mean()


@own("wake_sleep", lambda t: total(of_encoder(ob.wake_sleep, DATA, K)(t)))
def wake_sleep(t):
    z = encoder(stop(t), DATA).simulate().choices
    return model(t).log_density(z | DATA) + 2 * sleep_guide(t)


@own("pwake", lambda t: ob.pwake(model(t), guide(t), DATA))
def pwake(t):
    z = guide(stop(t)).simulate().choices
    return model(t).log_density(z | DATA)


@own("qwake", lambda t: ob.qwake(guide(t), guide(t)))
def qwake(t):
    return guide(t).log_density(guide(stop(t)).simulate().choices)


# ---- divergences


@own("f_divergence", of(ob.f_divergence, K, "hellinger"))
def hellinger(t):
    w = draws(t)
    r = jnp.exp(w - log_mean(w))
    return ((1 - jnp.sqrt(r)) ** 2).mean() / 2


@own("forward_chi2", of(ob.forward_chi2, K))
def forward_chi2(t):
    w, log_q = frozen(t)
    return log_mean(2 * w + stop(log_q) - log_q)


@own("vis", lambda t: total(of(ob.vis, K)(t)))
def vis(t):
    w, log_q = frozen(t)
    return log_mean(w) - 2 * log_mean(2 * w + stop(log_q) - log_q)


# ---- weighted terms


@own("beta_elbo", of(ob.beta_elbo, 4.0, analytic_kl=True))
def beta_elbo(t):
    log_likelihood, kl = both_terms(t)
    return log_likelihood - 4 * kl


@own("tempered_elbo", of(ob.tempered_elbo, 2.0, analytic_kl=True))
def tempered_elbo(t):
    log_likelihood, kl = both_terms(t)
    return log_likelihood / 2 - kl


@own("cold_elbo", of(ob.cold_elbo, 0.5))
def cold_elbo(t):
    q = guide(t).simulate()
    return model(t).log_density(q.choices | DATA) / 0.5 - q.log_density


@own("data_emphasised_elbo", of(ob.data_emphasised_elbo, 3.0))
def data_emphasised_elbo(t):
    q = guide(t).simulate()
    log_prior = d.Normal(t[0], 1.0).log_prob(q["z"])
    return 3 * likelihood(t, q["z"]) + log_prior - q.log_density


@own("autogen", of(ob.autogen, 2, analytic_kl=True))
def autogen(t):
    """Mansbridge et al. 2019: the weighted ELBO with the factor 1 + m."""
    log_likelihood, kl = both_terms(t)
    return (1 + 2) * log_likelihood - kl


@own("capacity", of(ob.capacity, 10.0, 0.4))
def capacity(t):
    log_likelihood, kl = both_terms(t)
    return log_likelihood - 10 * jnp.abs(kl - 0.4)


@own("vib", of(ob.vib, 0.3))
def vib(t):
    q = guide(t).simulate()
    kl = q.log_density - d.Normal(t[0], 1.0).log_prob(q["z"])
    return likelihood(t, q["z"]) - 0.3 * kl


# ---- minibatches: q(z | x_i) = Normal(t x_i, exp t'), x [4, 2]

POINTS = jnp.array([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9], [0.1, 1.5]])
PRIOR = d.Normal(0.0, 1.0)


def batch(t):
    return d.Normal(t[:2] * POINTS, jnp.exp(t[2:]) * jnp.ones((4, 1)))


def drawn(t):
    return vx.sample("z", batch(t))


def decomposed(t):
    parts = ob.decompose_kl(batch(t), drawn(t), PRIOR, 4)
    return parts.mutual_information + 2 * parts.total_correlation + 3 * parts.dimension_wise_kl


@own("decompose_kl", decomposed)
def decompose_kl(t):
    z, q = drawn(t), batch(t)
    each = jnp.stack([q.log_prob(z[i]) for i in range(4)], 1)  # [j, i, d]
    joint, by_dimension = log_mean(each.sum(2)), log_mean(each)
    own_terms = [q.log_prob(z).sum(1), joint, by_dimension.sum(1), PRIOR.log_prob(z).sum(1)]
    return -jnp.diff(jnp.stack(own_terms).mean(1), axis=0) @ jnp.array([1.0, 2.0, 3.0])


@own("tc_elbo", lambda t: ob.tc_elbo(t[:1], ob.decompose_kl(batch(t), drawn(t), PRIOR, 4), 6.0))
def tc_elbo(t):
    q, z = batch(t), drawn(t)
    each = jnp.stack([q.log_prob(z[i]) for i in range(4)], 1)
    joint, by_dimension = log_mean(each.sum(2)), log_mean(each)
    kl = (q.log_prob(z) - PRIOR.log_prob(z)).sum(1).mean()
    return t[0] - kl - 5 * (joint - by_dimension.sum(1)).mean()


@own("dip_i", lambda t: ob.dip_i(drawn(t)))
def dip_i(t):
    off = jnp.cov(drawn(t).T, bias=True) - jnp.eye(2)
    return 2 * 10 * off[0, 1] ** 2 + 100 * (off[0, 0] ** 2 + off[1, 1] ** 2)


@own("dip_ii", lambda t: ob.dip_ii(batch(t).mean, batch(t).variance))
def dip_ii(t):
    q = batch(t)
    off = jnp.cov(q.mean.T, bias=True) + jnp.diag(q.variance.mean(0)) - jnp.eye(2)
    return 10 * (off**2).sum()


def against(t):
    return drawn(t), vx.sample("prior", d.Normal(jnp.zeros((4, 2)), 1.0))


@own("mmd", lambda t: ob.mmd(*against(t), ob.rbf(0.7)))
def mmd(t):
    def mean(x, y, keep):
        return sum(
            jnp.exp(-((x[i] - y[j]) ** 2).sum() / 0.98) for i in range(4) for j in keep(i)
        ) / sum(len(keep(i)) for i in range(4))

    x, y = against(t)
    others = lambda i: [j for j in range(4) if j != i]  # noqa: E731
    return mean(x, x, others) + mean(y, y, others) - 2 * mean(x, y, lambda i: range(4))


@own("infovae", lambda t: ob.infovae(t[:2], t[2:], ob.mmd(*against(t)), 0.3, 5.0))
def infovae(t):
    return t[:2].mean() - 0.7 * t[2:].mean() - 4.3 * ob.mmd(*against(t), ob.imq(2.0))


@own("sliced_wasserstein", lambda t: ob.sliced_wasserstein(*against(t), 3))
def sliced_wasserstein(t):
    x, y = against(t)
    theta = vx.sample("directions", d.Normal(jnp.zeros((3, 2)), 1.0))
    theta /= jnp.sqrt((theta**2).sum(1, keepdims=True))
    gaps = [jnp.sort(x @ v) - jnp.sort(y @ v) for v in theta]
    return (jnp.stack(gaps) ** 2).mean()


# ---- information: scores f(x_i, y_j) = t . features


def scores(t):
    x, y = against(t)
    return t[0] * x @ y.T + t[1]


def joint_and_product(t):
    f = scores(t)
    return jnp.diagonal(f), f[~np.eye(4, dtype=bool)]


@own("donsker_varadhan", lambda t: ob.donsker_varadhan(scores(t)))
def donsker_varadhan(t):
    joint, product = joint_and_product(t)
    return joint.mean() - jnp.log(jnp.exp(product).mean())


@own("nwj", lambda t: ob.nwj(scores(t)))
def nwj(t):
    joint, product = joint_and_product(t)
    return joint.mean() - jnp.exp(product - 1).mean()


@own("infonce", lambda t: ob.infonce(scores(t)))
def infonce(t):
    f = jnp.exp(scores(t))
    return jnp.log(jnp.diagonal(f) / f.mean(1)).mean()


@own("smile", lambda t: ob.smile(scores(t), 1.0))
def smile(t):
    joint, product = joint_and_product(t)
    return joint.mean() - jnp.log(jnp.clip(jnp.exp(product), jnp.exp(-1), jnp.exp(1)).mean())


@own("jensen_shannon", lambda t: ob.jensen_shannon(scores(t)))
def jensen_shannon(t):
    joint, product = joint_and_product(t)
    return jnp.log(jax.nn.sigmoid(joint)).mean() + jnp.log(jax.nn.sigmoid(-product)).mean()


def gram(x, y):
    return jnp.exp(-((x[:, None] - y) ** 2).sum(2) / 2)


@own("cauchy_schwarz", lambda t: ob.cauchy_schwarz(*against(t)))
def cauchy_schwarz(t):
    x, y = against(t)
    return jnp.log(gram(x, x).mean() * gram(y, y).mean() / gram(x, y).mean() ** 2)


@own("cs_information", lambda t: ob.cs_information(*against(t)))
def cs_information(t):
    k, q = (gram(x, x) for x in against(t))
    cross = (k.sum(1) * q.sum(1)).sum() / 4**3
    return jnp.log((k * q).mean() * k.mean() * q.mean() / cross**2)


@own("cs_prediction", lambda t: ob.cs_prediction(POINTS, *against(t)))
def cs_prediction(t):
    y, y_hat = against(t)
    k = gram(POINTS, POINTS)
    s = [((k * gram(a, b)).sum(1) / k.sum(1) ** 2).sum() for a in (y, y_hat) for b in (y, y_hat)]
    return jnp.log(s[0] * s[3] / s[2] ** 2)


@own("cs_bottleneck", lambda t: ob.cs_bottleneck(POINTS, *against(t), POINTS, 0.3))
def cs_bottleneck(t):
    code, y = against(t)
    return ob.cs_prediction(POINTS, y, POINTS) + 0.3 * ob.cs_information(POINTS, code)


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", OWN)
def test_ones_own_version_has_the_same_numbers(name):
    def both(t):
        return [vx.value_and_grad(program)(KEY, t) for program in OWN[name]]

    with jax.enable_x64(True):
        run = jax.jit(both, compiler_options=QUICKLY)
        (value, slope), (by_hand, slope_by_hand) = run(jnp.array(lg.THETA))
    np.testing.assert_allclose(value, by_hand, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slope, slope_by_hand, rtol=1e-9, atol=1e-10)
    assert np.abs(slope).max() > 0


def test_every_objective_is_in_the_list():
    """Those of nested inference are written out in their own tests."""
    nested = {"hvi", "iwhvi", "diwhvi", "vsmc"}
    assert {row.name for row in ob.table()} == {name.split(",")[0] for name in OWN} | nested


# ---- tags


def test_every_objective_says_what_it_is():
    for name, kind, goal, reference in ob.table():
        objective = getattr(ob, name)
        assert (objective.kind, objective.goal, objective.reference) == (kind, goal, reference)
        summary, *_ = objective.__doc__.split("\n")
        assert summary.startswith(f"[{kind}] ")
        author, year = re.split("[ ,]", reference)[0], reference[-4:]
        assert author in objective.__doc__ and year in objective.__doc__


def test_the_table_prints():
    first = repr(ob.table()).splitlines()[0]
    assert first.split("  ")[0] == "elbo" and "lower bound" in first and "maximise" in first


def test_objectives_of_ones_own_are_tagged_alike():
    @ob.tagged("upper bound", "Me 2026", minimise=True)
    def mine():
        return 0.0

    assert (mine.kind, mine.goal, mine.reference) == ("upper bound", "minimise", "Me 2026")
    with pytest.raises(vx.errors.ObjectiveError, match="unbiased, lower bound, upper bound"):
        ob.tagged("tight", "Me 2026")


# ---- the document


@pytest.mark.slow
def test_the_documents_objectives_reach_maximum_likelihood():
    """The model's marginal is normal: mean and variance are those of the data."""
    text = (Path(__file__).resolve().parents[1] / "docs/objectives.md").read_text()
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    x = scope["data"]
    for name in ("by_elbo", "by_wake", "by_terms"):
        theta = scope[name].params["model"]
        np.testing.assert_allclose(theta["mean"], x.mean(0), atol=0.15)
        variance = 1 + np.exp(2 * theta["log_sd"])
        np.testing.assert_allclose(np.log(variance), np.log(np.maximum(x.var(0), 1)), atol=0.2)
    one = scope["guide"](scope["params"]["guide"], x[0])
    run = vx.seed(scope["two_guides"])
    p, data = scope["model"](scope["params"]["model"]), {"x": x[0]}
    exact = d.Normal(0.0, np.sqrt(2)).log_prob(x[0]).sum()
    np.testing.assert_allclose(run(KEY, p, one, one, data, 20_000), exact, atol=0.1)


def test_every_objective_is_in_the_document():
    text = (Path(__file__).resolve().parents[1] / "docs/objectives.md").read_text()
    assert not [row.name for row in ob.table() if not re.search(rf"\b{row.name}\b", text)]
