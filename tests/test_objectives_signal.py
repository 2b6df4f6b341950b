"""The signal of gradients in the number of draws (Rainforth et al. 2018): slopes -1/2 and +1/2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_checks import estimates
from linear_gaussian import GUIDE, MODEL, THETA, of

from varax import objectives as ob

DRAWS = (32, 128, 512)


def mean_of(objective):
    def mean(p, q, data, k):
        return jax.vmap(lambda _: objective(p, q, data))(jnp.arange(k)).mean()

    return mean


def miwae(p, q, data, k):
    return ob.miwae(p, q, data, 8, k // 8)


def group(name):
    return lambda p, q, data, k: ob.piwae(p, q, data, 8, k // 8)[name]


@functools.cache
def gradients(objective, k):
    """[n, 5]: value and gradient."""
    (found,) = estimates([of(objective, k)], THETA, draws=max(1_000, 1_000_000 // k))
    return found


def slope(objective, columns, mean=None):
    """Of log(|mean| / sd) in log k; `mean`: another objective with the same expectation."""
    signal = [
        np.abs(gradients(mean or objective, k)[:, columns].mean(0))
        / gradients(objective, k)[:, columns].std(0)
        for k in DRAWS
    ]
    return np.polyfit(np.log(DRAWS), np.log(signal), 1)[0]


sticking, plain, of_guide, of_model = (
    mean_of(ob.sticking_the_landing),
    mean_of(ob.elbo),
    group("guide"),
    group("model"),
)


@pytest.mark.slow
def test_the_signal_of_the_guide_fades():
    np.testing.assert_allclose(slope(ob.iwelbo, GUIDE, mean=ob.dreg), -0.5, atol=0.1)


@pytest.mark.thin(3)
@pytest.mark.parametrize("objective", [plain, sticking, ob.dreg, miwae, of_guide])
def test_the_signal_of_the_guide_is_restored(objective):
    np.testing.assert_allclose(slope(objective, GUIDE), 0.5, atol=0.1)


@pytest.mark.thin(2)
@pytest.mark.parametrize("objective", [ob.iwelbo, miwae, of_model])
def test_the_signal_of_the_model_grows(objective):
    np.testing.assert_allclose(slope(objective, MODEL), 0.5, atol=0.1)
