# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The first model
#
# Bayesian linear regression on real data: how a disease progressed in 442 diabetes patients (Efron,
# Hastie, Johnstone and Tibshirani 2004; it comes with scikit-learn). The exact posterior is known, so
# every step can be checked.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import varax as vx
from varax import dist as d

data = load_diabetes()
x = (data.data / data.data.std(0))[
    :, [2, 3, 8]
]  # body mass index, blood pressure, lipids: [442, 3]
y = (data.target - data.target.mean()) / data.target.std()  # [442]

# %% [markdown]
# ## A model is a program
#
# `vx.sample(address, distribution)` is a random choice. Calling the model with its arguments gives a
# *measure*, which can be simulated, scored and conditioned. Nothing has run yet.


# %%
@vx.model
def regression(x):
    weights = vx.sample("weights", d.Normal(jnp.zeros(3), 1.0))
    vx.sample("y", d.Normal(x @ weights, 0.7))


prior = regression(x)
prior.addresses

# %% [markdown]
# `simulate` runs it forward. The trace holds every choice, and their joint log density.

# %%
trace = prior.simulate(jax.random.key(0))
trace

# %% [markdown]
# `log_density` scores given choices; the two agree.

# %%
print(prior.log_density(trace.choices), trace.log_density)

# %% [markdown]
# A mistake is answered with what was expected, what came, where, and what to do:

# %%
try:
    prior.log_density({"weight": np.zeros(3), "y": y})
except vx.errors.AddressError as error:
    print(error)

# %% [markdown]
# ## A guide, and an objective
#
# The guide is a program over the unobserved addresses. The objective is a program too: simulate the
# guide, score the model at its choices and the data, subtract. Inside an objective `simulate()` takes no
# key: its draws are random choices of the objective, and `vx.value_and_grad` knows how to differentiate
# the expectation over them.


# %%
@vx.model
def guide(phi):
    cholesky = jnp.tril(phi["tril"], -1) + jnp.diag(jnp.exp(jnp.diag(phi["tril"])))
    vx.sample("weights", d.MultivariateNormal(phi["mean"], scale_tril=cholesky))


def elbo(phi):
    def once(_):
        q = guide(phi).simulate()
        return regression(x).log_density(q.choices | {"y": y}) - q.log_density

    return jax.vmap(once)(jnp.arange(10)).mean()  # ten independent draws: vmap is a plate


phi = {"mean": jnp.zeros(3), "tril": -2.0 * jnp.eye(3)}
value, gradient = jax.jit(vx.value_and_grad(elbo))(jax.random.key(1), phi)
gradient["mean"]

# %% [markdown]
# `vx.fit` is the common loop: any optax optimiser, one compilation, a progress bar.

# %%
schedule = optax.cosine_decay_schedule(0.03, 4000)
result = vx.fit(elbo, phi, optax.adam(schedule), steps=4000, key=jax.random.key(2))
result.plot()
# %% [markdown]
# ## Against the exact posterior
#
# Conjugacy: precision I + X'X / s^2, mean Sigma X'y / s^2.

# %%
covariance = np.linalg.inv(np.eye(3) + x.T @ x / 0.49)
mean = covariance @ x.T @ y / 0.49
phi = result.params
draws = jax.vmap(lambda key: guide(phi).simulate(key)["weights"])(
    jax.random.split(jax.random.key(3), 4000)
)
print("mean  exact", mean.round(3), " guide", phi["mean"].round(3))
print("sd    exact", np.sqrt(np.diag(covariance)).round(4), " guide", draws.std(0).round(4))
assert np.allclose(phi["mean"], mean, atol=0.01)
assert np.allclose(draws.std(0), np.sqrt(np.diag(covariance)), rtol=0.1)

# %%
figure, ax = plt.subplots(figsize=(5, 4))
ax.scatter(*draws[:, :2].T, s=2, alpha=0.3, label="guide")
angle = np.linspace(0, 2 * np.pi, 200)
circle = np.linalg.cholesky(covariance[:2, :2]) @ np.stack([np.cos(angle), np.sin(angle)])
ax.plot(*(mean[:2, None] + 2 * circle), "C1", label="exact, two standard deviations")
ax.set(xlabel="body mass index", ylabel="blood pressure")
ax.legend()
# %% [markdown]
# ## Interventions and counterfactuals
#
# `do` sets an address from outside; `replay` runs the program again with the noise of a trace. What
# would this simulated study have shown, had the weight of blood pressure been zero and all else the same?

# %%
factual = prior.simulate(jax.random.key(4))
without = factual["weights"].at[1].set(0.0)
counterfactual = prior.do({"weights": without}).replay(factual).simulate()
change = counterfactual["y"] - factual["y"]
assert np.allclose(change, -x[:, 1] * factual["weights"][1], atol=1e-5)
