"""Minibatches drawn on the device, from arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms.errors import ShapeError
from .errors_runs import DataError
from .groups import path_name
from .runs.placement import Placement

MOST = 1024  # most steps of one call to the device


class Batches:
    """Data points without replacement: a permutation on the device, renewed every epoch.

    An epoch has `N // batch_size` batches; the few points left over differ from epoch to epoch.

    A source of batches has the steps of one call to the device by `chunk`, from the host, and the
    batch of a step by `take`, inside the program.
    """

    most = MOST
    ahead = False  # whether `chunk` takes time, and is called while the device works
    failure = None  # an exception that `chunk` met

    def __init__(
        self,
        data: Any,
        batch_size: int | None,
        placement: Placement | None = None,
        allow_nan: bool = False,
    ):
        self.placement = placement or Placement(None)
        require_numbers(data, allow_nan, "the data")
        self.data = None if data is None else jax.tree.map(jnp.asarray, data)
        self.points = self._points(data)
        self.size = batch_size
        if batch_size is not None and not (
            _is_whole(batch_size) and 1 <= batch_size <= self.points
        ):
            raise ShapeError(
                "The batch size does not fit the data.",
                expected=f"1 to {self.points}" if self.points else "none: there are no data",
                got=str(batch_size),
                where=user_line(),
                fix="pass data= with at least batch_size points, or leave batch_size out",
            )
        if self.data is not None:
            self.placement.require_divisible(batch_size or self.points)
            self.data = self.placement.everywhere(self.data)

    def _points(self, data: Any) -> int:
        leaves = jax.tree_util.tree_leaves_with_path(self.data)
        lengths = {path_name(path) or "data": x.shape[0] if x.ndim else None for path, x in leaves}
        if data is not None and (not lengths or set(lengths.values()) == {0}):
            raise DataError(
                "There are no data points.",
                expected="arrays with at least one data point along axis 0",
                got=", ".join(f"{name}: shape {x.shape}" for name, x in _by_name(leaves))
                or repr(data),
                where=user_line(),
            )
        if len(set(lengths.values())) > 1 or None in lengths.values():
            raise ShapeError(
                "The arrays of the data differ in their leading axis.",
                expected="one number of data points",
                got=f"leading axes {sorted({n or 0 for n in lengths.values()})}: "
                + ", ".join(f"{name}: shape {x.shape}" for name, x in _by_name(leaves)),
                where=user_line(),
                fix="stack the data points along axis 0 of every array",
            )
        return next(iter(lengths.values()), 0) or 0

    @property
    def example(self) -> Any:
        """The data, for a fingerprint."""
        return self.data

    def outline(self) -> Any:
        """What `chunk` gives the device, for its form."""
        return self.data

    def start(self) -> Any:
        """The permutation before the first step."""
        return jnp.arange(self.points) if self.size else ()

    def seek(self, done: int, state: Any) -> None:
        """After a resume: everything is in the permutation."""

    def chunk(self, count: int) -> tuple[Any, int, Any]:
        """What the device needs for `count` steps, for how many it is enough, where we are then."""
        return self.data, count, None

    def take(
        self, data: Any, order: Any, number: Any, offset: Any, key: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """The permutation and the batch of a step; None without data.

        Args:
            data: what `chunk` gave.
            order: the permutation so far.
            number: of the step.
            offset: the step's place in the chunk.
            key: of the next permutation; None: this step's permutation is made already.
        """
        if data is None:
            return order, data
        if self.size is None:
            return order, self.placement.split(data)
        batch = number % (self.points // self.size)
        if key is not None:
            fresh = batch == 0
            order = jax.lax.cond(fresh, lambda: jax.random.permutation(key, order), lambda: order)
        chosen = jax.lax.dynamic_slice_in_dim(order, batch * self.size, self.size)
        return order, self.placement.split(jax.tree.map(lambda x: x[chosen], data))


def require_numbers(data: Any, allow_nan: bool, what: str) -> None:
    """Raise unless all leaves are arrays of numbers, without missing values.

    Raises:
        DataError: names the array, how many values are missing, and the first of them.
    """
    for name, x in _by_name(jax.tree_util.tree_leaves_with_path(data)):
        where = what if name == "data" else f"{name} of {what}"
        kind = getattr(x, "dtype", None) or np.asarray(x).dtype
        if not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)):
            if isinstance(x, jax.Array):  # random keys
                continue
            raise DataError(
                f"A fit cannot use {where}.",
                expected="arrays of numbers",
                got=f"dtype {kind}",
                where=user_line(),
                fix="code categories as integers",
            )
        if allow_nan or not jnp.issubdtype(kind, jnp.inexact):
            continue
        xp = jnp if isinstance(x, jax.Array) and not x.is_fully_addressable else np
        missing = xp.isnan(np.asarray(x) if xp is np else x)
        if missing.any():
            where_first = np.argwhere(np.asarray(missing))[0].tolist() if xp is np else "not shown"
            raise DataError(
                f"Values are missing in {where}.",
                expected="no NaN",
                got=f"{int(missing.sum())} of {missing.size}, the first at index {where_first}",
                where=user_line(),
                fix="leave out those data points; or if the model masks them (vx.masked with "
                "~jnp.isnan(x)), vx.fit(..., allow_nan=True)",
            )


def _by_name(leaves: Any) -> Iterator[tuple[str, Any]]:
    for path, x in leaves:
        yield path_name(path) or "data", x


def _is_whole(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)
