"""What a VAE training step costs in varax beyond the same step written by hand in JAX.

784-400-20-400-784, softplus, Bernoulli likelihood, Adam, synthetic binary images; one draw a datum,
the objective is log p(x, z) - log q(z), the mean over the batch. Candidates:

    hand        JAX, written for the batch, with the fastest usual formulas of the log-densities
    hand (np)   the same, with NumPyro's formulas for the log-densities
    batched     varax, the batch written as arrays
    vmapped     varax, programs for one example under jax.vmap: the idiom of the README
    numpyro     SVI with Trace_ELBO, one particle

Reported: CPU time a step, and seconds to trace and compile a fresh step with all caches empty.
Aim: at most 1.03 times `hand` a step, at most 1.5 times to trace and compile.

    python benchmarks/vae_overhead.py [--quick] [--save | --out FILE] [--hlo FOLDER]
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as npd
import optax
from _report import Report, Runs, built, interleaved, spread
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

import varax as vx
from varax import dist as d

PIXELS, HIDDEN, LATENT = 784, 400, 20
ADAM = optax.adam(1e-3)
softplus = jax.nn.softplus


def init(key):
    shapes = {
        "encode": (PIXELS, HIDDEN), "mean": (HIDDEN, LATENT), "scale": (HIDDEN, LATENT),
        "decode": (LATENT, HIDDEN), "pixels": (HIDDEN, PIXELS),
    }  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    return {
        name: (jax.random.normal(k, s) / math.sqrt(s[0]), jnp.zeros(s[1]))
        for k, (name, s) in zip(keys, shapes.items(), strict=True)
    }


def affine(layer, x):
    return x @ layer[0] + layer[1]


def encode(params, x):
    h = softplus(affine(params["encode"], x))
    return affine(params["mean"], h), softplus(affine(params["scale"], h))


def decode(params, z):
    return affine(params["pixels"], softplus(affine(params["decode"], z)))


# ---- by hand


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


def bernoulli(x, logits):  # 3 % faster than with softplus, 9 % faster than with log_sigmoid
    return x * logits - jnp.maximum(logits, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


def hand_loss(normal, bernoulli):
    def loss(params, key, x):
        loc, scale = encode(params, x)
        z = loc + scale * jax.random.normal(key, loc.shape)
        log_p = normal(z, 0.0, 1.0).sum() + bernoulli(x, decode(params, z)).sum()
        return (normal(z, loc, scale).sum() - log_p) / len(x)

    return jax.value_and_grad(loss)


def numpyro_formulas():
    return (
        lambda x, loc, scale: npd.Normal(loc, scale).log_prob(x),
        lambda x, logits: npd.Bernoulli(logits=logits).log_prob(x),
    )


# ---- varax, the batch as arrays


@vx.model
def images(params, n):
    z = vx.sample("z", d.Normal(jnp.zeros((n, LATENT)), 1.0))
    vx.sample("x", d.Bernoulli(logits=decode(params, z)))


@vx.model
def codes(params, x):
    vx.sample("z", d.Normal(*encode(params, x)))


def batched(params, x):
    return -vx.objectives.elbo(images(params, len(x)), codes(params, x), {"x": x}) / len(x)


# ---- varax, one example under vmap


@vx.model
def image(params):
    z = vx.sample("z", d.Normal(jnp.zeros(LATENT), 1.0))
    vx.sample("x", d.Bernoulli(logits=decode(params, z)))


def vmapped(params, xs):
    def elbo(params, x):
        return vx.objectives.elbo(image(params), codes(params, x), {"x": x})

    return -jax.vmap(elbo, (None, 0))(params, xs).mean()


def varax_loss(objective):
    value_and_grad = vx.value_and_grad(objective)
    return lambda params, key, x: value_and_grad(key, params, x)


# ---- one step


def stepper(loss):
    """A new jitted step, so that nothing is known of it: `(state, x) -> (state, value)`."""

    def step(state, x):
        params, adam, key = state
        key, now = jax.random.split(key)
        value, grads = loss(params, now, x)
        updates, adam = ADAM.update(grads, adam, params)
        return (optax.apply_updates(params, updates), adam, key), value

    return jax.jit(step, donate_argnums=0)


def svi(params, x, key):
    """NumPyro's SVI and its first state, with the same initial parameters."""

    def model(x):
        p = numpyro.param("params", params)
        with numpyro.handlers.scale(scale=1 / len(x)):  # the mean over the batch
            z = numpyro.sample("z", npd.Normal(jnp.zeros((len(x), LATENT)), 1.0).to_event(2))
            numpyro.sample("x", npd.Bernoulli(logits=decode(p, z)).to_event(2), obs=x)

    def guide(x):
        p = numpyro.param("params", params)
        with numpyro.handlers.scale(scale=1 / len(x)):
            numpyro.sample("z", npd.Normal(*encode(p, x)).to_event(2))

    one = SVI(model, guide, optax_to_numpyro(ADAM), Trace_ELBO())
    return one, one.init(key, x)


