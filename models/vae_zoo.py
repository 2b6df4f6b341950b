"""Variational autoencoders by objective: the same two programs, one function changed.

    ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z)),     the model and guide of `vae`

and beta-VAE (Higgins et al. 2017), capacity (Burgess et al. 2018), beta-TCVAE (Chen et al. 2018),
InfoVAE (Zhao et al. 2019), DIP-VAE I and II (Kumar et al. 2018), SWAE (Kolouri et al. 2019), IWAE
(Burda et al. 2016). Several have terms that couple the data points of a minibatch.

Rate is the KL, distortion -E_q[log p(x | z)], in nats an image; a unit is active where the variance
of its posterior mean over images exceeds 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import varax as vx
from varax import dist as d
from varax import objectives as ob

from .vae import LATENT, LEVELS, Nets, bounds, data, decoder, encoder, init

N = 1500  # training images
PRIOR = d.Normal(0.0, 1.0)


class Codes(NamedTuple):
    """A minibatch's guides and one draw of each."""

    mean: jax.Array  # [B, 8]
    sd: jax.Array  # [B, 8]
    z: jax.Array  # [B, 8]
    log_likelihood: jax.Array  # log p(x | z), [B]
    kl: jax.Array  # log q(z | x) - log p(z), [B]


def codes(nets: Nets, batch: jax.Array) -> Codes:
    """batch: [B, 64]."""
    mean, log_sd = jnp.split(jax.vmap(nets["encoder"])(batch / LEVELS), 2, 1)

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q = encoder(nets["encoder"], x).simulate()
        joint = decoder(nets["decoder"]).log_density(q.choices | {"x": x})
        log_prior = PRIOR.log_prob(q["z"]).sum()
        return q["z"], joint - log_prior, q.log_density - log_prior

    return Codes(mean, jnp.exp(log_sd), *jax.vmap(one)(batch))


def each(objective: Callable[..., jax.Array], *args: Any) -> Callable[[Nets, jax.Array], jax.Array]:
    """The mean over a minibatch of an objective of one image."""

    def mean(nets: Nets, batch: jax.Array) -> jax.Array:
        p, q = decoder(nets["decoder"]), nets["encoder"]
        return jax.vmap(lambda x: objective(p, encoder(q, x), {"x": x}, *args))(batch).mean()

    return mean


def capacity(nets: Nets, batch: jax.Array) -> jax.Array:
    """A rate of 15 nats, held by its distance from it."""
    c = codes(nets, batch)
    return c.log_likelihood.mean() - 5.0 * abs(c.kl.mean() - 15.0)


def total_correlation(nets: Nets, batch: jax.Array) -> jax.Array:
    """The total correlation of the aggregated posterior counts six times."""
    c = codes(nets, batch)
    terms = ob.decompose_kl(d.Normal(c.mean, c.sd), c.z, PRIOR, N)
    return ob.tc_elbo(c.log_likelihood, terms, beta=6.0)


def info(nets: Nets, batch: jax.Array) -> jax.Array:
    """No penalty on mutual information, one on the distance of all codes from the prior."""
    c = codes(nets, batch)
    prior = vx.sample("prior", d.Normal(jnp.zeros(c.z.shape), 1.0))
    return ob.infovae(c.log_likelihood, c.kl, ob.mmd(c.z, prior), alpha=0.9, scale=100.0)


def dip_i(nets: Nets, batch: jax.Array) -> jax.Array:
    """Uncorrelated posterior means."""
    c = codes(nets, batch)
    return (c.log_likelihood - c.kl).mean() - ob.dip_i(c.mean, 10.0, 10.0)


def dip_ii(nets: Nets, batch: jax.Array) -> jax.Array:
    """Uncorrelated codes."""
    c = codes(nets, batch)
    return (c.log_likelihood - c.kl).mean() - ob.dip_ii(c.mean, c.sd**2, 10.0, 10.0)


def swae(nets: Nets, batch: jax.Array) -> jax.Array:
    """Distortion and the sliced Wasserstein distance of codes from the prior, no rate."""
    c = codes(nets, batch)
    prior = vx.sample("prior", d.Normal(jnp.zeros(c.z.shape), 1.0))
    return c.log_likelihood.mean() - 50.0 * ob.sliced_wasserstein(c.z, prior)


OBJECTIVES: dict[str, Callable[[Nets, jax.Array], jax.Array]] = {
    "elbo": each(ob.elbo),
    "iwelbo": each(ob.iwelbo, 5),
    "beta 4": each(ob.beta_elbo, 4.0),
    "capacity": capacity,
    "beta-TC": total_correlation,
    "info": info,
    "DIP I": dip_i,
    "DIP II": dip_ii,
    "SWAE": swae,
}


class Row(NamedTuple):
    """What is measured on held-out images."""

    elbo: float
    iwae: float
    rate: float
    distortion: float
    active: int
    mmd: float  # of codes and prior, times 100
    correlation: float  # largest between two posterior means


def measure(nets: Nets, images: np.ndarray, key: jax.Array) -> Row:
    """One row of the table."""
    one, two, three = jax.random.split(key, 3)
    elbo, iwae = bounds(nets, images, one)
    c = jax.jit(lambda x: vx.seed(lambda: codes(nets, x))(two))(jnp.asarray(images))
    rate = float(d.kl_divergence(d.Normal(c.mean, c.sd), PRIOR).sum(1).mean())
    mean = np.asarray(c.mean)
    r = np.corrcoef(mean.T) - np.eye(LATENT)
    prior = jax.random.normal(three, c.z.shape)
    active = int((mean.var(0) > 0.01).sum())
    return Row(elbo, iwae, rate, rate - elbo, active, 100 * float(ob.mmd(c.z, prior)), abs(r).max())


def picture(rows: dict[str, Row]) -> Any:
    """Rate and distortion."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for name, row in rows.items():
        ax.plot(row.rate, row.distortion, "o", color="C0")
        ax.annotate(f" {name}", (row.rate, row.distortion), fontsize=8)
    best = max(row.elbo for row in rows.values())
    x = np.linspace(min(r.rate for r in rows.values()) - 1, max(r.rate for r in rows.values()) + 1)
    ax.plot(x, -best - x, lw=0.7, color="grey")
    ax.set(xlabel="rate, nats an image", ylabel="distortion", title="line: the best ELBO")
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Row]:
    """Fit each objective, print and draw rate and distortion on held-out images."""
    parser = argparse.ArgumentParser(
        prog="varax run vae_zoo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--objectives", nargs="*", choices=list(OBJECTIVES), default=list(OBJECTIVES)
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    train, test, _ = data()
    k_init, k_fit, k_score = jax.random.split(jax.random.key(args.seed), 3)
    heads = ("ELBO", "IWAE", "rate", "distortion", "active", "MMD x100", "max corr")
    print(f"{'held out':>10}" + "".join(f"{h:>12}" for h in heads))
    rows = {}
    for name in args.objectives:
        options = {"steps": args.steps, "key": k_fit, "data": train, "batch_size": args.batch_size}
        fit = vx.fit(OBJECTIVES[name], init(k_init), optax.adam(1e-3), **options)
        rows[name] = measure(fit.params, test, k_score)
        shown = [f"{x:>12.2f}" if isinstance(x, float) else f"{x:>12}" for x in rows[name]]
        print(f"{name:>10}" + "".join(shown), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    picture(rows).savefig(args.out / "vae_zoo.png", dpi=110)
    print(f"picture {args.out / 'vae_zoo.png'}")
    return rows


if __name__ == "__main__":
    main()
