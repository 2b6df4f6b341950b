"""The Pallas kernels on a real GPU (Hopper or newer): right first, then how fast.

    python benchmarks/kernels_gpu.py [--quick] [--save | --out FILE]

Every kernel is held against float64 on the host by the rule of the tests, error(kernel) <= 2 *
error(plain form) + tiny; one that is wrong is reported, not timed, and makes the script fail. The
data have both signs, so that sums cancel: tiny is in units of rounding of the sum of the absolute
values of their terms, since that is what float32 entries and sums of them can promise.
Times are medians of interleaved rounds on the device, beside XLA's form, with the kernel's share
of the limit: bytes that have to be moved over the memory's bandwidth, or arithmetic over the peak
of the units used. Without such a GPU it says so and ends.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import Report

from varax import kernels
from varax.kernels.gp import covariance_matmul
from varax.kernels.gp.profiles import covariance
from varax.kernels.mp import hmm_filter
from varax.kernels.pallas import capability
from varax.kernels.quant.packed import PackedWeights
from varax.kernels.quant.product import quantized_matmul

BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, by data sheet
FLOAT32 = {"H100": 67e12, "H200": 67e12}  # operations a second, no tensor cores
TINY = 16 * float(np.finfo(np.float32).eps)


def covariance_entries(quick: bool) -> list[Any]:
    """(operation, what, size, function, sums of absolute terms, arrays, bytes, operations)."""
    entries = []
    for kind, n, d, k in [("matern52", 10_000, 3, 1), ("rbf", 100_000, 2, 1)][: 1 if quick else 2]:
        rng = np.random.default_rng(0)
        x, v = rng.standard_normal((n, d)), rng.standard_normal((n, k))

        def value(x: Any, v: Any, kind: str = kind) -> Any:
            return covariance_matmul(kind, x, x, v, length_scale=0.7)

        def gradient(x: Any, v: Any, value: Any = value) -> Any:
            return jax.grad(lambda x, v: jnp.sum(value(x, v) ** 2), (0, 1))(x, v)

        def terms(x: Any, v: Any, kind: str = kind) -> Any:
            return absolute_terms(kind, x, v)

        size, work = f"{kind} n={n} d={d} k={k}", n * n * (3 * d + 2 * k + 12)
        operation, given = "covariance_matmul", (x, v)
        value_terms = lambda x, v, terms=terms: terms(x, v)[0]  # noqa: E731
        gradient_terms = lambda x, v, terms=terms: terms(x, v)[1:]  # noqa: E731
        entries += [
            (operation, "value", size, value, value_terms, given, 4 * n * (d + 2), work),
            (operation, "gradient", size, gradient, gradient_terms, given, None, None),
        ]
    return entries


def absolute_terms(kind: str, x: Any, v: Any, chunk: int = 100) -> tuple[Any, Any, Any]:
    """Sums of the absolute values of what pairs of points add: to K v, and to |K v|^2's gradient.

    That in x_i is sum_j (c_i . v_j + c_j . v_i) dK_ij / dx_i, that in v is K^T c, for c = 2 K v.
    """

    def k(a: Any, b: Any) -> Any:
        return covariance(kind, a, b, 0.7, 1.0)

    def over(rows: Any, f: Callable[..., Any]) -> Any:
        split = [r.reshape(-1, chunk, r.shape[1]) for r in rows]
        found = jax.lax.map(lambda part: f(*part), tuple(split))
        return found.reshape(x.shape[0], -1)

    def matrix(rows: Any) -> Any:
        return k(rows[:, None], x[None])

    c = 2 * abs(over((x,), lambda rows: matrix(rows) @ v))

    def of_x(rows: Any, v_rows: Any, c_rows: Any) -> Any:
        slopes = jax.vmap(jax.vmap(jax.grad(k), (None, 0)), (0, None))(rows, x)
        weights = c_rows @ abs(v).T + abs(v_rows) @ c.T
        return jnp.einsum("ij,ijd->id", weights, abs(slopes))

    return (
        over((x,), lambda rows: matrix(rows) @ abs(v)),
        over((x, v, c), of_x),
        over((x,), lambda rows: matrix(rows) @ c),
    )


def quantized_entries(quick: bool) -> list[Any]:
    entries = []
    size = 1024 if quick else 4096
    rng = np.random.default_rng(0)
    for bits, activations in ((4, "bfloat16"), (8, "bfloat16"), (4, "float32"), (8, "int8")):
        codes = rng.integers(0, 2**bits, (size, size))
        scales = jnp.asarray(0.5 + rng.random((size // 128, size)), jnp.float32)
        weights = PackedWeights.from_codes(codes, scales, bits=bits, group=128)
        for rows in (1, 8, 64):

            def f(x: Any, weights: Any = weights, activations: str = activations) -> Any:
                return quantized_matmul(x, weights, activations)

            name = f"w{bits} {activations} M={rows} K=N={size}"
            moved = size * size * bits / 8
            x = rng.standard_normal((rows, size))
            terms = functools.partial(absolute_products, weights)
            entries.append(("quantized_matmul", "value", name, f, terms, (x,), moved, None))
    return entries


def hmm_entries(quick: bool) -> list[Any]:
    """Batches of chains: evidence and filtered probabilities, and smoothed ones as a gradient."""
    entries = []
    for chains, steps, states in [(256, 200, 3), (4096, 1000, 4), (4096, 1000, 8)][
        : 1 if quick else 3
    ]:
        rng = np.random.default_rng(0)
        arrays = (
            rng.dirichlet(np.ones(states)),
            rng.dirichlet(np.ones(states), size=states),
            rng.standard_normal((chains, steps, states)),
        )
        value = jax.vmap(hmm_filter, (None, None, 0))

        def smoothed(initial: Any, transitions: Any, logs: Any, value: Any = value) -> Any:
            return jax.grad(lambda logs: value(initial, transitions, logs)[0].sum())(logs)

        def terms(initial: Any, transitions: Any, logs: Any) -> Any:
            return abs(logs).max(2).sum(1) + logs.shape[1], jnp.ones_like(logs)

        def probabilities(initial: Any, transitions: Any, logs: Any) -> Any:
            return jnp.ones_like(logs)

        size, moved = f"B={chains} N={steps} K={states}", 4 * chains * steps * (2 * states)
        entries += [
            ("hmm_filter", "value", size, value, terms, arrays, moved, None),
            ("hmm_filter", "gradient", size, smoothed, probabilities, arrays, None, None),
        ]
    return entries


def absolute_products(weights: PackedWeights, x: Any) -> Any:
    return abs(x) @ abs(weights.dequantize())


def arrays_of(arrays: Any, dtype: Any) -> Any:
    return [jnp.asarray(a, dtype) for a in arrays]


def leaves(out: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(out)]


def is_right(
    f: Callable[..., Any], terms: Any, forms: dict[str, Callable[..., Any]], arrays: Any
) -> str | None:
    """What is wrong with the kernel, or None. The exact result is XLA's, in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), kernels.using("xla"):
        exact = leaves(jax.jit(f)(*arrays_of(arrays, jnp.float64)))
        sizes = leaves(jax.jit(terms)(*arrays_of(arrays, jnp.float64)))
    slow, fast = (
        leaves(forms[name](*arrays_of(arrays, jnp.float32))) for name in ("xla", "pallas")
    )
    for t, s, q, size in zip(exact, slow, fast, sizes, strict=True):
        allowed = 2 * abs(s - t).max() + TINY * size.max()
        if not abs(q - t).max() <= allowed:
            return f"WRONG: error {abs(q - t).max():.3g}, allowed {allowed:.3g}"
    return None


