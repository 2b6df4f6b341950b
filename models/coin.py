"""Is the coin fair? The beta-Bernoulli model, its guide beside the exact posterior.

    f ~ Beta(a, a),  x_i | f ~ Bernoulli(f),   q(f) = Beta(alpha, beta)

The posterior is Beta(a + heads, a + tails) and the evidence a ratio of beta functions (Bernardo
and Smith 1994, section 5.2), so everything that is fitted here has a truth to compare with. The
data are the first 100 of the 10,000 tosses of Kerrich 1946: 44 heads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import betaln

import varax as vx
from varax import dist as d

Array = jax.Array
A = 10.0  # of the prior: coins are fair to within some ten percent
HEADS_BY_TENS = (4, 10, 17, 21, 25, 29, 32, 35, 40, 44)  # after 10, 20, ..., 100 tosses


@vx.model
def tosses(n: int) -> None:
    """p(f) p(x | f)."""
    f = vx.sample("f", d.Beta(A, A))
    vx.sample("x", d.Bernoulli(f).expand((n,)))  # [n]


@vx.model
def guide(phi: Array) -> None:
    """q(f) = Beta(alpha, beta), phi their logarithms [2]."""
    alpha, beta = jnp.exp(phi)
    vx.sample("f", d.Beta(alpha, beta))


def elbo(phi: Array, x: Any) -> Array:
    """E_q[log p(f, x) - log q(f)], one draw."""
    q = guide(phi).simulate()
    return tosses(len(x)).log_density(q.choices | {"x": x}) - q.log_density


def landing(phi: Array, x: Any) -> Array:
    """The same value; its gradient has no noise once q is the posterior (Roeder et al. 2017)."""
    return vx.objectives.sticking_the_landing(tosses(len(x)), guide(phi), {"x": x})


OBJECTIVES = {"elbo": elbo, "landing": landing}


def data() -> np.ndarray:
    """Kerrich's first 100 tosses, ten by ten (their order within ten is not in the table)."""
    heads = np.diff(HEADS_BY_TENS, prepend=0)  # [10]
    return (np.arange(10) < heads[:, None]).astype(np.int32).reshape(-1)  # [100]


def exact(x: np.ndarray) -> dict[str, Any]:
    """The posterior, the log evidence, and the log Bayes factor for f = 1/2."""
    heads, tails = int(x.sum()), int(len(x) - x.sum())
    evidence = float(betaln(A + heads, A + tails) - betaln(A, A))
    posterior = d.Beta(A + heads, A + tails)
    return {"posterior": posterior, "evidence": evidence, "fair": len(x) * np.log(0.5) - evidence}


def picture(q: Any, posterior: Any) -> Any:
    """Prior, guide and posterior."""
    import matplotlib.pyplot as plt

    f = np.linspace(0.2, 0.8, 400)
    figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.plot(f, np.exp(d.Beta(A, A).log_prob(f)), "k:", label="prior")
    ax.plot(f, np.exp(posterior.log_prob(f)), lw=4, alpha=0.4, label="posterior, exact")
    ax.plot(f, np.exp(q.log_prob(f)), "C3", lw=1, label="guide")
    ax.axvline(0.5, color="k", lw=0.5)
    ax.set(xlabel="probability of heads", yticks=[])
    ax.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit, print guide and truth side by side, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run coin", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--objective", choices=sorted(OBJECTIVES), default="landing")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    x = data()
    k_fit, k_bound = jax.random.split(jax.random.key(args.seed))
    result = vx.fit(
        lambda phi: OBJECTIVES[args.objective](phi, x),
        jnp.log(jnp.array([A, A])),
        optax.adam(optax.cosine_decay_schedule(0.05, args.steps)),
        steps=args.steps,
        key=k_fit,
        using=vx.strategies.MonteCarlo(16),
    )
    q, truth = d.Beta(*jnp.exp(result.params)), exact(x)
    p = truth["posterior"]
    bound = float(
        vx.expect(elbo, using=vx.strategies.MonteCarlo(10_000))(k_bound, result.params, x)
    )
    found = {
        "log evidence": (bound, truth["evidence"]),
        "mean of f": (float(q.mean), float(p.mean)),
        "sd of f": (float(q.variance) ** 0.5, float(p.variance) ** 0.5),
        "P(f < 1/2)": (float(q.cdf(0.5)), float(p.cdf(0.5))),
    }
    print(f"\n{int(x.sum())} heads in {len(x)} tosses\n{'':>14}{'guide':>10}{'exact':>10}")
    for name, (fitted, true) in found.items():
        print(f"{name:>14}{fitted:>10.4f}{true:>10.4f}")
    print(f"log Bayes factor for a fair coin: {truth['fair']:.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    picture(q, p).savefig(args.out / "coin.png", dpi=80)
    print(f"picture {args.out / 'coin.png'}")
    return {
        f"{name}, {who}": x
        for name, pair in found.items()
        for who, x in zip("qp", pair, strict=True)
    }


if __name__ == "__main__":
    main()
