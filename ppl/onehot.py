"""The one-hot categorical distribution, which NumPyro lacks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from numpyro.distributions import constraints


class OneHotCategorical(npd.Distribution):
    """A categorical draw as a vector: 1 in the entry of the class, 0 elsewhere.

    Args:
        probs: class probabilities, shape `[*batch, K]`; or
        logits: their logarithms up to a constant, shape `[*batch, K]`.

    Support: the K unit vectors. `log_prob` of any other value is minus infinity.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, probs: Any = None, logits: Any = None, *, validate_args: Any = None):
        if (probs is None) == (logits is None):
            raise ValueError("OneHotCategorical needs probs or logits, and not both.")
        self.logits = jnp.log(jnp.asarray(probs)) if logits is None else jnp.asarray(logits)
        shape = jnp.shape(self.logits)
        valid = validate_args if probs is None else False  # a logit may be minus infinity
        super().__init__(shape[:-1], shape[-1:], validate_args=valid)

    @property
    def support(self) -> Any:
        """The unit vectors, as the multinomial support of one trial."""
        return constraints.multinomial(1)

    @property
    def probs(self) -> jax.Array:
        """Class probabilities, `[*batch, K]`."""
        return jax.nn.softmax(self.logits, -1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Unit vectors, `[*sample_shape, *batch, K]`, integers."""
        at = jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape)
        return jax.nn.one_hot(at, self.event_shape[0], dtype=int)

    def log_prob(self, value: Any) -> jax.Array:
        """Log probability, `[*batch]`."""
        log_p = jnp.where(value == 1, jax.nn.log_softmax(self.logits, -1), 0.0).sum(-1)
        inside = ((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == 1)
        return jnp.where(inside, log_p, -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All unit vectors, `[K, *batch, K]`, or `[K, 1, ..., K]` without `expand`."""
        k = self.event_shape[0]
        values = jnp.eye(k, dtype=int).reshape((k, *(1,) * len(self.batch_shape), k))
        return jnp.broadcast_to(values, (k, *self.batch_shape, k)) if expand else values

    @property
    def mean(self) -> jax.Array:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> jax.Array:
        """Variance of each entry."""
        return self.probs * (1 - self.probs)
