"""How the axes of an equation's operands become axes of its result.

`axis_map(eqn)` says for each operand which of its axes is which axis of the result, element by
element: entry i of the result along the one needs entry i of the operand along the other alone.
An axis that is missing is mixed: summed, sorted, contracted, sliced, or not understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..kernels.frame.primitives import OWNERS as KERNELS
from . import _jax


class Along(NamedTuple):
    """An axis, and which entries along it are meant: order 0 the same one, 1 that and earlier
    ones, -1 that and later ones.
    """

    axis: int
    order: int = 0


AxisMap = dict[int, Along]

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not or polygamma
    population_count pow random_gamma_grad real reduce_precision regularized_incomplete_beta rem
    round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical
    sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
    assume_smooth declare_biased density_estimate""".split()
)
REDUCTIONS = frozenset(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
    argmin""".split()
)
SCANS = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
# batches of matrices, the last two axes mixed
MATRICES = frozenset(
    """cholesky cholesky_update eig eigh lu qr geqrf householder_product svd schur""".split()
)


def axis_map(eqn: _jax.JaxprEqn) -> list[AxisMap]:
    """One map for each operand; results, if there are several, share it."""
    name = eqn.primitive.name
    ins = [_jax.struct(v).shape for v in eqn.invars]
    out = _jax.struct(eqn.outvars[0]).shape
    if name in ELEMENTWISE and len(eqn.outvars) == 1:
        return [_same(s, out) for s in ins]
    if name in REDUCTIONS:
        return [_kept(s, eqn.params["axes"]) for s in ins]
    if name in SCANS:
        order = -1 if eqn.params["reverse"] else 1
        return [_same(s, out) | {eqn.params["axis"]: Along(eqn.params["axis"], order)} for s in ins]
    if name in MATRICES:
        return [_where(s, lambda i: i < len(ins[0]) - 2) for s in ins]
    if eqn.primitive in KERNELS:
        return _kernel(eqn.params, ins, out)
    if rule := RULES.get(name):
        return rule(eqn.params, ins, out)
    return [{} for _ in ins]


def _same(shape: tuple[int, ...], out: tuple[int, ...]) -> AxisMap:
    if len(shape) != len(out):
        return {}
    return {i: Along(i) for i, (a, b) in enumerate(zip(shape, out, strict=True)) if a == b}


def _kept(shape: tuple[int, ...], gone: Any) -> AxisMap:
    """The axes that are not gone, renumbered."""
    kept = [i for i in range(len(shape)) if i not in gone]
    return {i: Along(j) for j, i in enumerate(kept)}


def _where(shape: tuple[int, ...], keep: Callable[[int], bool]) -> AxisMap:
    return {i: Along(i) for i in range(len(shape)) if keep(i)}


def _broadcast(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    to = params["broadcast_dimensions"]
    first = {i: Along(to[i]) for i, n in enumerate(ins[0]) if n == out[to[i]]}
    return [first, *({} for _ in ins[1:])]


def _reshape(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    """An axis survives where the same number of entries stands before it, and it has its size."""
    if params.get("dimensions") is not None:
        return [{} for _ in ins]
    before = {(math.prod(out[:j]), n): j for j, n in enumerate(out) if n > 1}
    found = {}
    for i, n in enumerate(ins[0]):
        if n > 1 and (j := before.get((math.prod(ins[0][:i]), n))) is not None:
            found[i] = Along(j)
    return [found, *({} for _ in ins[1:])]


def _transpose(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [{i: Along(j) for j, i in enumerate(params["permutation"])}]


def _dot_general(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    (contract_l, contract_r), (batch_l, batch_r) = params["dimension_numbers"]
    left = {i: Along(j) for j, i in enumerate(batch_l)}
    right = {i: Along(j) for j, i in enumerate(batch_r)}
    at = len(batch_l)
    for of, contract, batch, shape in (
        (left, contract_l, batch_l, ins[0]),
        (right, contract_r, batch_r, ins[1]),
    ):
        for i in range(len(shape)):
            if i not in contract and i not in batch:
                of[i] = Along(at)
                at += 1
    return [left, right]


def _concatenate(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(s, lambda i: i != params["dimension"]) for s in ins]


def _stack(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [{i: Along(i + (i >= params["axis"])) for i in range(len(s))} for s in ins]


def _unstack(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_kept(ins[0], (params["axis"],))]


def _tile(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(ins[0], lambda i: params["reps"][i] == 1)]


def _reduce(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_kept(s, params["dimensions"]) for s in ins]  # initial values have no axes


def _split(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(s, lambda i: i != params["axis"]) for s in ins]


def _slice(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_same(ins[0], out)]


def _dynamic_slice(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_same(ins[0], out), *({} for _ in ins[1:])]


def _dynamic_update_slice(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_same(ins[0], out), _same(ins[1], out), *({} for _ in ins[2:])]


def _sort(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(s, lambda i: i != params["dimension"]) for s in ins]


def _top_k(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    axis = params.get("axis", len(out) - 1) % len(out)
    return [_where(ins[0], lambda i: i != axis)]


def _pad(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(ins[0], lambda i: params["padding_config"][i] == (0, 0, 0)), {}]


def _rev(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(ins[0], lambda i: i not in params["dimensions"])]


def _squeeze(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_kept(ins[0], params["dimensions"])]


def _gather(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    batch = [j for j in range(len(out)) if j not in numbers.offset_dims]
    indices = {i: Along(j) for i, j in enumerate(batch)}
    operand: AxisMap = {}
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offset = [i for i in range(len(ins[0])) if i not in gone]
    for i, j in zip(offset, numbers.offset_dims, strict=True):
        if sizes[i] == ins[0][i]:
            operand[i] = Along(j)
    for i, k in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        operand[i] = Along(batch[k])
    return [operand, indices]


def _scatter(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    """An entry of the operand keeps its place; updates may go anywhere on a scattered axis."""
    numbers = params["dimension_numbers"]
    windows = numbers.update_window_dims
    places = [j for j in range(len(ins[2])) if j not in windows]  # the axes of the indices
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    offset = [i for i in range(len(out)) if i not in gone]
    indices: AxisMap = {}
    updates: AxisMap = {}
    for i, j in zip(offset, windows, strict=True):
        if ins[2][j] == out[i]:
            updates[j] = Along(i)
    for i, k in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        indices[k] = updates[places[k]] = Along(i)
    return [_same(ins[0], out), indices, updates]


def _triangular_solve(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    """Systems with one matrix are solved side by side."""
    n = len(out)
    mixed = n - 2 if params["left_side"] else n - 1
    return [_where(ins[0], lambda i: i < n - 2), _where(ins[1], lambda i: i != mixed)]


def _tridiagonal_solve(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    n = len(out)
    diagonals = [_where(s, lambda i: i < n - 2) for s in ins[:3]]
    return [*diagonals, _where(ins[3], lambda i: i != n - 2)]


def _pivots(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(ins[0], lambda i: i < len(out) - 1)]


def _fft(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    return [_where(ins[0], lambda i: i < len(out) - len(params["fft_lengths"]))]


def _window(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    each = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        strict=True,
    )
    plain = [x == (1, 1, (0, 0), 1) for x in each]
    return [_where(s, plain.__getitem__) for s in ins]  # initial values have no axes


def _conv(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    if params["batch_group_count"] != 1:
        return [{}, {}]
    numbers = params["dimension_numbers"]
    return [{numbers.lhs_spec[0]: Along(numbers.out_spec[0])}, {}]


def _kernel(params: Any, ins: Any, out: Any) -> list[AxisMap]:
    """The calls of a batch are apart, unless they are summed; everything inside one is mixed."""
    if any(params.get("summed", ())):
        return [{} for _ in ins]
    return [{0: Along(0)} if has else {} for has in params["batched"]]


RULES: dict[str, Callable[[Any, Any, Any], list[AxisMap]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _fft,
    "gather": _gather,
    "lu_pivots_to_permutation": _pivots,
    "pad": _pad,
    "reduce": _reduce,
    **dict.fromkeys(map("reduce_window".__add__, ("", "_max", "_min", "_sum")), _window),
    "reshape": _reshape,
    "rev": _rev,
    **dict.fromkeys(map("scatter".__add__, ("", "-add", "-sub", "-mul", "-min", "-max")), _scatter),
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "triangular_solve": _triangular_solve,
    "tridiagonal_solve": _tridiagonal_solve,
    "unstack": _unstack,
}
