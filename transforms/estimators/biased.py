"""Deliberately biased derivatives: none of them can be had by accident."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ..declared import declare_biased
from ..errors import EstimatorError
from ..law import Law
from .base import Direct, Drawn, cannot
from .parts import class_log_probs, filled
from .relaxed import is_coin, is_one_hot, noise, relax


@dataclasses.dataclass(frozen=True)
class Biased(Direct):
    """Accept wrong derivatives: `estimator=Biased(StraightThrough())`.

    Reported by `vx.check`, refused by `strict=True`. Values are those of the inner estimator.

    Args:
        inner: `StraightThrough`, `Concrete`, `StopGradient`, or any estimator with one value, such
            as `Reparam` where a pathwise value reaches a jump and that is accepted.
    """

    inner: Direct

    biased = True

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Direct) or isinstance(self.inner, Biased):
            raise EstimatorError(
                "Biased wraps an estimator with one value.",
                expected="Biased(StraightThrough()), Biased(Concrete(temperature)), "
                "Biased(StopGradient()), Biased(Reparam())",
                got=self.inner,
            )

    @property
    def relaxes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner estimator."""
        return self.inner.relaxes

    @property
    def pathwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner estimator."""
        return self.inner.pathwise

    def serve(self, law: Law) -> None:
        admit = self.inner.admit if isinstance(self.inner, _Bare) else self.inner.serve
        admit(law)

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        return self.inner.draw(key, law)


class _Bare(Direct):
    """Serves a site only inside `Biased(...)`."""

    def serve(self, law: Law) -> None:
        name = type(self).__name__
        raise cannot(
            EstimatorError,
            self,
            law,
            f"Biased({name}(...)), which says that wrong derivatives are accepted",
            f"estimator=Biased({name}(...)), or an unbiased one: Score(), Enumerate(), REBAR(...)",
        )

    def admit(self, law: Law) -> None:
        """Raise an `EstimatorError` where it cannot serve the law inside `Biased` either."""


class _Relaxable(_Bare):
    pathwise = True

    def admit(self, law: Law) -> None:
        if not (is_coin(law) or is_one_hot(law)):
            raise cannot(
                EstimatorError,
                self,
                law,
                "a Bernoulli or a one-hot categorical law: an integer has no derivative",
                "OneHotCategorical in the place of Categorical, or estimator=Score()",
            )


@dataclasses.dataclass(frozen=True)
class StraightThrough(_Relaxable):
    """Straight-through estimator.

        b ~ p(b; theta),   the value is b, its derivative that of E[b] = the probabilities

    Biased, except for k that are linear in b. The value has the exact law, as a float.

    Bengio, Leonard and Courville 2013.
    """

    relaxes = True

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        log_p = class_log_probs(law)
        probs = jnp.exp(log_p[1] if is_coin(law) else jnp.moveaxis(log_p, 0, -1))
        value = noise(key, law).value + probs - stop_gradient(probs)
        return Drawn(filled(law, value))


@dataclasses.dataclass(frozen=True)
class Concrete(_Relaxable):
    """Concrete or Gumbel-softmax relaxation.

        z = log odds + logistic noise,   r = sigmoid(z / temperature)      Bernoulli
        z = logits + Gumbel noise,       r = softmax(z / temperature)      one-hot categorical

    Args:
        temperature: number or array.
        hard: False: the value is r, so that the objective is another one, of which the derivatives
            are unbiased. True: the value is the exact draw [z > 0] or argmax z with the derivative
            of r (straight-through Gumbel-softmax).

    Biased, less so at low temperatures, where the variance grows.

    Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.
    """

    temperature: Any
    hard: bool = False

    relaxes = True

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        exact, z, *_ = noise(key, law)
        r = relax(law, z, self.temperature)
        return Drawn(filled(law, exact + r - stop_gradient(r) if self.hard else r))


@dataclasses.dataclass(frozen=True)
class StopGradient(_Bare):
    """The value is drawn and has no derivative: E[dk/dtheta] with x fixed.

    Biased wherever the law depends on the parameters.
    """

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        return Drawn(stop_gradient(law.sample(key)))


def rotation_trick(e: jax.Array, q: jax.Array) -> jax.Array:
    """q in the forward pass; its derivative is that of e, rotated and scaled from e to q.

        dq = |q| / |e| (I - 2 r r' + 2 u v') de
        v = e / |e|,   u = q / |q|,   r = (u + v) / |u + v|

    For a vector that is quantised: e, shape `[..., D]`, is the encoder's, q its nearest codeword.
    A biased derivative, like the straight-through one q + e - stop_gradient(e), but angles between
    a gradient and the codeword are kept. No derivative reaches q; train codewords with a term of
    their own.

    Fifty et al. 2024.
    """
    return declare_biased(_rotate(e, q), "rotation_trick")


@jax.custom_jvp
def _rotate(e: jax.Array, q: jax.Array) -> jax.Array:
    return q


@_rotate.defjvp
def _rotated(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (e, q), (de, _) = primals, tangents
    v, length = _unit(e)
    u, length_of_q = _unit(q)
    r, _ = _unit(u + v)

    def along(a: jax.Array, b: jax.Array) -> jax.Array:
        return a * (b * de).sum(-1, keepdims=True)

    scale = jnp.where(length > 0, length_of_q / jnp.where(length > 0, length, 1.0), 1.0)
    return q, scale * (de - 2 * along(r, r) + 2 * along(u, v))


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Direction, zero for a zero vector, and length."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1.0), length
