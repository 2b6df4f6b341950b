"""Which equations are linear: weights may then multiply their operands, not their results."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import jax.numpy as jnp

from . import _jax

UNARY = frozenset(
    """neg reduce_sum cumsum broadcast_in_dim reshape squeeze transpose slice rev copy
    convert_element_type reduce_window_sum assume_smooth declare_biased
    density_estimate""".split()
)
ADDITIVE = frozenset("add add_any sub concatenate stack".split())
AFFINE = ADDITIVE | {"select_n", "pad"}  # of several operands, each of which adds something
PRODUCTS = frozenset("mul dot_general".split())
COUNTING = frozenset("add sub neg reduce_sum broadcast_in_dim reshape squeeze transpose".split())
FIRST = frozenset("div pad dynamic_slice gather".split())  # linear in the first operand
LINEAR = UNARY | ADDITIVE | PRODUCTS | FIRST | {"select_n"}


def linear_in(op: Any, random: Container[int]) -> list[int]:
    """The random operands in which an equation is linear; none if it is not, in all of them."""
    among = [x for x in op.ins if isinstance(x, int) and x in random]
    if not among or not _numbers(op.eqn):
        return []
    name, first = op.eqn.primitive.name, op.ins[0]
    if name in UNARY or name in ADDITIVE:
        return among
    if name in PRODUCTS and len(among) == 1:
        return among
    if name in FIRST and among == [first] and not op.eqn.params.get("fill_value"):
        return among
    if name == "select_n" and first not in among:
        return among
    return []


def _numbers(eqn: _jax.JaxprEqn) -> bool:
    """Whether weights can multiply the operands in the place of the result: floats, and integers
    that are only added up and become floats in the end.
    """
    name, out = eqn.primitive.name, _jax.struct(eqn.outvars[0]).dtype
    if is_float(out):
        at = 1 if name == "select_n" else 0
        return _jax.struct(eqn.invars[at]).dtype != jnp.bool_
    return jnp.issubdtype(out, jnp.integer) and name in COUNTING


def is_float(dtype: Any) -> bool:
    """Whether a dtype is of floating point."""
    return jnp.issubdtype(dtype, jnp.floating)
