"""A model in the place of its measure is named, wherever a measure is asked for something."""

import copy
import pickle

import jax
import pytest

import varax as vx
from varax import dist as d
from varax import objectives as ob

KEY = jax.random.key(0)


@vx.model
def pair(t=0.0):
    z = vx.sample("z", d.Normal(t, 1.0))
    vx.sample("x", d.Normal(z, 1.0))


@vx.model
def guide(t=0.0):
    vx.sample("z", d.Normal(t, 1.0))


DATA = {"x": 1.0}
SAYS = r"This is not a measure\.\n(.|\n)*a model called with its arguments(.|\n)*Model\({0}\)"
OBJECTIVES = {
    "elbo": lambda p, q: ob.elbo(p, q, DATA),
    "analytic elbo": lambda p, q: ob.elbo(p, q, DATA, analytic_kl=True),
    "iwelbo": lambda p, q: ob.iwelbo(p, q, DATA, 3),
    "cubo": lambda p, q: ob.cubo(p, q, DATA, 3),
    "renyi": lambda p, q: ob.renyi(p, q, DATA, 3, 0.5),
    "wake": lambda p, q: ob.wake_model(p, q, DATA, 3) + ob.wake_guide(p, q, DATA, 3),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("wrong", ["pair", "guide"])
def test_objectives(name, wrong):
    p, q = pair if wrong == "pair" else pair(), guide if wrong == "guide" else guide()
    with pytest.raises(vx.errors.UncalledModelError, match=SAYS.format(wrong)) as caught:
        vx.value_and_grad(lambda t: OBJECTIVES[name](p, q))(KEY, 0.0)
    text = str(caught.value)
    assert f"call the model: {wrong}(...)" in text and "test_model_not_called.py" in text
    assert isinstance(caught.value, vx.errors.CapabilityError)
    vx.value_and_grad(lambda t: OBJECTIVES[name](pair(t), guide(t)))(KEY, 0.0)  # called, it is one


USES = {
    "simulate": lambda m: m.simulate(KEY),
    "log_density": lambda m: m.log_density({"z": 0.0, "x": 0.0}),
    "generate": lambda m: m.generate(KEY, DATA),
    "condition": lambda m: m.condition(DATA),
    "do": lambda m: m.do(DATA),
    "detach": lambda m: m.detach(),
    "addresses": lambda m: m.addresses,
    "capabilities": lambda m: m.capabilities,
}


@pytest.mark.parametrize("name", USES)
def test_methods(name):
    with pytest.raises(vx.errors.UncalledModelError, match=SAYS.format("pair")) as caught:
        USES[name](pair)
    assert f"`{name}` was asked" in str(caught.value)
    USES[name](pair())


def test_functions_of_measures():
    """With the error of the function that was called."""
    for use in (
        lambda: vx.sample("m", pair),
        lambda: vx.marginal(pair, "x", vx.importance(2)),
        lambda: vx.check(lambda t: ob.elbo(pair, guide(t), DATA), 0.0),
        lambda: vx.bound(lambda t: ob.elbo(pair, guide(t), DATA), 0.0),
    ):
        with pytest.raises(vx.errors.CapabilityError, match=SAYS.format("pair")):
            use()


def test_a_model_is_still_an_object():
    """What is no name of a measure is missing as usual; copies and methods work."""
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        pair.simulat  # noqa: B018
    assert not hasattr(pair, "simulate") and getattr(pair, "sample", None) is None
    assert pair.__name__ == "pair" and copy.copy(pair)().addresses == {"z": (), "x": ()}
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(vx.model(lambda: None))

    class Holder:
        @vx.model
        def program(self):
            vx.sample("z", d.Normal(0.0, 1.0))

    with pytest.raises(vx.errors.UncalledModelError):
        Holder().program.simulate(KEY)
    assert Holder().program().addresses == {"z": ()}
