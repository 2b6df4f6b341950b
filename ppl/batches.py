"""Minibatches drawn on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..transforms.errors import ShapeError


class Batches:
    """Data points without replacement: a permutation on the device, renewed every epoch.

    An epoch has `N // batch_size` batches; the few points left over differ from epoch to epoch.
    """

    def __init__(self, data: Any, batch_size: int | None):
        self.data = None if data is None else jax.tree.map(jnp.asarray, data)
        lengths = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(self.data)}
        if len(lengths) > 1 or (data is not None and not lengths):
            raise ShapeError(
                "The arrays of the data differ in their leading axis.",
                expected="one number of data points",
                got=f"leading axes {sorted(lengths)}",
                fix="stack the data points along axis 0 of every array",
            )
        self.points = next(iter(lengths), 0)
        self.size = batch_size
        if batch_size is not None and not 1 <= batch_size <= self.points:
            raise ShapeError(
                "The batch size does not fit the data.",
                expected=f"1 to {self.points}",
                got=str(batch_size),
                fix="pass data= with more points than batch_size",
            )

    def start(self) -> Any:
        """The permutation before the first step."""
        return jnp.arange(self.points) if self.size else ()

    def take(
        self, data: Any, order: Any, number: Any, key: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """The permutation and the batch of a step; None without data."""
        if data is None or self.size is None:
            return order, data
        batch = number % (self.points // self.size)
        if key is not None:
            fresh = batch == 0
            order = jax.lax.cond(fresh, lambda: jax.random.permutation(key, order), lambda: order)
        chosen = jax.lax.dynamic_slice_in_dim(order, batch * self.size, self.size)
        return order, jax.tree.map(lambda x: x[chosen], data)
