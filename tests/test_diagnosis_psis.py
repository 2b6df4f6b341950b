"""Pareto smoothed importance sampling: known tails, another implementation, a fit's k-hat."""

import math

import jax
import numpy as np
import pytest
from gradient_checks import FALSE_ALARM, check_biased, check_mean
from posterior_cases import fitted

import varax as vx
from varax import dist as d
from varax import errors as e
from varax.ppl.diagnosis import khat_threshold
from varax.ppl.diagnosis.arviz_export import require_arviz
from varax.ppl.diagnosis.psis import PRIOR_DRAWS, PRIOR_SHAPE, fit_generalised_pareto

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def quantiles(n):
    return (np.arange(n) + 0.5) / n


def reference(log_w):
    """ArviZ's smoothing, and how near it is: 1.x fits a slightly other tail."""
    arviz = require_arviz()
    if hasattr(arviz, "psislw"):
        return *arviz.psislw(log_w.copy()), 1e-8
    from arviz_stats.base import array_stats

    return *array_stats.psislw(-log_w), 0.05  # of a log likelihood, the weights that leave one out


@pytest.mark.parametrize("k", [-0.3, 0.1, 0.5, 0.9, 1.5])
def test_the_shape_of_an_exact_generalised_pareto_tail(k):
    n = 20_000
    y = 3.0 * np.expm1(-k * np.log1p(-quantiles(n))) / k
    found, sigma = fit_generalised_pareto(y)
    plain = (found * (n + PRIOR_DRAWS) - PRIOR_DRAWS * PRIOR_SHAPE) / n  # the prior taken out
    assert plain == pytest.approx(k, abs=0.01)
    assert sigma == pytest.approx(3.0, rel=0.02)


def test_khat_of_exponential_weights_is_the_tail_index():
    """q = Exp(2), p = Exp(1): w ~ exp(z), P(w > t) ~ t^-2, so k = 1/2 in the whole of the tail."""
    z = RNG.exponential(0.5, (300, 10_000))
    khat = vx.psis(z)[1]
    check_mean(khat, 0.5)  # the prior, which draws towards a half, does not move it
    check_biased(vx.psis(1.3 * z)[1], 0.5)


@pytest.mark.parametrize("s", [0.5, 0.8])
def test_khat_of_a_narrow_normal_is_near_its_limit(s):
    z = s * jax.scipy.stats.norm.ppf(quantiles(1_000_000))
    khat = vx.psis(z**2 * (1 / s**2 - 1) / 2)[1]
    assert khat == pytest.approx(1 - s**2, abs=0.08)  # the logarithm of the tail dies slowly


def test_as_arviz_does():
    for log_w in (RNG.standard_t(3, (4, 1000)), RNG.exponential(0.9, (2, 5000))):
        theirs, shape, near = reference(log_w)
        ours, khat = vx.psis(log_w)
        np.testing.assert_allclose(khat, shape, atol=near)
        theirs = np.exp(theirs) / np.exp(theirs).sum(-1, keepdims=True)
        np.testing.assert_allclose(np.exp(ours), theirs, atol=near)


def test_smoothing_keeps_order_body_and_largest_weight():
    raw = RNG.exponential(0.8, 2000)
    smooth, _ = vx.psis(raw)
    assert np.exp(smooth).sum() == pytest.approx(1)
    assert (np.diff(smooth[np.argsort(raw)]) >= 0).all()
    tail = math.ceil(3 * math.sqrt(2000))
    body = np.argsort(raw)[:-tail]
    shift = (smooth - raw)[body]
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)
    assert (smooth - shift[0]).max() <= raw.max() + 1e-12


def test_weights_that_are_bounded_are_left_alone():
    rounded = np.round(-1e-3 * RNG.normal(size=5000) ** 2, 6)  # a guide that is all but exact
    rounded[0] = 1e-6
    for log_w in (np.full(100, -3.0), RNG.integers(0, 3, 1000).astype(float), rounded):
        smooth, khat = vx.psis(log_w)
        assert khat == -math.inf
        np.testing.assert_allclose(np.exp(smooth), np.exp(log_w) / np.exp(log_w).sum())


