"""What the soundness check costs: a part of tracing, nothing afterwards.

For a chain of n normal choices in a Python loop (its ELBO with a mean-field guide), for n choices
with a branch of the user's at each, and for the ELBO of a variational autoencoder: CPU seconds of
the check, of tracing `vx.value_and_grad` as a whole, and their ratio. Aim: below 20 %.

    python benchmarks/soundness_overhead.py [--quick] [--save | --out FILE]
"""

from __future__ import annotations

import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from _report import Report, spread

import varax as vx
from varax import dist as d
from varax.transforms import soundness
from varax.transforms.staging import stage

KEY = jax.random.key(0)


def chain(n):
    @vx.model
    def model():
        z = 0.0
        for i in range(n):
            z = vx.sample(f"z{i}", d.Normal(0.9 * z, 1.0))
        vx.sample("x", d.Normal(z, 1.0))

    @vx.model
    def guide(phi):
        for i in range(n):
            vx.sample(f"z{i}", d.Normal(phi[i], 1.0))

    return lambda phi: vx.objectives.elbo(model(), guide(phi), {"x": 1.0}), jnp.zeros(n)


def branches(n):
    """The worst case: a comparison of the user's at every choice, to be followed to its end."""

    def objective(phi):
        total = 0.0
        for i in range(n):
            x = vx.sample(f"x{i}", d.Normal(phi[i], 1.0))
            total += jnp.where(x > 0, x, 0.1 * x)
        return total

    return objective, jnp.zeros(n)


def vae(n):
    @vx.model
    def decoder(net):
        z = vx.sample("z", d.Normal(jnp.zeros(20), 1.0))
        vx.sample("x", d.Bernoulli(logits=net(z)))

    @vx.model
    def encoder(net, x):
        mean, log_sd = jnp.split(net(x), 2)
        vx.sample("z", d.Normal(mean, jnp.exp(log_sd)))

    k1, k2 = jax.random.split(KEY)
    nets = {
        "q": eqx.nn.MLP(784, 40, 400, 1, key=k1, activation=jax.nn.softplus),
        "p": eqx.nn.MLP(20, 784, 400, 1, key=k2, activation=jax.nn.softplus),
    }
    floats, rest = eqx.partition(nets, eqx.is_inexact_array)
    data = jnp.zeros((n, 784))

    def objective(floats):
        nets = eqx.combine(floats, rest)

        def one(x):
            return vx.objectives.elbo(decoder(nets["p"]), encoder(nets["q"], x), {"x": x})

        return jax.vmap(one)(data).mean()

    return objective, floats


def cpu(function):
    began = time.process_time()
    function()
    return time.process_time() - began


def measure(report, name, objective, params, rounds):
    check, trace = [], []
    for _ in range(rounds):
        staged = stage(lambda: objective(params))
        jaxpr = staged.jaxpr
        check.append(cpu(lambda j=jaxpr: soundness.violations(j, lambda site: True, direct=True)))
        trace.append(cpu(lambda: jax.make_jaxpr(vx.value_and_grad(objective))(KEY, params)))
    ratios = [c / t for c, t in zip(check, trace, strict=True)]
    percent = f"{100 * statistics.median(ratios):.1f} %"
    report.say(f"{name:<28}{spread(check):>32}{spread(trace):>32}{percent:>10}")


def main():
    report = Report("soundness_overhead", __doc__)
    n, rounds = (200, 2) if report.options.quick else (2000, 5)
    report.say(f"{rounds} rounds, CPU seconds, median (range)\n")
    report.say(f"{'':<28}{'check':>32}{'tracing as a whole':>32}{'ratio':>10}")
    for name, (objective, params) in {
        f"chain of {n} choices": chain(n),
        f"{n} choices, {n} branches": branches(n),
        "VAE 784-400-20, batch of 64": vae(64),
    }.items():
        measure(report, name, objective, params, rounds)
    report.close()


if __name__ == "__main__":
    main()
