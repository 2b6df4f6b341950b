"""Batches: from arrays by a permutation, from iterators ahead of the device; what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import varax as vx
from varax import errors

KEY = jax.random.key(0)


def total(p, batch):
    return batch["x"].sum() + 0.0 * p


def fit(data, steps, objective=total, **options):
    start = jnp.zeros(())
    return vx.fit(
        objective, start, optax.sgd(0.1), steps, KEY, data=data, progress=False, **options
    )


def numbered(n=None, size=2):
    """Batches {"x": [i, i]}."""
    return (
        {"x": np.full(size, i, np.float32)} for i in (itertools.count() if n is None else range(n))
    )


class Loader:
    """An iterable that begins anew, as loaders of batches are."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return numbered(self.n)


class Stateful:
    """An iterator that says where it is."""

    def __init__(self):
        self.i, self.calls = 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        self.calls += 1
        return {"x": np.full(2, self.i, np.float32)}

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, state):
        self.i = state["i"]


# ---- in order, once each


def test_a_batch_a_step_in_the_iterators_order():
    """However the fit is cut into calls."""
    expected = 2.0 * np.arange(700)
    np.testing.assert_array_equal(fit(numbered(), 700).history, expected)
    cut = fit(numbered(), 700, callbacks=[lambda run: None], every=9)
    np.testing.assert_array_equal(cut.history, expected)


def test_no_more_batches_are_taken_than_there_are_steps():
    source = Stateful()
    fit(source, 37)
    assert source.calls == 37


@pytest.mark.parametrize("source", [Loader(5), lambda: numbered(5)], ids=["iterable", "function"])
def test_what_can_begin_anew_does(source):
    np.testing.assert_array_equal(fit(source, 12).history, 2.0 * (np.arange(12) % 5))


def test_an_iterator_that_ends_ends_the_fit():
    with pytest.warns(errors.DataExhaustedWarning, match="the data ended after 5 of 12 steps"):
        result = fit(numbered(5), 12)
    np.testing.assert_array_equal(result.history, 2.0 * np.arange(5))
    assert result.stopped == "the data ended after 5 of 12 steps" and not result.interrupted
    assert fit(numbered(5), 5).stopped is None


def test_integers_and_doubles_arrive_as_jax_has_them():
    batches = ({"x": np.arange(3), "y": np.ones(3)} for _ in range(4))
    seen = []

    def objective(p, batch):
        seen.append((batch["x"].dtype, batch["y"].dtype))
        return batch["x"] @ batch["y"] + 0.0 * p

    np.testing.assert_array_equal(fit(batches, 4, objective).history, 3.0)
    assert set(seen) == {(jnp.arange(3).dtype, jnp.ones(3).dtype)}


def test_one_program_for_all_calls():
    traced = []

    def objective(p, batch):
        traced.append(1)
        return total(p, batch)

    fit(numbered(), 600, objective)
    assert len(traced) == 2  # for the shape of the objective, and for the loop


# ---- resumed


