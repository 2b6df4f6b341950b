"""Random programs, without noise: a mean over every outcome is a sum."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from credit_programs import THETA, Given, array, coin
from gradient_checks import QUICKLY
from jax import lax
from random_functions import composition

import varax as vx
from varax import estimators as est

# ---- random programs, without noise: a mean over every outcome is a sum


@dataclasses.dataclass(frozen=True)
class Chosen(Given):
    """`Given` with values that are cast to the law's."""

    def draw(self, key, law):
        values = jnp.asarray(self.values).astype(law.site.value.dtype)
        return dataclasses.replace(Given(self.baseline, values)).draw(key, law)


def tame(x):
    """Finite and smooth, so that derivatives exist."""
    return jnp.tanh(0.7 * jnp.nan_to_num(x, nan=0.3, posinf=1.0, neginf=-1.0))


def random_program(seed):
    """Two plates, the second depending on the first, perhaps a chain, and two or three terms."""
    rng = np.random.default_rng(seed)
    n, m = (2, int(rng.integers(1, 4))) if rng.random() < 0.5 else (3, int(rng.integers(1, 3)))
    weights = rng.normal(size=(3, 4))
    to_y = composition(rng, [(n,)], int(rng.integers(1, 3)), tame)
    same = jax.eval_shape(to_y, jax.ShapeDtypeStruct((n,), float))[-1].shape == (n,)
    vmapped, chained = rng.random() < 0.5, rng.random() < 0.5
    m = n if same else m
    shapes = [(n,), (m,), (2,)][: 2 + chained]
    terms = []
    for _ in range(int(rng.integers(2, 4))):
        order = [int(k) for k in rng.permutation(len(shapes))]
        function = composition(rng, [shapes[k] for k in order], int(rng.integers(2, 5)), tame)
        terms.append((function, order, bool(rng.random() < 0.5)))

    def program(draw, t):
        u = array(t, weights)
        z = draw.lanes("z", t[0] * u[0, :n], vmapped)
        last = to_y(z)[-1]
        logits = 2 * t[1] * last if same else t[1] * u[1, :m] + last.sum()
        xs = [z + t[0] / 3, draw.lanes("y", logits, vmapped)]
        if chained:
            xs.append(draw.chain("x", xs[1][0], t[0] * u[2, :2], t[1]))
        total = jnp.zeros((), t.dtype)
        for function, order, mean in terms:
            for cost in function(*(xs[k] for k in order)):
                total = total + (t[1] * cost.mean() if mean else jnp.sin(cost).sum())
        return total

    return program


@dataclasses.dataclass(frozen=True)
class Draws:
    """How a random program draws; `of(address, index)` gives an estimator."""

    of: object = staticmethod(lambda address, index: None)

    def one(self, address, logit, index):
        return coin(address, logit, self.of(address, index))

    def lanes(self, address, logits, vmapped):
        if not vmapped:
            return self.one(address, logits, ...)
        lane = functools.partial(self.one, address)
        return jax.vmap(lane)(logits, jnp.arange(len(logits)))

    def chain(self, address, start, logits, slope):
        def step(x, row):
            x = slope * x + self.one(address, row[0], row[1])
            return x, jnp.sin(x)

        return lax.scan(step, start, (logits, jnp.arange(len(logits))))[1]


def every_outcome(program, t):
    """Of each outcome: its probability; its value; the choices, by address."""
    model = vx.model(lambda: program(Draws(), t))
    shapes = jax.eval_shape(lambda: model().simulate(jax.random.key(0)).choices)
    sizes = [int(np.prod(x.shape)) for x in shapes.values()]
    every = np.array(list(itertools.product([0, 1], repeat=sum(sizes))))
    parts = zip(shapes.items(), np.split(every, np.cumsum(sizes)[:-1], axis=1), strict=True)
    choices = {a: jnp.asarray(x.reshape(-1, *like.shape), like.dtype) for (a, like), x in parts}

    def one(choices):
        trace, log_density = model().generate(jax.random.key(0), choices)
        return jnp.exp(log_density), trace.value

    return *jax.vmap(one)(choices), choices


def derivative_at_every_outcome(program, t, choices, baseline, exactly):
    """Estimates of value and gradient, each with one outcome (or several runs) as its draws."""

    def one(choices):
        def of(address, index):
            if address in exactly:
                return est.Enumerate()
            return Chosen(baseline, choices[address][index])

        return vx.value_and_grad(lambda t: program(Draws(of), t))(jax.random.key(0), t)

    return jax.vmap(one)(choices)


def check_random_program(seed, exactly=("", "x", "yx", "zyx"), baselines=(None, 0.7)):
    """Enumerated are the last choices: their laws are those that the given ones lead to."""
    program, t = random_program(seed), jnp.array(THETA)

    def run(t):
        def mean(t):
            p, values, _ = every_outcome(program, t)
            return p @ values

        exact = jax.value_and_grad(mean)(t)
        p, _, choices = every_outcome(program, t)
        one = {a: x[..., None] for a, x in choices.items()}
        i, j = np.divmod(np.arange(len(p) ** 2), len(p))
        two = {a: jnp.stack([x[i], x[j]], -1) for a, x in choices.items()}
        found = []
        for addresses in exactly:
            for b in baselines:
                values, slopes = derivative_at_every_outcome(program, t, one, b, addresses)
                found.append((p @ values, p @ slopes))
            if len(p) <= 32:
                b = est.LeaveOneOut(2)
                values, slopes = derivative_at_every_outcome(program, t, two, b, addresses)
                found.append(((p[i] * p[j]) @ values, (p[i] * p[j]) @ slopes))
        return exact, found

    exact, found = jax.jit(run, compiler_options=QUICKLY)(t)
    for at, one in enumerate(found):
        for x, y in zip(one, exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10, err_msg=f"{seed}: {at}")


SEEDS = [0, 1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4, 5))]


@pytest.mark.thin(2)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed):
    with jax.enable_x64(True):
        check_random_program(seed)
