"""Normalizing flows on four energy potentials (Rezende and Mohamed 2015, section 6.1).

    p(z) = exp(-U(z)) / Z,   q_K(z_K):  z_0 ~ N(0, I),  z_k = z_{k-1} + u h(w' z_{k-1} + b)

The potentials U_1 to U_4 are those of table 1. U_2 to U_4 do not change along their first
coordinate for ever, so they have no integral over the plane; here p lives on |z_1| < 4, the square
of the paper's figure 3, with soft edges. log Z comes from quadrature, so the divergences
KL(q_K || p) in the table are not up to a constant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import varax as vx
from varax import dist as d
from varax import families

Array = jax.Array
Flows = dict[str, Any]  # potential -> its flow
LENGTHS = (2, 8, 32)
BATCH = 100  # draws a step
WARM = 0.6  # share of the steps over which the inverse temperature rises to 1


def w1(z: Array) -> Array:
    """The sine that U_2 to U_4 follow."""
    return jnp.sin(2 * jnp.pi * z[0] / 4)


def w2(z: Array) -> Array:
    """Height of the second branch of U_3."""
    return 3 * jnp.exp(-0.5 * ((z[0] - 1) / 0.6) ** 2)


def w3(z: Array) -> Array:
    """Height of the second branch of U_4."""
    return 3 * jax.nn.sigmoid((z[0] - 1) / 0.3)


def edges(z: Array) -> Array:
    """0 for |z_1| < 4, steep outside."""
    return 0.5 * (jax.nn.relu(jnp.abs(z[0]) - 4) / 0.1) ** 2


def wells(a: Array, b: Array) -> Array:
    """-log(exp(-a^2 / 2) + exp(-b^2 / 2))."""
    return -jnp.logaddexp(-0.5 * a**2, -0.5 * b**2)


def U1(z: Array) -> Array:
    """A ring with two wells."""
    ring = 0.5 * ((jnp.linalg.norm(z) - 2) / 0.4) ** 2
    return ring + wells((z[0] - 2) / 0.6, (z[0] + 2) / 0.6)


def U2(z: Array) -> Array:
    """A sine."""
    return 0.5 * ((z[1] - w1(z)) / 0.4) ** 2 + edges(z)


def U3(z: Array) -> Array:
    """A sine with a second branch in the middle."""
    return wells((z[1] - w1(z)) / 0.35, (z[1] - w1(z) + w2(z)) / 0.35) + edges(z)


def U4(z: Array) -> Array:
    """A sine with a second branch at the end."""
    return wells((z[1] - w1(z)) / 0.4, (z[1] - w1(z) + w3(z)) / 0.35) + edges(z)


POTENTIALS: dict[str, Callable[[Array], Array]] = {"U1": U1, "U2": U2, "U3": U3, "U4": U4}


@vx.model
def energy(U: Callable[[Array], Array], beta: Any = 1.0) -> None:
    """exp(-beta U(z)), unnormalised."""
    z = vx.sample("z", d.ImproperUniform(d.constraints.real_vector, (), (2,)))  # [2]
    vx.factor("energy", -beta * U(z))


def guide(flow: Any) -> d.Flow:
    """q_K: a standard normal pushed through K planar flows."""
    return d.Flow(d.Normal(jnp.zeros(2), 1.0), flow)


def free_energy(flow: Any, U: Callable[[Array], Array], beta: Any = 1.0) -> Array:
    """E[beta log p(z_K) - log q_K(z_K)], equation 20 with its sign turned; one draw."""
    z, log_q = guide(flow).draw("z_0")  # [2], scalar
    return energy(U, beta).log_density({"z": z}) - log_q


def objective(flows: Flows, step: Any, steps: int) -> Array:
    """The annealed bounds of all potentials together, mean of BATCH draws."""
    beta = jnp.minimum(1.0, 0.01 + step / (WARM * steps))
    draws = jnp.arange(BATCH)
    bounds = [
        jax.vmap(lambda _, U=U, name=name: free_energy(flows[name], U, beta))(draws)  # [BATCH]
        for name, U in POTENTIALS.items()
    ]
    return jnp.stack(bounds).mean(1).sum()


def data(n: int = 400, width: float = 6.0) -> dict[str, float]:
    """log Z of every potential, a sum over n x n cells of the square |z_i| < width."""
    side = jnp.linspace(-width, width, n)
    grid = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)  # [n * n, 2]
    cell = 2 * jnp.log(side[1] - side[0])
    sums = {name: jax.nn.logsumexp(-jax.vmap(U)(grid)) for name, U in POTENTIALS.items()}
    return {name: float(x + cell) for name, x in sums.items()}


def divergences(flows: Flows, log_z: dict[str, float], key: Array, n: int = 20_000) -> Any:
    """KL(q_K || p) of every potential, from n draws each."""

    @jax.jit
    def run(flows: Flows, key: Array) -> dict[str, Array]:
        def mean(name: str, U: Callable[[Array], Array]) -> Array:
            return jax.vmap(lambda _: free_energy(flows[name], U))(jnp.arange(n)).mean()

        return vx.seed(lambda: {name: mean(name, U) for name, U in POTENTIALS.items()})(key)

    return {name: log_z[name] - float(x) for name, x in run(flows, key).items()}


def picture(fits: dict[int, Flows], width: float = 4.5, n: int = 160) -> Any:
    """The four densities, and those of the flows below them."""
    import matplotlib.pyplot as plt

    side = jnp.linspace(-width, width, n)
    grid = jnp.stack(jnp.meshgrid(side, side), -1)  # [n, n, 2]
    figure, axes = plt.subplots(
        1 + len(fits), 4, figsize=(8, 2.1 * (1 + len(fits))), layout="constrained", squeeze=False
    )
    for column, (name, U) in enumerate(POTENTIALS.items()):
        densities = [("exp(-U)", jnp.exp(-jax.vmap(jax.vmap(U))(grid)))]
        for k, flows in fits.items():
            densities.append((f"K = {k}", jnp.exp(jax.jit(guide(flows[name]).log_prob)(grid))))
        for row, (label, density) in enumerate(densities):
            axes[row, column].imshow(density, origin="lower", cmap="viridis")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, 0].set_ylabel(label)
        axes[0, column].set_title(name)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fit flows of several lengths, print their divergences, write the picture."""
    parser = argparse.ArgumentParser(
        prog="varax run flows", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    args = parser.parse_args(argv)

    log_z = data()
    fits, found = {}, {}
    print(f"{'KL(q_K || p)':>14}" + "".join(f"{name:>9}" for name in POTENTIALS))
    for k in args.lengths:
        k_init, k_fit, k_test = jax.random.split(jax.random.key(args.seed), 3)
        keys = jax.random.split(k_init, len(POTENTIALS))
        flows = {
            name: families.planar(key, 2, k, 0.5)
            for name, key in zip(POTENTIALS, keys, strict=True)
        }
        rate = optax.cosine_decay_schedule(1e-2, args.steps)
        result = vx.fit(
            lambda flows, step: objective(flows, step, args.steps),
            flows,
            optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate)),
            steps=args.steps,
            key=k_fit,
        )
        fits[k] = result.params
        kl = divergences(result.params, log_z, k_test)
        print(f"{f'K = {k}':>14}" + "".join(f"{x:>9.3f}" for x in kl.values()), flush=True)
        found |= {f"{name}_{k}": x for name, x in kl.items()}

    args.out.mkdir(parents=True, exist_ok=True)
    picture(fits).savefig(args.out / "flows.png", dpi=80)
    print(f"picture {args.out / 'flows.png'}")
    return found


if __name__ == "__main__":
    main()
