"""Callbacks and stopping rules: exactly when they are called, and how often a rule is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_checks import FALSE_ALARM
from scipy import stats

import varax as vx
from varax import dist as d
from varax import errors

KEY = jax.random.key(0)
EarlyStopping, Plateau = vx.stopping.EarlyStopping, vx.stopping.Plateau
mean_and_error = vx.stopping.mean_and_error


@vx.model
def guide(phi):
    vx.sample("z", d.Normal(phi["m"], 1.0))


def objective(phi):
    """E = -(m - 3)^2 - 1, with noise."""
    return -((guide(phi).simulate()["z"] - 3.0) ** 2)


def fit(steps, **options):
    start = {"m": jnp.zeros(())}
    return vx.fit(objective, start, optax.sgd(0.01), steps, KEY, progress=False, **options)


# ---- callbacks


def test_a_callback_is_called_exactly_at_the_multiples():
    seen = []
    whole = fit(
        100, callbacks=[lambda run: seen.append((run.step, run.metrics, run.params))], every=7
    )
    assert [step for step, _, _ in seen] == list(range(7, 100, 7))
    for step, metrics, params in seen:
        assert metrics == {"objective": whole.history[step - 1]}
        np.testing.assert_array_equal(params["m"], fit(step).params["m"])


def test_callbacks_do_not_change_the_run():
    np.testing.assert_array_equal(
        fit(50, callbacks=[lambda run: None], every=3).history, fit(50).history
    )


def test_without_a_cadence_it_is_called_after_every_call():
    seen = []
    fit(50, callbacks=[lambda run: seen.append(run.step)])
    assert seen[0] == 1 and seen[-1] == 50 and seen == sorted(set(seen))


def test_each_callback_may_have_its_own_cadence():
    class Each:
        def __init__(self, every):
            self.every, self.seen = every, []

        def __call__(self, run):
            self.seen.append(run.step)

    one, two = Each(6), Each(4)
    fit(24, callbacks=[one, two])
    assert one.seen == [6, 12, 18, 24] and two.seen == [4, 8, 12, 16, 20, 24]


def test_true_stops_the_run():
    views = []

    def third(run):
        views.append(run)
        return run.step >= 30

    result = fit(100, callbacks=[third], every=10)
    assert result.steps == 30 and "step 30" in result.stopped and "third" in result.stopped
    assert not result.interrupted
    np.testing.assert_array_equal(result.history, fit(30).history)
    run = views[-1]
    assert run.steps == 100 and run.seconds > 0 and run.state.params is run.params and run.maximize
    assert run.columns["objective"].shape == (30,)
    assert fit(20).stopped is None


def test_an_exception_keeps_what_was_done():
    def fail(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fit(100, callbacks=[fail], every=10)
    np.testing.assert_array_equal(caught.value.result.history, fit(10).history)


def test_wrong_callbacks():
    with pytest.raises(errors.StepError, match=r"(?s)`callbacks` takes functions.*f\(run\).*3"):
        fit(5, callbacks=[3])
    with pytest.raises(errors.StepError, match=r"(?s)`stop` takes functions.*Plateau"):
        fit(5, stop=Plateau)
    with pytest.raises(
        errors.StepError, match=r"(?s)whether to stop.*None or False.*0\.5 of .*lambda"
    ):
        fit(5, callbacks=[lambda run: 0.5])
    with pytest.raises(errors.StepError, match=r"(?s)`every` is not a number of steps.*0"):
        fit(5, callbacks=[lambda run: None], every=0)
    with pytest.raises(errors.StepError, match=r"(?s)`window`.*2\.0.*fix: *window=2"):
        EarlyStopping(window=2.0)
    with pytest.raises(errors.StepError, match=r"(?s)`patience`.*1 or more.*0"):
        Plateau(patience=0)
    with pytest.raises(errors.StepError, match=r"(?s)too short.*window=20 or more.*window=10"):
        Plateau(window=10)
    with pytest.raises(errors.StepError, match=r"(?s)not measured.*\{objective\}.*'loss'"):
        fit(40, stop=Plateau(window=20, metric="loss"))


# ---- stopping rules


def autoregressive(rng, n, phi):
    """x_t = phi x_{t-1} + e_t, of variance 1: [n]."""
    noise = rng.normal(size=n) * np.sqrt(1 - phi**2)
    x = np.empty(n)
    x[0] = rng.normal()
    for t in range(1, n):
        x[t] = phi * x[t - 1] + noise[t]
    return x


def run_of(values, maximize=True):
    return vx.Run(len(values), 10**6, None, {"objective": np.asarray(values)}, 0.0, maximize)


def between(count, n, low, high):
    """Whether a count can come from a probability in an interval."""
    return (
        stats.binom.sf(count - 1, n, high) > FALSE_ALARM
        and stats.binom.cdf(count, n, low) > FALSE_ALARM
    )


@pytest.mark.parametrize("phi", [0.0, 0.8, 0.95])
def test_the_standard_error_covers_autocorrelation(phi):
    """(mean - 0) / se is t with 9 degrees of freedom; that of independent draws is too small."""
    rng, n = np.random.default_rng(0), 2000
    ratio, naive = [], []
    for _ in range(n):
        x = autoregressive(rng, 2000, phi)
        mean, error = mean_and_error(x)
        ratio.append(mean / error)
        naive.append(mean / (x.std() / np.sqrt(len(x))))
    beyond = stats.t.ppf(0.975, 9)
    outside = int((np.abs(ratio) > beyond).sum())
    assert between(outside, n, 0.03, 0.08)
    assert between(int((np.abs(naive) > beyond).sum()), n, 0.03, 0.08) == (phi == 0.0)


def test_the_standard_error_of_few_values():
    assert np.isnan(mean_and_error(np.ones(9))).all()
    mean, error = mean_and_error(np.arange(11.0))  # the first is left out
    np.testing.assert_allclose((mean, error), (5.5, np.std(np.arange(10), ddof=1) / np.sqrt(10)))


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_a_settled_series_stops_as_often_as_documented(phi):
    """One inquiry holds with probability P(t_18 <= 1) = 0.83."""
    rng, n = np.random.default_rng(1), 1000
    rule = Plateau(window=500, patience=1)
    stopped = sum(rule(run_of(autoregressive(rng, 1000, phi))) for _ in range(n))
    assert between(stopped, n, 0.78, 0.88)


def test_an_improving_series_does_not_stop():
    """A rise of d = 6 standard errors a window: P(t_18 <= -5) is 5e-5."""
    rng, n = np.random.default_rng(2), 1000
    rule = Plateau(window=500, patience=1)
    slope = 6 * np.sqrt(2 / 500) / 500
    stopped = sum(rule(run_of(rng.normal(size=1000) + slope * np.arange(1000))) for _ in range(n))
    assert stopped <= stats.binom.ppf(1 - FALSE_ALARM, n, 5e-4)
    correlated = 6 * np.sqrt(2 / 500 * 19) / 500  # (1 + phi) / (1 - phi) = 19 times the variance
    series = [autoregressive(rng, 1000, 0.9) + correlated * np.arange(1000) for _ in range(n)]
    assert sum(rule(run_of(x)) for x in series) <= stats.binom.ppf(1 - FALSE_ALARM, n, 5e-3)


def test_patience_asks_several_times():
    rng = np.random.default_rng(3)
    one, three = Plateau(window=100, patience=1), Plateau(window=100, patience=3)
    series = [rng.normal(size=400) for _ in range(500)]
    stopped = [(one(run_of(x)), three(run_of(x))) for x in series]
    assert all(b <= a for a, b in stopped) and sum(a for a, _ in stopped) > sum(
        b for _, b in stopped
    )
    for x in series[:50]:
        assert three(run_of(x)) == all(one(run_of(x[:end])) for end in (400, 350, 300))
    assert not three(run_of(np.zeros(299))) and three(run_of(np.zeros(300)))


def test_directions_and_gaps():
    falling = np.linspace(1.0, 0.0, 100) + np.tile([0.0, 1e-3], 50)
    assert Plateau(window=20)(run_of(falling)) and not Plateau(window=20)(run_of(falling, False))
    assert not Plateau(window=20, maximize=False)(run_of(falling))
    gaps = np.repeat(falling, 2)
    gaps[1::2] = np.nan  # a schedule measures it at every other step
    assert not Plateau(window=50)(run_of(gaps[:199], False))
    assert Plateau(window=20)(run_of(gaps)) and not Plateau(window=20)(run_of(gaps, False))


def test_early_stopping_waits_for_the_best():
    rule = EarlyStopping(window=2, patience=3, min_delta=0.5)
    means = [0.0, 1.0, 2.0, 1.0, 2.4, 2.5]  # none of the last three beats 2 by more than 0.5
    values = np.repeat(means, 2)
    assert rule(run_of(values)) and not rule(run_of(values[:10]))
    assert not rule(run_of(np.repeat([*means[:-1], 2.6], 2)))
    assert rule(run_of(-values, maximize=False)) and not rule(run_of(values[:6]))


def test_a_fit_stops_at_its_plateau():
    """SGD has a time constant of 50 steps: by 300 steps it has settled."""
    result = fit(20_000, stop=Plateau(window=200))
    assert 400 <= result.steps < 5000 and result.steps % 100 == 0 and "Plateau" in result.stopped
    assert abs(result.params["m"] - 3.0) < 1.0
    np.testing.assert_array_equal(result.history, fit(result.steps).history)


def test_a_minimised_objective_and_several_rules():
    def loss(phi):
        return -objective(phi)

    rules = [Plateau(window=200), EarlyStopping(window=100, patience=200)]
    options = {"stop": rules, "maximize": False, "progress": False}
    result = vx.fit(loss, {"m": 0.0}, optax.sgd(0.01), 20_000, KEY, **options)
    same = fit(20_000, stop=rules)
    np.testing.assert_array_equal(result.history, -same.history)
    assert result.stopped == same.stopped
