"""Data-parallel placement: arrays on the devices of a mesh, and the agreement of several hosts.

The parameters are on every device, a batch is split along the mesh's first axis. The program stays
one program on whole arrays: XLA partitions it and adds the sums over devices. A draw depends on
the key, the step and its index in the whole array alone, so it is the same on any number of
devices (JAX's partitionable Threefry); sums over a batch differ by rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...kernels.source import user_line
from ...transforms.errors import ShapeError, StepError
from .arrays import is_key, to_host


class Placement:
    """Where arrays are; without a mesh, where JAX puts them."""

    def __init__(self, mesh: Mesh | None):
        if mesh is not None and not isinstance(mesh, Mesh):
            raise StepError(
                "This is not a mesh of devices.",
                expected='jax.make_mesh((n,), ("data",))',
                got=repr(mesh),
                where=user_line(),
            )
        # Without explicit axis types: the user's program need not know of the devices.
        self.mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        self.several_hosts = self.mesh is not None and self.mesh.is_multi_process
        self.leads = not self.several_hosts or jax.process_index() == 0

    @property
    def devices(self) -> int:
        """How many."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def parts(self) -> int:
        """Into how many parts a batch is split."""
        return 1 if self.mesh is None else self.mesh.shape[self.mesh.axis_names[0]]

    def everywhere(self, tree: Any) -> Any:
        """The arrays of a tree, on every device. What is split among them already stays so."""
        if self.mesh is None:
            return tree
        mesh, whole = self.mesh, NamedSharding(self.mesh, PartitionSpec())
        here = set(mesh.devices.flat)

        def put(x: Any) -> Any:
            if not isinstance(x, jax.Array):
                return x
            if isinstance(x.sharding, NamedSharding) and x.sharding.device_set == here:
                return jax.device_put(x, NamedSharding(mesh, x.sharding.spec))
            if not self.several_hosts:
                return jax.device_put(x, whole)
            array = to_host(x)
            array = jax.make_array_from_callback(array.shape, whole, lambda index: array[index])
            return (
                jax.random.wrap_key_data(array, impl=jax.random.key_impl(x)) if is_key(x) else array
            )

        return jax.tree.map(put, tree)

    def split(self, batch: Any, axis: int = 0) -> Any:
        """A batch whose data points are shared out among the devices, inside a program."""
        if self.mesh is None:
            return batch
        split = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.mesh.axis_names[0]))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split), batch)

    def put_split(self, chunk: Any) -> Any:
        """Batches in host memory, [steps, B, ...], with B shared out among the devices."""
        if self.mesh is None:
            return jax.tree.map(jax.numpy.asarray, chunk)
        split = NamedSharding(self.mesh, PartitionSpec(None, self.mesh.axis_names[0]))

        def put(x: Any) -> Any:
            x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
            return jax.make_array_from_callback(x.shape, split, lambda index: x[index])

        return jax.tree.map(put, chunk)

    def require_divisible(self, size: int) -> None:
        """Raise where a batch of so many data points has no equal parts."""
        if size % self.parts:
            raise ShapeError(
                "The batch cannot be shared out equally among the devices.",
                expected=f"a multiple of {self.parts}, the length of the mesh's first axis",
                got=f"{size} data points a step",
                where=user_line(),
                fix="batch_size= such a multiple",
            )

    def local(self, tree: Any) -> Any:
        """Arrays that are the same everywhere, on this process's first device alone."""
        if self.mesh is None:
            return tree
        return jax.tree.map(
            lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree
        )

    def agreed(self, *numbers: int) -> tuple[int, ...]:
        """The numbers of process 0, on all of them."""
        if not self.several_hosts:
            return numbers
        from jax.experimental import multihost_utils

        found = multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.int32))
        return tuple(int(x) for x in found)