def test_too_few_weights_have_no_tail():
    assert vx.psis([0.0, -1.0, -2.0])[1] == math.inf


def test_weights_of_zero_count_as_zero():
    log_w = np.where(np.arange(1000) % 2, -np.inf, RNG.exponential(0.3, 1000))
    smooth, khat = vx.psis(log_w)
    assert khat < 0.7 and (np.exp(smooth[1::2]) == 0).all()


def test_threshold():
    assert khat_threshold(100) == 0.5
    assert khat_threshold(10_000) == 0.7


@pytest.mark.parametrize(
    ("log_w", "says"),
    [
        ([0.0, np.nan, 1.0], "1 NaN and 0 infinite among 3"),
        ([np.inf, 0.0], "0 NaN and 1 infinite"),
        (np.full((2, 3), -np.inf), "all 3 weights are zero"),
        (1.0, "an array of shape ()"),
    ],
)
def test_unusable_weights(log_w, says):
    with pytest.raises(e.WeightsError, match="no importance weights") as caught:
        vx.psis(log_w)
    assert says in str(caught.value) and "test_diagnosis_psis.py" in str(caught.value)


# ---- of a fit


@vx.model
def lifetime(rate):
    vx.sample("z", d.Exponential(rate))


def test_khat_of_a_fit():
    """The same exponential weights through a model and its guide."""
    khats = {}
    for rate in (1.0, 2.0, 20.0):
        khats[rate] = fitted(lifetime(1.0), lifetime, rate).khat
    sd = 1.5 / math.sqrt(300)  # of k-hat at k = 1/2, (1 + k) / sqrt M
    z = -float(jax.scipy.stats.norm.ppf(FALSE_ALARM / 2))
    assert khats[1.0] == -math.inf
    assert abs(khats[2.0] - 0.5) < z * sd
    assert khats[20.0] > 0.7  # k = 0.95


def test_khat_is_the_same_again():
    assert fitted(lifetime(1.0), lifetime, 2.0).khat == fitted(lifetime(1.0), lifetime, 2.0).khat


def test_sampling_by_importance():
    """Exp(1.5) in the place of Exp(1): k = 1/3, so that reweighting is sound."""
    result = fitted(lifetime(1.0), lifetime, 1.5)
    plain = result.sample(KEY, 2000)["z"]
    check_biased(np.asarray(plain), 1.0)
    again = result.sample(KEY, 2000, importance=True, candidates=100_000)["z"]
    check_mean(np.asarray(again), 1.0)
    with pytest.warns(UserWarning, match="the reweighted draws are not reliable"):
        fitted(lifetime(1.0), lifetime, 20.0).sample(KEY, 100, importance=True)


def test_a_guide_outside_the_support():
    """A normal far from the positive numbers; the formula of the density goes on there."""
    result = fitted(lifetime(1.0), vx.model(lambda m: vx.sample("z", d.Normal(m, 1.0))), -30.0)
    with pytest.raises(e.WeightsError, match="no importance weights"):
        result.khat  # noqa: B018


@pytest.mark.parametrize(
    "ask",
    [lambda r: r.khat, lambda r: r.summary(), lambda r: r.predict(KEY), lambda r: r.to_arviz()],
    ids=["khat", "summary", "predict", "to_arviz"],
)
def test_a_result_without_model_or_guide(ask):
    for model, guide in ((None, lifetime), (lifetime(1.0), None)):
        result = fitted(model, guide, 1.0)
        missing = "model" if model is None else "guide"
        with pytest.raises(e.CapabilityError, match=f"needs the {missing}") as caught:
            ask(result)
        assert "pass model=" in str(caught.value) and "test_diagnosis" in str(caught.value)


def test_a_guide_of_other_addresses():
    result = fitted(lifetime(1.0), vx.model(lambda m: vx.sample("w", d.Normal(m, 1.0))), 0.0)
    with pytest.raises(e.GuideMismatchError, match="does not match the model"):
        result.khat  # noqa: B018
    with pytest.raises(e.DrawCountError, match="not a number of draws"):
        result.sample(KEY, 0)
