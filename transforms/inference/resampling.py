"""Resampling: which particles go on, as one random choice with a probability.

N points in [0, 1) are looked up in the cumulative weights c_1 <= ... <= c_N = 1; each scheme has
N W_i of them in the mean between c_{i-1} and c_i.

    multinomial   N independent uniforms
    stratified    one uniform in each [s / N, (s + 1) / N)
    systematic    (s + u) / N with one uniform u

The probability of the ancestors a_0 ... a_{N-1} is what the score function differentiates:

    multinomial   prod_s W_{a_s}
    stratified    prod_s N |[c_{a_s - 1}, c_{a_s}) n [s / N, (s + 1) / N)|
    systematic    |n_s [N c_{a_s - 1} - s, N c_{a_s} - s) n [0, 1)|

Douc, Cappe and Moulines 2005.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
from numpyro.distributions import constraints

LISTED = 4096  # vectors of ancestors
SCHEMES = ("multinomial", "stratified", "systematic")


class Ancestors(npd.Distribution):
    """Which of N particles each of `count` new ones continues.

    Args:
        logits: log weights up to a constant, shape [N].
        count: how many are drawn; N for the schemes but the multinomial one.
        scheme: one of `SCHEMES`.

    Support: integers 0 to N - 1, shape [count].
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    pytree_data_fields = ("logits",)
    pytree_aux_fields = ("size", "count", "scheme")

    def __init__(self, logits: Any, count: int, scheme: str):
        self.logits, self.size = jnp.asarray(logits), len(logits)
        self.count, self.scheme = count, scheme
        super().__init__((), (count,), validate_args=False)

    def _cumulative(self) -> jax.Array:
        total = jnp.cumsum(jax.nn.softmax(self.logits))
        return total / total[-1]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Ancestors, shape `[*sample_shape, count]`, in order but for the multinomial scheme."""
        n = self.count
        if self.scheme == "multinomial":
            drawn = jax.random.categorical(key, self.logits, shape=(*sample_shape, n))
            return drawn.astype(jnp.result_type(int))
        shape = (*sample_shape, n if self.scheme == "stratified" else 1)
        points = (jnp.arange(n) + jax.random.uniform(key, shape)) / n
        found = jnp.searchsorted(self._cumulative(), points, side="right")
        return jnp.minimum(found, self.size - 1).astype(jnp.result_type(int))

    def log_prob(self, value: Any) -> jax.Array:
        """Log probability of ancestors as `sample` orders them."""
        if self.scheme == "multinomial":
            return jax.nn.log_softmax(self.logits)[value].sum(-1)
        above = self._cumulative() * self.count
        below = jnp.concatenate([jnp.zeros_like(above[:1]), above[:-1]])
        s = jnp.arange(self.count)
        high, low = jnp.minimum(above[value] - s, 1.0), jnp.maximum(below[value] - s, 0.0)
        if self.scheme == "stratified":
            return _log(high - low).sum(-1)
        return _log(high.min(-1) - low.max(-1))

    @property
    def has_enumerate_support(self) -> bool:
        """Whether all ancestors of all particles can be listed."""
        return self.size**self.count <= LISTED

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All vectors of ancestors, shape `[N ** count, count]`."""
        grid = np.indices((self.size,) * self.count).reshape(self.count, -1)
        return jnp.asarray(grid.T)


class RetainedAncestors(Ancestors):
    """Ancestors among which one particle continues, and the place s* at which it does.

    Args:
        logits: log weights up to a constant, shape [N].
        slot: the particle b that is retained.
        scheme: one of `SCHEMES`.

    Probability of (a, s*): that of the ancestors a, over N W_b, where a_{s*} = b. A point v uniform
    in b's interval of the cumulative weights is one of the N; the others are drawn given it.

    Support: integers 0 to N - 1, shape [N + 1], the place last.
    """

    pytree_data_fields = ("logits", "slot")

    def __init__(self, logits: Any, slot: Any, scheme: str):
        super().__init__(logits, len(logits), scheme)
        self.slot = jnp.asarray(slot)
        self._event_shape = (self.count + 1,)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Ancestors and the place."""
        one, two = jax.random.split(key)
        n, above = self.count, self._cumulative()
        below = jnp.where(self.slot > 0, above[self.slot - 1], 0.0)
        u = jax.random.uniform(one, (*sample_shape, 1))
        v = below + u * (above[self.slot] - below)
        if self.scheme == "multinomial":
            place = jnp.minimum(jnp.floor(jax.random.uniform(two, v.shape) * n), n - 1).astype(int)
            others = jax.random.categorical(
                jax.random.fold_in(two, 0), self.logits, shape=(*sample_shape, n)
            )
        else:
            place = jnp.minimum(jnp.floor(v * n), n - 1).astype(int)
            noise = n * v - place  # of the one point, which systematic points share
            if self.scheme == "stratified":
                noise = jax.random.uniform(two, (*sample_shape, n))
            others = jnp.searchsorted(above, (jnp.arange(n) + noise) / n, side="right")
        ancestors = jnp.where(jnp.arange(n) == place, self.slot, jnp.minimum(others, n - 1))
        return jnp.concatenate([ancestors, place], -1).astype(jnp.result_type(int))

    def log_prob(self, value: Any) -> jax.Array:
        """Log probability of ancestors and the place."""
        ancestors, place = value[..., :-1], value[..., -1:]
        here = jnp.take_along_axis(ancestors, place, -1)[..., 0] == self.slot
        log_w = jax.nn.log_softmax(self.logits)[self.slot]
        found = super().log_prob(ancestors) - jnp.log(self.count) - log_w
        return jnp.where(here, found, -jnp.inf)

    @property
    def has_enumerate_support(self) -> bool:
        """Whether all values can be listed."""
        return self.size ** (self.count + 1) <= LISTED

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All values, shape `[N ** (N + 1), N + 1]`."""
        grid = np.indices((self.size,) * (self.count + 1)).reshape(self.count + 1, -1)
        return jnp.asarray(grid.T)


def _log(length: jax.Array) -> jax.Array:
    """log of a length, minus infinity where it is negative, and no derivative there."""
    safe = jnp.where(length > 0, length, 1.0)
    return jnp.where(length > 0, jnp.log(safe), -jnp.inf)
