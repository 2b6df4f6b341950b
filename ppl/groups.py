"""Parameter groups: which scalar of an objective trains which part of the parameters.

A group is a subtree of the params and has its path as its name: the key of a dict, the attribute of
a module, the index in a sequence, joined by slashes where they are nested ("guide/local").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..transforms.derivatives import is_float, join
from ..transforms.errors import GroupError

SHOWN = 4  # paths in an error


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a path in a pytree."""
    return "/".join(str(_key(entry)) for entry in path)


def _key(entry: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def split_trained(params: Any, groups: Sequence[str] | None, where: str) -> tuple[Any, Any]:
    """The floats of some groups (None: of all), and the other leaves; see `join`.

    Raises:
        GroupError: a group is not a part of the params, or there is nothing to train.
    """

    def chosen(path: Any, x: Any) -> bool:
        name = path_name(path)
        return is_float(x) and (groups is None or any(_inside(name, g) for g in groups))

    trained = jax.tree_util.tree_map_with_path(lambda p, x: x if chosen(p, x) else None, params)
    rest = jax.tree_util.tree_map_with_path(lambda p, x: None if chosen(p, x) else x, params)
    if groups is not None:
        if unknown := _unknown(groups, params):
            raise _mismatch(groups, params, where, f"no such part of the params: {_few(unknown)}")
        if not jax.tree.leaves(trained):
            raise _mismatch(groups, params, where, "no floating-point array in them")
    return trained, rest


def share_out(names: Sequence[str], trained: Any, rest: Any, where: str) -> Any:
    """The tree of what is trained, with the number of its group in the place of each leaf.

    Raises:
        GroupError: a leaf is in no group, or a group is not a part of the params.
    """
    params = join(trained, rest)
    if unknown := _unknown(names, params):
        raise _mismatch(names, params, where, f"no such part of the params: {_few(unknown)}")
    owners = {
        leaf: [i for i, g in enumerate(names) if _inside(leaf, g)] for leaf in group_names(trained)
    }
    if missing := [leaf for leaf, found in owners.items() if not found]:
        raise _mismatch(names, params, where, f"no group for {_few(missing)}")
    return jax.tree_util.tree_map_with_path(lambda path, _: owners[path_name(path)][0], trained)


def group_names(tree: Any) -> list[str]:
    """The paths of a tree's leaves, in order: of a tree of scalars, the groups."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _inside(leaf: str, group: str) -> bool:
    return leaf == group or leaf.startswith(f"{group}/")


def _unknown(names: Sequence[str], params: Any) -> list[str]:
    leaves = group_names(params)
    return [g for g in names if not any(_inside(leaf, g) for leaf in leaves)]


def _mismatch(names: Sequence[str], params: Any, where: str, fault: str) -> GroupError:
    top = dict.fromkeys(name.split("/")[0] for name in group_names(params))
    return GroupError(
        "The groups are not those of the parameters.",
        expected=f"groups that share out the params {{{_few([*top])}}}, or parts of these",
        got=f"{{{_few(names)}}}: {fault}",
        where=where,
        fix="return one scalar for each part of the params, under its key or attribute, or train "
        "only some parts: groups=(...)",
    )


def _few(names: Sequence[str]) -> str:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([name or "the params as a whole" for name in names[:SHOWN]] + more)
