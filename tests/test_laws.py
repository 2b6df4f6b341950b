"""The laws of seed, simulate, log_density, generate, condition and do, over a family of programs.

Every program stands under its density: per address (or observation, or factor) the sum of SciPy's
log probabilities at the choices `c`, written in NumPy and without varax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special, stats

import varax as vx
from varax import dist as d
from varax import sample

CASES = {}
COV = np.array([[2.0, 0.5], [0.5, 1.0]])
YS = np.array([0.5, -1.0, 2.0])
YES = np.array([True, False, True])


def case(exact):
    def register(f):
        CASES[f.__name__] = (vx.model(f), exact)
        return f

    return register


def normal(x, m, s=1.0, where=True):
    return (stats.norm.logpdf(x, m, s) * where).sum()


def flip(b, p=0.5):
    return stats.bernoulli.logpmf(b, p).sum()


def before(z, first):
    """Each entry's predecessor along the first axis."""
    return np.concatenate([np.broadcast_to(first, z[:1].shape), z[:-1]])


def pair(u, a):
    return {"x": normal(u["x"], a, 2), "y": normal(u["y"], u["x"], 0.5)}


def under(name, densities):
    return {f"{name}/{k}": v for k, v in densities.items()}


# ---- one construct at a time


@case(pair)
def plain(a):
    x = sample("x", d.Normal(a, 2.0))
    return sample("y", d.Normal(x, 0.5))


@case(
    lambda c, a: {
        "b": flip(c["b"], 0.3),
        "n": stats.poisson.logpmf(c["n"], np.exp(a + c["b"])),
        "g": stats.gamma.logpdf(c["g"], 2.0 + c["n"]),
        "k": np.log([0.2, 0.3, 0.5])[c["k"]],
    }
)
def discrete(a):
    b = sample("b", d.Bernoulli(0.3))
    n = sample("n", d.Poisson(jnp.exp(a + b)))
    sample("k", d.Categorical(jnp.array([0.2, 0.3, 0.5])))
    return sample("g", d.Gamma(2.0 + n, 1.0))


@case(
    lambda c, a: {
        "v": normal(c["v"], a, np.arange(1, 4)),
        "e": normal(c["e"], c["v"] * np.ones((2, 1))),
        "m": stats.multivariate_normal.logpdf(c["m"], [a, 0], COV),
        "p": special.gammaln(6) - np.log(2) + np.log(c["p"]) @ [0, 1, 2],
    }
)
def vectors(a):
    v = sample("v", d.Normal(a, jnp.arange(1.0, 4.0)))
    sample("m", d.MultivariateNormal(jnp.stack([a, 0.0 * a]), jnp.asarray(COV, a.dtype)))
    sample("p", d.Dirichlet(jnp.arange(1.0, 4.0)))
    return sample("e", d.Normal(v, 1.0).expand((2, 3)).to_event(1))


@case(lambda c, a: under("u", pair(c["u"], a)) | under("w/i", pair(c["w"]["i"], c["u"]["y"])))
def nested(a):
    u = sample("u", vx.model(plain)(a))
    return sample("w", vx.model(lambda: sample("i", vx.model(plain)(u)))())


@case(pair)
def in_jit(a):
    return jax.jit(lambda a: jax.jit(plain)(a) + 1)(a)


@case(pair)
def in_checkpoint(a):
    return jnp.sin(jax.checkpoint(plain)(a))


@case(lambda c, a: pair(c, a + np.arange(3)))
def in_vmap(a):
    return jax.vmap(plain)(a + jnp.arange(3))


@case(
    lambda c, a: {
        "z": normal(c["z"], before(c["z"], a)),
        "r": normal(c["r"][::-1], before(c["r"][::-1], c["z"][-1])),
    }
)
def in_scan(a):
    z, _ = lax.scan(lambda z, _: (sample("z", d.Normal(z, 1.0)), None), a, None, length=4)
    step = lambda z, s: (sample("r", d.Normal(z, s)), None)  # noqa: E731
    return lax.scan(step, z, jnp.ones(3), reverse=True)[0]


@case(lambda c, a: {"z": normal(c["z"], before(c["z"], a), np.arange(1, 4))})
def in_fori_loop(a):
    return lax.fori_loop(0, 3, lambda i, z: sample("z", d.Normal(z, i + 1.0)), a)


@case(
    lambda c, a: {
        "b": flip(c["b"]),
        "x": normal(c["x"], [0, a][c["b"]]),
        "g": stats.expon.logpdf(c["g"]) if c["b"] else 0.0,
    }
)
def in_cond(a):
    def yes(a):
        return sample("x", d.Normal(a, 1.0)) + sample("g", d.Exponential(1.0))

    b = sample("b", d.Bernoulli(0.5))
    return lax.cond(b == 1, yes, lambda a: sample("x", d.Normal(0.0 * a, 1.0)), a)


