"""Reasons to refuse that the Pallas forms share."""

from __future__ import annotations

from ..frame import Call


def only_float32(call: Call) -> str | None:
    """The units that the kernels are for have no float64."""
    others = {d for d in call.dtypes if d.startswith(("float", "bfloat"))} - {"float32"}
    return f"computes in float32, not {', '.join(sorted(others))}" if others else None


def some_size_is_zero(call: Call) -> str | None:
    """Grids have no empty axes."""
    sizes = {size for operand in call.operands[:3] for size in operand.shape}
    return "has nothing to do: an axis is empty" if 0 in sizes or call.batch == 0 else None
