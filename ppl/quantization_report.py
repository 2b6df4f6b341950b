"""What quantization did to each layer: `print(vx.quantization_report(net, small))`."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .errors_quantize import QuantizationError
from .quantize import layer_moments, linear_layers
from .quantized_linear import QuantizedLinear


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """One row of the report.

    Attributes:
        path: of the layer in the module.
        shape: (inputs, outputs).
        scheme: how it was quantized, or None if it was left alone.
        bits: stored bits a weight, with scales, padding and all else but the bias.
        weight_error: || new W - W || / || W ||, Frobenius norms.
        output_error: the same of the layer's outputs on the calibration inputs, without rounding
            of activations; None without calibration.
        bytes_before, bytes_after: of the layer with its bias.
    """

    path: str
    shape: tuple[int, int]
    scheme: str | None
    bits: float
    weight_error: float
    output_error: float | None
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationReport:
    """Layer by layer; prints as a table, in a notebook too.

    Attributes:
        layers: a row for each linear layer. One that occurs at several places has a row for each.
        bytes_before, bytes_after: of all arrays of the modules.
    """

    layers: tuple[QuantizedLayer, ...]
    bytes_before: int
    bytes_after: int

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name: `pandas.DataFrame(report.to_dict())`."""
        rows = [dataclasses.asdict(layer) for layer in self.layers]
        names = [field.name for field in dataclasses.fields(QuantizedLayer)]
        return {name: [row[name] for row in rows] for name in names}

    def _cells(self) -> list[list[str]]:
        head = ["layer", "inputs x outputs", "bits", "weight error", "output error", "bytes"]
        rows = [
            [
                layer.path or "(itself)",
                f"{layer.shape[0]} x {layer.shape[1]}",
                f"{layer.bits:.2f}",
                f"{layer.weight_error:.4f}",
                "-" if layer.output_error is None else f"{layer.output_error:.4f}",
                f"{layer.bytes_before:,} -> {layer.bytes_after:,}",
                layer.scheme or "left as it was",
            ]
            for layer in self.layers
        ]
        total = ["whole module", *[""] * 4, f"{self.bytes_before:,} -> {self.bytes_after:,}", ""]
        return [[*head, "scheme"], *rows, total]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(x.rjust(w) for x, w in zip(row[1:-1], widths[1:-1], strict=True)),
                    row[-1],
                ]
            ).rstrip()
            for row in cells
        )

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(x)}</{tag}>' for x in cells)}</tr>"

        head, *rows = self._cells()
        body = "".join(line(row, "td") for row in rows)
        return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def quantization_report(before: Any, after: Any, calibration: Any = None) -> QuantizationReport:
    """What `vx.quantize` made of each linear layer.

    Args:
        before: the module that was quantized.
        after: what it has become.
        calibration: as of `vx.quantize`; with it, errors of the layers' outputs too.

    Raises:
        QuantizationError: the modules do not have the same linear layers.
    """
    old, new = linear_layers(before), linear_layers(after)
    if {p: _shape(x) for p, x in old.items()} != {p: _shape(x) for p, x in new.items()}:
        raise QuantizationError(
            "These are not a module and what quantization made of it.",
            expected=", ".join(f"{p} {_shape(x)}" for p, x in old.items()) or "linear layers",
            got=", ".join(f"{p} {_shape(x)}" for p, x in new.items()) or "no linear layer",
        )
    moments = None if calibration is None else layer_moments(before, calibration)
    rows = []
    for path, layer in old.items():
        name = id(getattr(layer, "weight", None))
        moment = None if moments is None else moments.get(name)
        rows.append(_row(path, layer, new[path], moment))
    return QuantizationReport(tuple(rows), _bytes(before), _bytes(after))


def _row(path: str, old: Any, new: Any, moment: np.ndarray | None) -> QuantizedLayer:
    w, v = _weights(old), _weights(new)
    quantized = isinstance(new, QuantizedLinear)
    stored = new.matrix.nbytes if quantized else new.weight.nbytes
    return QuantizedLayer(
        path,
        (w.shape[0], w.shape[1]),
        str(new.matrix.scheme) if quantized else None,
        8 * stored / max(w.size, 1),
        _ratio(((v - w) ** 2).sum(), (w**2).sum()),
        None if moment is None else _ratio(_energy(v - w, moment), _energy(w, moment)),
        _bytes(old),
        _bytes(new),
    )


def _weights(layer: Any) -> np.ndarray:
    """float64[inputs, outputs]."""
    found = layer.matrix.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight.T
    return np.asarray(found.astype(np.float32) if found.dtype.itemsize < 4 else found, np.float64)


def _shape(layer: Any) -> tuple[int, ...]:
    return layer.matrix.shape if isinstance(layer, QuantizedLinear) else layer.weight.shape[::-1]


def _energy(w: np.ndarray, moment: np.ndarray) -> float:
    return float(np.einsum("kn,kl,ln->", w, moment, w, optimize=True))


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0


def _bytes(module: Any) -> int:
    """Of the arrays of a pytree, each counted once."""
    arrays = {id(x): x for x in jax.tree.leaves(module) if eqx.is_array(x)}
    return sum(x.nbytes for x in arrays.values())
