"""Products with packed weights: what every implementation is tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernel_checks import Case

from varax.kernels.quant import NF4, Outliers, PackedWeights, quantized_matmul
from varax.kernels.quant.layout import group_count
from varax.kernels.quant.outliers import outlier_matmul


def weights_of(
    rng: np.random.Generator, shape: tuple[int, int], bits: int, group: int, batch: tuple = ()
) -> dict[str, np.ndarray]:
    """Codes, scales, zeros and a codebook to choose from."""
    groups = group_count(shape[0], group)
    return {
        "codes": rng.integers(0, 2**bits, (*batch, *shape)).astype(np.int32),
        "scales": rng.uniform(0.5, 1.5, (*batch, groups, shape[1])) / 2**bits,
        "zeros": rng.integers(0, 2**bits, (*batch, groups, shape[1])).astype(np.int32),
        "codebook": np.sort(rng.standard_normal(2**bits)) if bits != 4 else np.array(NF4),
    }


def product(bits: int, group: int, activations: str, kind: str) -> Any:
    """`quantized_matmul` as a function of arrays."""

    def f(x: Any, codes: Any, scales: Any, more: Any = None) -> Any:
        given = {} if kind == "symmetric" else {kind: more}
        weights = PackedWeights.from_codes(codes, scales, bits=bits, group=group, **given)
        return quantized_matmul(x, weights, activations)

    return f


def case(
    name: str,
    rows: tuple[int, ...],
    shape: tuple[int, int],
    bits: int,
    group: int,
    activations: str = "float32",
    kind: str = "symmetric",
    axes: Any = None,
    size: float = 1.0,
    batch: tuple = (),
) -> Case:
    def arrays(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        w = weights_of(rng, shape, bits, group, batch)
        x = rng.standard_normal(rows) * size
        return (x, w["codes"], w["scales"], *([] if kind == "symmetric" else [w[kind]]))

    function = product(bits, group, activations, kind)
    return Case(f"{name}-w{bits}-{activations}", "quantized_matmul", function, arrays, axes)


def outliers(rows: int, shape: tuple[int, int], count: int, axes: Any = None) -> Case:
    def arrays(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        starts = np.sort(rng.integers(0, count + 1, shape[1] + 1))
        starts[[0, -1]] = 0, count
        places = rng.integers(0, shape[0], count)
        x = rng.standard_normal((*(() if axes is None else (3,)), rows, shape[0]))
        return x, starts.astype(np.int32), places.astype(np.int32), rng.standard_normal(count)

    def f(x: Any, starts: Any, places: Any, values: Any) -> Any:
        return outlier_matmul(x, Outliers(starts, places, values))

    name = f"{rows}x{shape}x{count}" + ("" if axes is None else "-vmap")
    return Case(name, "outlier_matmul", f, arrays, axes)


CASES = [
    case("odd", (3, 20), (20, 7), 8, 32),
    case("odd", (9, 200), (200, 33), 4, 64, kind="zeros"),
    case("odd", (2, 100), (100, 17), 3, 0, kind="codebook"),
    case("odd", (1, 130), (130, 70), 2, 128, kind="zeros"),
    case("odd", (70, 96), (96, 18), 4, 32, kind="codebook"),
    case("odd", (9, 200), (200, 33), 8, 64, "int8", kind="zeros"),
    case("odd", (7, 100), (100, 17), 3, 0, "int8"),
    case("odd", (1, 130), (130, 70), 4, 128, "int8", kind="codebook"),
    case("odd", (70, 96), (96, 18), 2, 32, "int8", kind="zeros"),
    case("rounded", (5, 64), (64, 16), 4, 64, "bfloat16"),
    case("ones", (1, 1), (1, 1), 8, 0),
    case("ones", (1, 1), (1, 1), 4, 0, "int8"),
    case("vector", (64,), (64, 5), 4, 32, "int8"),
    case("axes", (2, 3, 64), (64, 5), 4, 32),
    case("no-rows", (0, 64), (64, 5), 4, 32, "int8"),
    case("no-inputs", (3, 0), (0, 5), 4, 0),
    case("no-outputs", (3, 64), (64, 0), 4, 32, "int8"),
    case("large", (3, 64), (64, 16), 4, 32, "int8", size=1e30),
    case("small", (3, 64), (64, 16), 8, 32, "int8", size=1e-30),
    case("vmap", (3, 64, 4), (64, 16), 4, 32, axes=(2, None, None)),
    case("vmap", (3, 64, 4), (64, 16), 8, 32, "int8", axes=(2, None, None)),
    case("vmap-weights", (2, 64), (64, 20), 3, 32, axes=(None, 0, 0, 0), kind="zeros", batch=(3,)),
    case("vmap-all", (3, 2, 64), (64, 20), 4, 32, "int8", axes=(0, 0, 0), batch=(3,)),
    outliers(3, (20, 7), 15),
    outliers(1, (5, 5), 0),
    outliers(2, (20, 7), 11, axes=(0, None, None, None)),
]
