"""Modules inside distributions: a pytree whose leaves are arrays and numbers alone."""

from __future__ import annotations

from typing import Any

import jax


@jax.tree_util.register_pytree_node_class
class Held:
    """Any pytree, such as an Equinox module.

    Its arrays and numbers are the children; what else it has for leaves (functions) belongs to the
    structure, as a random choice's measure needs it.
    """

    def __init__(self, tree: Any):
        leaves, structure = jax.tree.flatten(tree)
        self.children = [x for x in leaves if _is_data(x)]
        fixed = tuple(_CHILD if _is_data(x) else x for x in leaves)
        self.form = (structure, fixed, _classes(structure))

    @property
    def tree(self) -> Any:
        """What is held."""
        structure, leaves, _ = self.form
        left = iter(self.children)
        return structure.unflatten([next(left) if x is _CHILD else x for x in leaves])

    def tree_flatten(self) -> Any:
        """Children and structure."""
        return self.children, self.form

    @classmethod
    def tree_unflatten(cls, form: Any, children: Any) -> Held:
        """The inverse of `tree_flatten`; children may be anything."""
        new = object.__new__(cls)
        new.children, new.form = list(children), form
        return new


_CHILD = object()


def _classes(structure: Any) -> Any:
    """The classes of a tree's nodes, which equality of structures (JAX 0.10) does not compare for
    dataclasses: two of them with the same fields would share what was traced for one.
    """
    node = structure.node_data()
    return (node and node[0], *map(_classes, structure.children()))


def is_array(x: Any) -> bool:
    """Whether a leaf is an array, traced ones and shapes included."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _is_data(x: Any) -> bool:
    return isinstance(x, (bool, int, float, complex)) or is_array(x)