@case(
    lambda c, a: {
        "k": -np.log(3),
        "x": normal(c["x"], a * c["k"]) if c["k"] else 0.0,
        "s/x": pair(c["s"], a)["x"] if c["k"] == 0 else 0.0,
        "s/y": pair(c["s"], a)["y"] if c["k"] == 0 else 0.0,
    }
)
def in_switch(a):
    k = sample("k", d.Categorical(jnp.ones(3) / 3))
    one = lambda: sample("x", d.Normal(a, 1.0))  # noqa: E731
    two = lambda: jax.jit(lambda m: sample("x", d.Normal(m, 1.0)))(2 * a)  # noqa: E731
    return lax.switch(k, [lambda: sample("s", vx.model(plain)(a)), one, two])


@case(
    lambda c, a: {
        "b": flip(c["b"]),
        "v": normal(c["v"], a, where=YES),
        "w": stats.gamma.logpdf(c["w"], 3.0) if c["b"] else 0.0,
        **under("u", {k: c["b"] * v for k, v in pair(c["u"], a).items()}),
    }
)
def in_mask(a):
    b = sample("b", d.Bernoulli(0.5)) == 1
    sample("w", vx.masked(d.Gamma(3.0), b))
    sample("u", vx.masked(vx.model(plain)(a), b))
    return sample("v", vx.masked(d.Normal(a, 1.0).expand((3,)), YES))


@case(
    lambda c, a: {
        "x": a * normal(c["x"], [1, 2]),
        "m": 3 * normal(c["m"], a, where=YES),
        **under("u", {k: 0.25 * v for k, v in pair(c["u"], a).items()}),
    }
)
def in_scale(a):
    sample("u", vx.scaled(vx.scaled(vx.model(plain)(a), 0.5), 0.5))
    sample("m", vx.scaled(vx.masked(d.Normal(a, jnp.ones(3)), YES), 3.0))
    return sample("x", vx.scaled(d.Normal(jnp.array([1.0, 2.0]), 1.0), a))


@case(
    lambda c, a: {
        "x": normal(c["x"], a, 2),
        "observed": normal(YS, c["x"]) + 3 * flip(1, 0.3) + normal(YS, c["x"], 3.0),
        "u/x": normal(c["u"]["x"], c["x"], 2),
        "u observed": normal(1.5, c["u"]["x"], 0.5),
        "factors": -(c["x"] ** 2) + 3 * a - YS.sum() - 6,
    }
)
def weighed(a):
    def lane(y):
        sample("y", d.Normal(x, 1.0), obs=y)
        sample("shared", d.Bernoulli(0.3), obs=1)
        vx.factor("mapped", -y)
        vx.factor("one for every lane", a)

    def step(_, y):
        sample("z", d.Normal(x, 3.0), obs=y)
        vx.factor("of a step", -2.0)
        return None, None

    x = sample("x", d.Normal(a, 2.0))
    vx.factor("f", -(x**2))
    sample("u", vx.model(plain)(x), obs={"y": 1.5})
    jax.vmap(lane)(jnp.asarray(YS, a.dtype))
    lax.scan(step, None, jnp.asarray(YS, a.dtype))


# ---- in each other


@case(lambda c, a: {"z": normal(c["z"], before(c["z"], [a, 0]))})
def vmap_in_scan(a):
    step = lambda z, _: (jax.vmap(lambda z: sample("z", d.Normal(z, 1.0)))(z), None)  # noqa: E731
    return lax.scan(step, jnp.stack([a, 0 * a]), None, length=3)[0]


@case(lambda c, a: {"z": normal(c["z"], np.sin(before(c["z"], [a, 0])))})
def checkpoint_in_scan_in_vmap(a):
    again = jax.checkpoint(lambda z: sample("z", d.Normal(jnp.sin(z), 1.0)))
    chain = lambda z: lax.scan(lambda z, _: (again(z), None), z, None, length=3)[0]  # noqa: E731
    return jax.vmap(chain)(jnp.stack([a, 0 * a]))


def walk(c, a):
    up, a = 0.0, np.array([a, 0])[: c["b"].ndim]
    for b, x in zip(c["b"], c["up"], strict=True):
        up, a = up + normal(x, a, where=b), np.where(b, x, a)
    return {"b": flip(c["b"]), "up": up}