def fresh(params, x, key):
    """Makers of a new step, by name."""
    return {
        "hand": lambda: stepper(hand_loss(normal, bernoulli)),
        "hand (np)": lambda: stepper(hand_loss(*numpyro_formulas())),
        "batched": lambda: stepper(varax_loss(lambda p, x: batched(p, x))),
        "vmapped": lambda: stepper(varax_loss(lambda p, x: vmapped(p, x))),
        "numpyro": lambda: jax.jit(svi(params, x, key)[0].update, donate_argnums=0),
    }


def states(params, x, key):
    """A state of its own for each candidate: steps donate theirs."""

    def copy(tree):
        return jax.tree.map(jnp.array, tree)

    own = {name: copy((params, ADAM.init(params), key)) for name in fresh(params, x, key)}
    own["numpyro"] = copy(svi(params, x, key)[1])
    return own


def check(params, x, key):
    """All candidates estimate one function: values and gradients agree in the mean over keys."""
    losses = {"hand": hand_loss(normal, bernoulli), "hand (np)": hand_loss(*numpyro_formulas())}
    losses |= {"batched": varax_loss(batched), "vmapped": varax_loss(vmapped)}

    def draws(loss):
        def one(k):
            value, grads = loss(params, k, x)
            biases = [grads[layer][1] for layer in sorted(grads)]
            return jnp.concatenate([value[None], *biases])

        return jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, 64))

    found = {name: draws(loss) for name, loss in losses.items()}
    mean, sd = found["hand"].mean(0), found["hand"].std(0) / 8
    for name, other in found.items():
        assert (abs(other.mean(0) - mean) < 10 * sd + 1e-5).all(), name


def measure(report, size, rounds, compiles, hlo):
    params, key = init(jax.random.key(0)), jax.random.key(1)
    x = jax.random.bernoulli(jax.random.key(2), 0.3, (size, PIXELS)).astype(float)
    check(params, x, key)
    own, makers = states(params, x, key), fresh(params, x, key)
    args = {name: (own[name], x) for name in makers}
    times = built(makers, args, compiles)
    steps = {name: make().lower(*args[name]).compile() for name, make in makers.items()}
    for name, compiled in steps.items():
        if hlo is not None:
            hlo.mkdir(parents=True, exist_ok=True)
            (hlo / f"{name}-{size}.txt").write_text(compiled.as_text())

    def candidate(name):
        def call():
            own[name], value = steps[name](own[name], x)
            return value

        return call

    calls = max(1, 1024 // size)
    runs = interleaved({name: candidate(name) for name in steps}, rounds, calls)
    report.say(f"\nbatch {size}: {rounds} rounds of {calls} steps, {compiles} compilations")
    report.table(
        ("", "CPU ms a step", "wall ms", "CPU / hand: medians, by round"),
        [
            (n, spread(r.cpu, 1e3), f"{statistics.median(r.wall) * 1e3:.4g}", r.ratio(runs["hand"]))
            for n, r in runs.items()
        ],
    )

    def seconds(r: Runs):
        return f"{spread(r.cpu)} / {statistics.median(r.wall):.3g}"

    report.table(
        ("", "trace+lower s, CPU / wall", "compile s, CPU / wall", "CPU of both / hand"),
        [
            (n, seconds(t.trace), seconds(t.compile), t.both.ratio(times["hand"].both))
            for n, t in times.items()
        ],
    )


def main():
    report = Report("vae_overhead", __doc__, ("--hlo", {"type": Path, "help": "write HLO here"}))
    for size in (64,) if report.quick else (64, 256, 1024):
        rounds, compiles = (10, 2) if report.quick else (30, 3)
        measure(report, size, rounds, compiles, report.options.hlo)
    report.close()


if __name__ == "__main__":
    main()
