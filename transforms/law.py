"""The law of one site: the joint distribution of its draws over all lanes. What estimators see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from .measures import Masked, element_support, event_shape, innermost, is_reparameterizable
from .site import Address, Site, over_lanes, unpack


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
        return self._draw("sample", key)

    def rsample(self, key: jax.Array) -> jax.Array:
        """A draw that is differentiable in the parameters."""
        return self._draw("rsample", key)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Joint log density of all lanes: a scalar."""
        return over_lanes(
            self.site, lambda m, _, v: m.log_prob(v).sum(), self.operands, value
        ).sum()

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

    def mask(self) -> jax.Array | None:
        """Where the site is present, shape `lanes + batch`, or None for everywhere."""
        if not _has_mask(self.template):
            return None
        event = event_shape(self.template)
        batch = self.site.value.shape[: len(self.site.value.shape) - len(event)]
        return over_lanes(self.site, lambda m, _: jnp.broadcast_to(_mask(m), batch), self.operands)

    def _draw(self, method: str, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, self.site.lanes) if self.site.lanes else key

        def one(measure: Any, _: Any, key: jax.Array) -> jax.Array:
            return getattr(measure, method)(key).astype(self.site.value.dtype)

        return over_lanes(self.site, one, self.operands, keys)

    def _mapped_count(self) -> list[int]:
        """Per operand, how many lanes lead it."""
        return [sum(m) for m in zip(*self.site.mapped, strict=True)] or [0] * len(self.operands)


def _has_mask(measure: Any) -> bool:
    if isinstance(measure, Masked):
        return True
    return _has_mask(measure.base) if hasattr(measure, "base") else False


def _mask(measure: Any) -> Any:
    if isinstance(measure, Masked):
        return jnp.asarray(measure.mask) & _mask(measure.base)
    return _mask(measure.base) if hasattr(measure, "base") else jnp.asarray(True)
