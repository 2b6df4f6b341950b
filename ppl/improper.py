"""Densities that no one can draw from: flat on a support, or another density cut down to one.

Both say what Stan's `parameters` block says: a declared support, and a prior or none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from numpyro.distributions import constraints

from ..kernels.source import user_line
from ..transforms.errors import ShapeError


class Flat(npd.Distribution):
    """Lebesgue measure on a support: log density 0 inside, minus infinity outside.

        beta = vx.sample("beta", d.Flat(3))                                   # R^3
        sigma = vx.sample("sigma", d.Flat(support=d.constraints.positive))
        b = vx.sample("b", d.Flat(support=d.constraints.interval(0.0, 1.0 - a)))

    The support may depend on other choices. The posterior is proper only if the rest of the model
    makes it so; nothing checks that.

    Args:
        shape: of a value, a tuple or one number.
        support: a constraint; one of vectors or matrices (ordered, simplex) takes the last axes.

    Cannot be sampled: `simulate` raises `CapabilityError`, `potential` and guides work.

    Raises:
        ShapeError: a support of vectors or matrices, and a shape with too few axes.
    """

    arg_constraints = {}  # noqa: RUF012
    support: Any = constraints.dependent
    pytree_data_fields = ("support",)
    normalised = False

    def __init__(self, shape: int | tuple[int, ...] = (), support: Any = constraints.real):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.support = support
        batch = len(shape) - _event_dim(support, len(shape))
        super().__init__(shape[:batch], shape[batch:], validate_args=False)

    def log_prob(self, value: Any) -> jax.Array:
        """0 or minus infinity, shape `[*batch]`."""
        inside = jnp.broadcast_to(self.support(value), self.batch_shape)
        return jnp.where(inside, jnp.zeros(()), -jnp.inf)


class Restricted(npd.Distribution):
    """A density on a smaller support, not normalised there: what is outside counts nothing.

        in_order = d.constraints.ordered_vector
        mu = vx.sample("mu", d.Restricted(d.Normal(jnp.zeros(2), 2.0), in_order))

    Args:
        base: a distribution with a density.
        support: a constraint inside the support of `base`; one of vectors or matrices takes the
            last axes of the values.

    Cannot be sampled: its constant is not known. Where the distribution exists in closed form
    (`d.HalfNormal`, `d.TruncatedNormal`), use that.

    Raises:
        ShapeError: a support of vectors or matrices, and values with too few axes.
    """

    arg_constraints = {}  # noqa: RUF012
    support: Any = constraints.dependent
    pytree_data_fields = ("base_dist", "support")
    pytree_aux_fields = ("_joined",)
    normalised = False

    def __init__(self, base: Any, support: Any):
        self.base_dist, self.support = base, support
        shape = base.batch_shape + base.event_shape
        self._joined = max(_event_dim(support, len(shape)) - len(base.event_shape), 0)
        batch = len(base.batch_shape) - self._joined
        super().__init__(shape[:batch], shape[batch:], validate_args=False)

    def log_prob(self, value: Any) -> jax.Array:
        """Log density of `base` inside, minus infinity outside, shape `[*batch]`."""
        found = self.base_dist.log_prob(value)
        found = found.sum(tuple(range(found.ndim - self._joined, found.ndim)))
        inside = self.support(value)
        missing = len(self.event_shape) - self.support.event_dim
        inside = inside.all(tuple(range(inside.ndim - missing, inside.ndim)))
        return jnp.where(inside, found, -jnp.inf)


def _event_dim(support: Any, axes: int) -> int:
    if support.event_dim > axes:
        raise ShapeError(
            "A value has fewer axes than its support.",
            expected=f"at least {support.event_dim}: {support} is a set of arrays",
            got=f"{axes} axes",
            where=user_line(),
            fix="d.Flat((3,), support) for a vector of length 3",
        )
    return support.event_dim