def maybe_up(z, _):
    b = sample("b", d.Bernoulli(0.5)) == 1
    go = jax.jit(lambda z: sample("up", d.Normal(z, 1.0)))
    return lax.cond(b, go, lambda z: z, z), None


@case(walk)
def jit_in_cond_in_scan(a):
    return lax.scan(maybe_up, a, None, length=4)[0]


@case(walk)
def cond_in_vmap_in_scan(a):
    step = lambda z, _: (jax.vmap(maybe_up, (0, None))(z, 0)[0], None)  # noqa: E731
    return lax.scan(step, jnp.stack([a, 0 * a]), None, length=3)[0]


@case(walk)
def cond_in_scan_in_vmap(a):
    chain = lambda z: lax.scan(maybe_up, z, None, length=3)[0]  # noqa: E731
    return jax.vmap(chain)(jnp.stack([a, 0 * a]))


@case(
    lambda c, a: {
        "b": flip(c["b"]),
        **under("u", {k: c["b"] * v for k, v in pair(c["u"], [a, 0]).items()}),
        "z": (1 - c["b"]) * normal(c["z"], before(c["z"], a)),
        "factor": 2 * c["b"] + 3 * (1 - c["b"]),
    }
)
def vmap_and_scan_in_cond(a):
    def lane(m):
        vx.factor("two", 1.0)
        return sample("u", vx.model(plain)(m))

    def step(z, _):
        vx.factor("three", 1.0)
        return sample("z", d.Normal(z, 1.0)), None

    b = sample("b", d.Bernoulli(0.5))
    yes = lambda: jax.vmap(lane)(jnp.stack([a, 0 * a])).sum()  # noqa: E731
    return lax.cond(b == 1, yes, lambda: lax.scan(step, a, None, length=3)[0])


# ---- the laws
QUICK = __import__("functools").partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def flat(choices):
    """Choices by address, `outer/inner`."""
    leaves = jax.tree_util.tree_flatten_with_path(choices)[0]
    return {"/".join(k.key for k in path): x for path, x in leaves}


def nest(by_address):
    nested = {}
    for address, x in by_address.items():
        *outer, last = address.split("/")
        at = nested
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = x
    return nested


def split(choices):
    """Every other choice, and the rest."""
    by_address = flat(choices)
    given = list(by_address)[::2]
    return (
        nest({k: v for k, v in by_address.items() if k in given}),
        nest({k: v for k, v in by_address.items() if k not in given}),
    )


def draw(measure, key):
    if vx.Capability.SAMPLEABLE in measure.capabilities:
        return measure.simulate(key)
    return measure.generate(key, {})[0]


@pytest.mark.parametrize("name", CASES)
def test_densities_agree_with_scipy(name, x64):
    """Of a draw, and with half of the choices given, conditioned on or set."""
    model, exact = CASES[name]

    @QUICK
    @jax.vmap
    def run(key, a):
        m = model(a)
        trace = draw(m, key)
        given, rest = split(trace.choices)
        generated, weight = m.generate(key, given)
        return (
            trace.choices,
            generated.choices,
            {
                "simulate": trace.log_density,
                "log_density": m.log_density(trace.choices),
                "condition": m.condition(given).log_density(rest),
                "do": m.do(given).log_density(rest),
                "generate": generated.log_density,
                "weight": weight,
                "grad": jax.grad(lambda a: model(a).log_density(trace.choices))(a),
            },
        )

    keys, a = jax.random.split(jax.random.key(1), 4), jnp.linspace(0.3, 1.2, 4)
    choices, generated, got = run(keys, a)
    assert {x.dtype for x in flat(choices).values()} <= {
        a.dtype,
        jnp.dtype("int32"),
        jnp.dtype("int64"),
    }
    for i in range(4):
        c, g, ai = (jax.tree.map(lambda x: np.asarray(x[i]), t) for t in (choices, generated, a))
        given = flat(split(c)[0])
        terms, total = exact(c, ai), lambda c, a: sum(exact(c, a).values())
        expected = {
            "simulate": total(c, ai),
            "log_density": total(c, ai),
            "condition": total(c, ai),
            "do": sum(v for k, v in terms.items() if k not in given),
            "generate": total(g, ai),
            "weight": sum(v for k, v in exact(g, ai).items() if k in given or k not in flat(c)),
            "grad": (total(c, ai + 1e-5) - total(c, ai - 1e-5)) / 2e-5,
        }
        if not x64:
            del expected["grad"]
        for what, value in expected.items():
            np.testing.assert_allclose(
                got[what][i], value, rtol=1e-5, atol=1e-6 if x64 else 1e-4, err_msg=what
            )