def compiled(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(*arrays: Any) -> Any:
        with kernels.using(name):
            return jitted(*arrays)

    jitted = jax.jit(f)
    return run


def times(forms: dict[str, Callable[..., Any]], arrays: Any, rounds: int) -> dict[str, float]:
    """Seconds a call, medians over interleaved rounds of calls that are enqueued together."""
    arrays = [jax.device_put(a) for a in arrays_of(arrays, jnp.float32)]
    found: dict[str, list[float]] = {name: [] for name in forms}
    for f in forms.values():
        jax.block_until_ready(f(*arrays))
    for _ in range(rounds):
        for name, f in forms.items():
            start = time.perf_counter()
            jax.block_until_ready([f(*arrays) for _ in range(10)])
            found[name].append((time.perf_counter() - start) / 10)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    report = Report("kernels_gpu", __doc__)
    quick = report.quick
    if reason := capability.too_old():
        report.say(f"no GPU for these kernels: {reason}")
        return 0
    device = jax.devices("cuda")[0]
    report.say(f"{device.device_kind}, compute capability {device.compute_capability}")
    chip = next((name for name in BANDWIDTH if name in device.device_kind), None)
    failures = 0
    for operation, what, size, f, terms, arrays, moved, work in [
        *covariance_entries(quick),
        *quantized_entries(quick),
        *hmm_entries(quick),
    ]:
        forms = {name: compiled(f, name) for name in ("pallas", "xla")}
        line = f"{operation:18} {what:9} {size:34}"
        try:
            wrong = is_right(f, terms, forms, arrays)
        except Exception as error:  # a kernel that does not compile is a failure, not the end
            wrong = f"FAILED: {type(error).__name__}: {str(error)[:200]}"
        if wrong:
            failures += 1
            report.say(f"{line} {wrong}")
            continue
        took = times(forms, arrays, 3 if quick else 15)
        line += f" pallas {1e6 * took['pallas']:9.1f} us   xla {1e6 * took['xla']:9.1f} us"
        line += f"   ratio {took['xla'] / took['pallas']:6.2f}"
        if chip and moved:
            limit = max(moved / BANDWIDTH[chip], (work or 0) / FLOAT32[chip])
            line += f"   {100 * limit / took['pallas']:5.1f} % of the limit"
        report.say(line)
    report.close()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
