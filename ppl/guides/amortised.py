"""Amortised guides: one network for the latents of every data point.

u | x ~ N(m(x), diag exp(2 r(x))),   (m, r) = net((x - mean) / sd),   choices = T(u)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ...kernels.source import user_line
from ...transforms.errors import CapabilityError
from ..language import sample
from ..measure import Measure
from ..potential import Potential, constrain

Array = jax.Array
ADDRESS = "unconstrained"
MIN_SD = 1e-6  # of a feature, for division


@dataclasses.dataclass(frozen=True, eq=False)
class AmortisedGuide:
    """A guide for the latents of one data point, given that point.

        guide = vx.amortise(lambda x: local_model(x), example=x[:100])
        result = vx.fit(guide.elbo, guide.init(key), optax.adam(1e-3), 2000, key, data=x,
                        batch_size=64)
        jax.vmap(lambda x: guide(result.params, x).simulate())(x)

    Attributes:
        model: from one data point to a measure over its latents.
        potential: of one data point's model, for shapes.
        center, sd: of the features over the example, [F].
        width, depth: of the network.
    """

    model: Callable[[Any], Measure]
    potential: Potential
    center: Array
    sd: Array
    width: int
    depth: int

    def init(self, key: Array) -> eqx.nn.MLP:
        """The network's first parameters: an Equinox module."""
        d = self.potential.size
        net = eqx.nn.MLP(
            self.center.size, 2 * d, self.width, self.depth, activation=jax.nn.softplus, key=key
        )
        last = net.layers[-1]
        small = eqx.tree_at(lambda l: l.weight, last, 0.1 * last.weight)
        return eqx.tree_at(lambda n: n.layers[-1], net, small)

    def distribution(self, params: Any, x: Any) -> Any:
        """The distribution of u given one data point, [D]."""
        mean, log_sd = jnp.split(params((features(x) - self.center) / self.sd), 2)
        return npd.Normal(mean, jnp.exp(log_sd)).to_event(1)

    def __call__(self, params: Any, x: Any) -> Measure:
        """The guide for one data point's latents."""
        return constrain(self.noise(params, x), self.model(x))

    def noise(self, params: Any, x: Any) -> Measure:
        """The measure on u given one data point, one vector at the address `unconstrained`."""
        q = self.distribution(params, x)
        return Measure(lambda: sample(ADDRESS, q), "Amortised")

    def elbo(self, params: Any, batch: Any) -> Array:
        """The evidence lower bound of a data point, an average over the batch: an objective."""

        def one(x: Any) -> Array:
            potential, noise = self.model(x).potential(), self.noise(params, x)
            u = noise.simulate()[ADDRESS]
            log_q = noise.detach().log_density({ADDRESS: u})
            return potential.log_density(potential.unravel(u)) - log_q

        return jax.vmap(one)(batch).mean()

    def __repr__(self) -> str:
        return f"AmortisedGuide({self.potential.measure.name}, D={self.potential.size})"


def features(x: Any) -> Array:
    """One data point as a vector."""
    leaves = [jnp.ravel(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def amortise(
    model: Callable[[Any], Measure], example: Any, *, width: int = 64, depth: int = 2
) -> AmortisedGuide:
    """A guide that a network gives to every data point's latents.

    Args:
        model: from one data point to a measure over its latents, the point observed.
        example: some data points, an array or pytree with a leading axis: their mean and standard
            deviation centre and scale the network's input.
        width, depth: of the network, an `equinox.nn.MLP`.

    Raises:
        CapabilityError: a choice is discrete or may be absent, or the model gives no measure.
    """
    is_ready = callable(model) and example is not None
    made = model(jax.tree.map(lambda x: jnp.asarray(x)[0], example)) if is_ready else None
    if not isinstance(made, Measure):
        raise CapabilityError(
            "An amortised guide needs a function from a data point to a measure.",
            expected="vx.amortise(lambda x: model(x), example=x[:100])",
            got=f"{model!r}{'' if example is not None else ' and no example'}",
            where=user_line(),
        )
    table = jax.vmap(features)(jax.tree.map(jnp.asarray, example))  # [N, F]
    sd = table.std(0)
    return AmortisedGuide(
        model, made.potential(), table.mean(0), jnp.where(sd > MIN_SD, sd, 1.0), width, depth
    )
