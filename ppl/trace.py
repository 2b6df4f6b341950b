"""What a run of a program leaves behind."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..transforms._jax import is_traced
from ..transforms.choices import flatten, nest
from ..transforms.errors import UnknownAddressError, show_address
from ..transforms.trace import Record


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Trace:
    """One run of a program: a pytree.

    Attributes:
        choices: nested dict, address -> array. Axes: enclosing scans, then vmapped lanes, then
            the value's own.
        value: what the program returned.
        log_density: scalar, joint log density of the choices and observations.
        recorded: `vx.deterministic` values and observations, nested like choices.
        present: bool arrays for choices that only some branch of a cond makes; where one is False
            the choice holds zeros and does not count.
    """

    choices: dict[str, Any]
    value: Any
    log_density: Any
    recorded: dict[str, Any]
    present: dict[str, Any]

    @staticmethod
    def of(value: Any, record: Record) -> Trace:
        """A trace from a transformation's value and record."""
        return Trace(
            nest(record.choices),
            value,
            record.log_density,
            nest(record.recorded),
            nest(record.present),
        )

    def __getitem__(self, address: str | tuple[str, ...]) -> Any:
        """`trace["z"]` or `trace["local", "z"]`: a choice, an observation or a recorded value."""
        path = (address,) if isinstance(address, str) else address
        for tree in (self.choices, self.recorded):
            at: Any = tree
            for name in path:
                at = at.get(name) if isinstance(at, dict) else None
            if at is not None:
                return at
        known = ", ".join(show_address(a) for a, _, _ in self._rows())
        raise UnknownAddressError(
            "This trace has no such address.",
            address=path,
            expected=f"one of {{{known}}}",
            got=show_address(path),
            fix="nested addresses are written trace['outer', 'inner']",
        )

    def _rows(self) -> Iterator[tuple[tuple[str, ...], str, Any]]:
        for kind, tree in (("", self.choices), ("recorded", self.recorded)):
            for address, value in flatten(tree).items():
                yield address, kind, value

    def __repr__(self) -> str:
        rows = [(show_address(a), _type(v), _shown(v), kind) for a, kind, v in self._rows()]
        widths = [max((len(r[i]) for r in rows), default=0) for i in range(3)]
        lines = [
            "  " + "  ".join(c.ljust(w) for c, w in zip(r, [*widths, 0], strict=True)).rstrip()
            for r in rows
        ]
        return "\n".join([f"Trace(log_density={_shown(self.log_density)})", *lines])

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{html.escape(show_address(a))}</td><td>{html.escape(_type(v))}</td>"
            f"<td>{html.escape(_shown(v))}</td><td>{kind}</td></tr>"
            for a, kind, v in self._rows()
        )
        return (
            f"<table><caption>Trace, log density {html.escape(_shown(self.log_density))}</caption>"
            "<thead><tr><th>address</th><th>type</th><th>value</th><th></th></tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )


def _type(value: Any) -> str:
    return jax.typeof(value).str_short()


def _shown(value: Any) -> str:
    """A number, a short array, or the range of a long one; the type where it is traced."""
    if is_traced(value):
        return "traced"
    array = np.asarray(value)
    if array.size <= 6:
        return np.array2string(array, precision=4, separator=", ").replace("\n", "")
    if array.dtype.kind in "fiu":
        low, mean, high = array.min(), array.mean(), array.max()
        return f"min {low:.4g}, mean {mean:.4g}, max {high:.4g}"
    return f"{array.size} values"
