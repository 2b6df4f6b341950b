"""The law of one site: the joint distribution of its draws over all lanes. What estimators see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import repeated
from .errors import CapabilityError
from .measures import Masked, element_support, event_shape, innermost, is_reparameterizable
from .site import Address, Site, as_one_equation, over_lanes, unpack


@dataclasses.dataclass(frozen=True)
class Law:
    """Lanes and batch entries are independent; values have shape `lanes + batch + event`."""

    site: Site
    operands: list[Any]

    @property
    def address(self) -> Address:
        return self.site.address

    @property
    def template(self) -> Any:
        """The measure with placeholders for its arrays: for its type, never for its values."""
        return jax.tree.unflatten(self.site.tree, self.site.statics)[0]

    @property
    def name(self) -> str:
        """The distribution's name."""
        return type(innermost(self.template)).__name__

    @property
    def has_rsample(self) -> bool:
        return is_reparameterizable(self.template)

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw, shape `site.shape`."""
        try:
            return sample(self.site, self.operands, key)
        except NotImplementedError as error:
            raise CapabilityError(
                f"{self.name} has no sampler.",
                address=self.address,
                expected="Sampleable",
                got="Density",
                where=self.site.line,
                fix="score it with log_density, or guide it with a distribution that samples",
            ) from error

    def rsample(self, key: jax.Array) -> jax.Array:
        """A draw that is differentiable in the parameters."""
        return rsample(self.site, self.operands, key)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Joint log density of all lanes: a scalar."""
        return log_prob(self.site, self.operands, value)

    def log_prob_each(self, values: jax.Array) -> jax.Array:
        """`log_prob` of several values, shape [J]. The parameters are repeated for every value, so
        that a derivative sums over the values once.
        """
        several = [repeated(x[None], len(values), 0) for x in self.operands]
        return jax.vmap(lambda ops, v: log_prob(self.site, ops, v))(several, values)

    def element_support(self) -> jax.Array | None:
        """All values of one element, shape `[K, *event]`, or None if they cannot be listed."""
        inner = [x[(0,) * n] for x, n in zip(self.operands, self._mapped_count(), strict=True)]
        return element_support(unpack(self.site, inner)[0])

    @property
    def support_shape(self) -> tuple[int, ...] | None:
        """`[K, *event]` of `element_support`, also where the operands are only shapes."""
        found = jax.eval_shape(lambda ops: Law(self.site, ops).element_support(), self.operands)
        return None if found is None else found.shape

    @property
    def element_count(self) -> int:
        """How many elements the joint value has: lanes times batch."""
        return math.prod(self.site.shape) // max(math.prod((self.support_shape or (1,))[1:]), 1)

    @property
    def has_mask(self) -> bool:
        """Whether the site may be absent."""
        return _has_mask(self.template)

    def present(self) -> jax.Array:
        """Where the site is present, bool, shape `lanes + batch`."""
        event = event_shape(self.template)
        batch = self.site.value.shape[: len(self.site.value.shape) - len(event)]
        return over_lanes(self.site, lambda m, _: jnp.broadcast_to(_mask(m), batch), self.operands)

    def _mapped_count(self) -> list[int]:
        """Per operand, how many lanes lead it."""
        return [sum(m) for m in zip(*self.site.mapped, strict=True)] or [0] * len(self.operands)


@as_one_equation
def log_prob(site: Site, operands: list[Any], value: jax.Array) -> jax.Array:
    """Log density of a value under the law, summed over lanes and batch."""
    return over_lanes(site, lambda m, _, v: m.log_prob(v).sum(), operands, value).sum()


@as_one_equation
def sample(site: Site, operands: list[Any], key: jax.Array) -> jax.Array:
    """A draw of every lane."""
    return _draw(site, operands, key, lambda m, _, key: m.sample(key))


@as_one_equation
def rsample(site: Site, operands: list[Any], key: jax.Array) -> jax.Array:
    """A draw of every lane, differentiable in the parameters."""
    return _draw(site, operands, key, lambda m, _, key: m.rsample(key))


def _draw(site: Site, operands: list[Any], key: jax.Array, one: Any) -> jax.Array:
    keys = jax.random.split(key, site.lanes) if site.lanes else key
    return jnp.asarray(over_lanes(site, one, operands, keys), site.value.dtype)


def _has_mask(measure: Any) -> bool:
    if isinstance(measure, Masked):
        return True
    return _has_mask(measure.base) if hasattr(measure, "base") else False


def _mask(measure: Any) -> Any:
    if isinstance(measure, Masked):
        return jnp.asarray(measure.mask) & _mask(measure.base)
    return _mask(measure.base) if hasattr(measure, "base") else jnp.asarray(True)