def resumed(make, tmp_path, steps=60):
    fit(make(), 25, checkpoint=tmp_path)
    return fit(make(), steps, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "make",
    [numbered, lambda: Loader(7), lambda: lambda: numbered(7)],
    ids="iterator loader function".split(),
)
def test_a_resumed_fit_passes_over_the_batches_already_used(make, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    np.testing.assert_array_equal(resumed(make, tmp_path).history, fit(make(), 60).history)


def test_a_source_that_knows_its_place_is_put_there(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    sources = []

    def make():
        sources.append(Stateful())
        return sources[-1]

    np.testing.assert_array_equal(resumed(make, tmp_path).history, 2.0 * np.arange(1, 61))
    assert sources[1].calls == 1 + 35  # the first, for its form, and those that are left


def test_a_source_at_its_end_stays_there(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    with pytest.warns(errors.DataExhaustedWarning):
        fit(numbered(25), 60, checkpoint=tmp_path)
    with pytest.warns(errors.DataExhaustedWarning, match="after 25 of 60"):
        again = fit(numbered(25), 60, checkpoint=tmp_path)
    assert again.steps == 25


# ---- what is refused


def test_a_batch_of_another_form_is_named():
    ragged = ({"x": np.ones(3 if i < 20 else 2)} for i in range(30))
    says = r"(?s)differ in their form.*\['x'\]: float\d+\[3\].*float\d+\[2\] in batch 20.*drop_last"
    with pytest.raises(errors.ShapeError, match=says) as caught:
        fit(ragged, 30)
    assert caught.value.result.steps == 20  # what was done
    other = itertools.chain(numbered(2), [{"y": np.ones(2)}])
    with pytest.raises(errors.ShapeError, match=r"(?s)\['x'\].*None in batch 2"):
        fit(other, 3)


def test_an_exception_of_the_iterator_comes_after_the_steps_before_it():
    def broken():
        yield from numbered(20)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone") as caught:
        fit(broken(), 100)
    assert caught.value.result.steps == 20


def test_iterators_that_give_nothing():
    with pytest.raises(errors.DataError, match=r"(?s)gives none.*generator function begins anew"):
        fit(iter([]), 5)
    with pytest.raises(errors.DataError, match="gives none"):
        fit(Loader(0), 5)
    with pytest.raises(errors.DataError, match=r"(?s)has no arrays.*\{\}"):
        fit(iter([{}]), 5)
    with pytest.raises(errors.StepError, match=r"(?s)batches of its own.*batch_size=3"):
        fit(numbered(), 5, batch_size=3)


def test_missing_values_are_counted_and_placed():
    x = np.ones((4, 3))
    x[2, 1] = x[3, 0] = np.nan
    says = r"(?s)missing in x of the data.*2 of 12, the first at index \[2, 1\].*allow_nan=True"
    with pytest.raises(errors.DataError, match=says):
        fit({"x": x}, 5)
    with pytest.raises(errors.DataError, match="missing in the data"):
        fit(jnp.asarray(x), 5)

    def batches():
        yield {"x": np.ones(3)}
        yield {"x": np.array([0.0, np.nan, 0.0])}

    with pytest.raises(
        errors.DataError, match=r"(?s)x of batch 1.*1 of 3, the first at index \[1\]"
    ):
        fit(batches(), 5)

    def masked(p, batch):
        known = ~jnp.isnan(batch["x"])
        return jnp.where(known, batch["x"], 0.0).sum() + 0.0 * p

    np.testing.assert_array_equal(fit({"x": x}, 2, masked, allow_nan=True).history, 10.0)
    result = fit(lambda: batches(), 4, masked, allow_nan=True)
    np.testing.assert_array_equal(result.history, [3.0, 0.0, 3.0, 0.0])


@pytest.mark.parametrize("data", [np.zeros((0, 3)), [], {"x": np.zeros(0)}])
def test_no_data_points(data):
    with pytest.raises(
        errors.DataError, match=r"(?s)no data points.*at least one.*got: *(x: sh|data: sh|\[\])"
    ):
        fit(data, 5)


def test_what_is_no_number():
    with pytest.raises(errors.DataError, match=r"(?s)cannot use name of the data.*dtype <U3.*code"):
        fit({"x": np.ones(2), "name": np.array(["abc", "de"])}, 5)
    with pytest.raises(errors.DataError, match="dtype object"):
        fit(np.array([None, 1.0]), 5)


def test_leading_axes_and_batch_sizes():
    with pytest.raises(errors.ShapeError, match=r"(?s)leading axis.*\[0, 2\].*n: shape \(\)"):
        fit({"x": np.ones(2), "n": 3}, 5)
    for size, says in ((3, "1 to 2"), (0, "1 to 2"), (-1, "1 to 2"), (1.5, "1 to 2")):
        with pytest.raises(errors.ShapeError, match=rf"(?s)batch size does not fit.*{says}"):
            fit({"x": np.ones(2)}, 5, batch_size=size)
    with pytest.raises(errors.ShapeError, match=r"(?s)batch size.*there are no data"):
        vx.fit(lambda p: p, 0.0, optax.sgd(0.1), 5, KEY, batch_size=3)


@pytest.mark.parametrize("steps", [0, -3, 2.5, 10.0, True, "ten"])
def test_steps_are_a_positive_integer(steps):
    fix = "fix: *steps=10" if steps == 10.0 and steps is not True else ""
    with pytest.raises(errors.StepError, match=rf"(?s)`steps` is not a number.*1 or more.*{fix}"):
        fit({"x": np.ones(2)}, steps)
