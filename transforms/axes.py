"""Arrays over paths: a value carries the choices it depends on as leading dimensions.

Every site with several values opens an *axis*, counted in program order. Neighbouring axes are kept
flat in one dimension, a *block* `[start, stop)`: an operation splits blocks only as far as its
operands differ. What depends on twenty binary sites is thus an array of rank one and 2^20 entries,
not of rank twenty, which XLA compiles slowly; what depends on one site has two entries.

Sums stay unevaluated as long as they can: `log p(z1) + log p(z2 | z1) + ...` is a list of small
terms until something that is not linear needs their sum.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .arrays import repeated

Block = tuple[int, int]  # axes start, ..., stop - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """An array with one leading dimension for every block of axes that it depends on."""

    value: Any
    blocks: tuple[Block, ...] = ()


class Sum:
    """A value: the sum of terms that depend on different blocks."""

    def __init__(self, terms: list[Spread]):
        self.terms = terms
        self._dense: Spread | None = None

    def dense(self, axes: Axes) -> Spread:
        """The sum itself, over all axes that any term depends on."""
        if self._dense is None:
            last = sorted(self.terms, key=lambda t: t.blocks[-1:])
            self._dense = functools.reduce(axes.add, last)
        return self._dense

    def free(self) -> bool:
        """Whether it depends on no axis."""
        return not any(term.blocks for term in self.terms)


@dataclasses.dataclass
class Axes:
    """The sizes of the axes opened so far, and arithmetic over them."""

    sizes: list[int] = dataclasses.field(default_factory=list)

    def size(self, block: Block) -> int:
        """How many paths a block has."""
        return math.prod(self.sizes[slice(*block)])

    def apply(
        self, function: Callable[..., list[Any]], *operands: Spread, repeat: bool = False
    ) -> list[Spread]:
        """A function of one path's values, on all paths that the operands depend on.

        With `repeat` floats are repeated for all of them first: a derivative then sums over paths
        once, not once for every operation inside the function.
        """
        segments = _segments([b for x in operands for b in x.blocks])
        if repeat:
            operands = tuple(self._repeated(x, segments) for x in operands)
        for segment in reversed(segments):
            axes = tuple(0 if _covers(x.blocks, segment) else None for x in operands)
            function = jax.vmap(function, in_axes=axes, axis_size=self.size(segment))
        outs = function(*(self._split(x, segments) for x in operands))
        return [self.merged(x, segments) for x in outs]

    def each(self, function: Callable[..., list[Any]], *operands: Spread) -> list[Spread]:
        """As `apply`, with each output on the axes of those operands alone that it needs."""
        traced = jax.make_jaxpr(function)(*(_first_path(x) for x in operands))
        outs = []
        for one, needed in _jax.outputs_apart(traced):
            outs += self.apply(one, *(x for x, n in zip(operands, needed, strict=True) if n))
        return outs

    def add(self, a: Spread, b: Spread) -> Spread:
        """The sum of two spreads."""
        return self.apply(lambda x, y: [x + y], a, b)[0]

    def total(self, sums: list[tuple[Sum, int]]) -> Sum:
        """A signed sum of sums: terms over the same blocks are added, others stay apart."""
        by_blocks: dict[tuple[Block, ...], Spread] = {}
        for one, sign in sums:
            for term in one.terms:
                signed = term if sign > 0 else Spread(-term.value, term.blocks)
                known = by_blocks.get(term.blocks)
                by_blocks[term.blocks] = signed if known is None else self.add(known, signed)
        return Sum(list(by_blocks.values()))

    def contract(self, weights: list[Spread], x: Spread) -> Spread:
        """Multiply by the weights of the last axes and sum over them.

        Args:
            weights: one for each of the last axes of x, on their own axis and earlier ones.
            x: what to multiply.
        """
        joint = weights[0]
        for more in weights[1:]:
            (joint,) = self.apply(lambda a, b: [a * b], joint, more)
        (y,) = self.apply(lambda w, x: [w.astype(x.dtype) * x], joint, x)
        (start, stop), at = y.blocks[-1], len(y.blocks) - 1
        axis, shape = stop - len(weights), y.value.shape
        before, summed = (start, axis), (axis, stop)
        apart = (*shape[:at], self.size(before), self.size(summed), *shape[at + 1 :])
        left = y.value.reshape(apart).sum(at + 1)
        if start < axis:
            return Spread(left, (*y.blocks[:-1], before))
        return Spread(left.reshape((*shape[:at], *shape[at + 1 :])), y.blocks[:-1])

    def first(self, axis: int, x: Spread) -> Spread:
        """A value that does not depend on an axis, without it."""
        at = next(i for i, (start, stop) in enumerate(x.blocks) if start <= axis < stop)
        start, stop = x.blocks[at]
        parts = [(start, axis), (axis, axis + 1), (axis + 1, stop)]
        dims = [self.size(part) for part in parts]
        shape = x.value.shape
        left = x.value.reshape((*shape[:at], *dims, *shape[at + 1 :]))
        left = jax.lax.index_in_dim(left, 0, at + 1, keepdims=False)
        segments = [*x.blocks[:at], parts[0], parts[2], *x.blocks[at + 1 :]]
        here = [s for s in segments if s[0] < s[1]]
        sizes = [self.size(s) for s in here]
        return self.merged(left.reshape((*sizes, *shape[len(x.blocks) :])), here)

    def sum_over(self, axis: int, weights: Spread, x: Spread) -> Spread:
        """Multiply by weights and sum over one axis, wherever it lies."""
        (y,) = self.apply(lambda w, x: [w.astype(x.dtype) * x], weights, x)
        at = next(i for i, (start, stop) in enumerate(y.blocks) if start <= axis < stop)
        start, stop = y.blocks[at]
        parts = [(start, axis), (axis, axis + 1), (axis + 1, stop)]
        dims = [self.size(part) for part in parts]
        left = y.value.reshape((*y.value.shape[:at], *dims, *y.value.shape[at + 1 :])).sum(at + 1)
        segments = [*y.blocks[:at], parts[0], parts[2], *y.blocks[at + 1 :]]
        here = [s for s in segments if s[0] < s[1]]
        shape = [self.size(s) for s in here]
        return self.merged(left.reshape((*shape, *x.value.shape[len(x.blocks) :])), here)

    def merged(self, value: Any, segments: list[Block]) -> Spread:
        """A spread from an array with a leading dimension for every segment."""
        if not segments:
            return Spread(value)
        blocks = _joined(segments)
        dims = [self.size(b) for b in blocks]
        return Spread(value.reshape((*dims, *value.shape[len(segments) :])), blocks)

    def _repeated(self, x: Spread, segments: list[Block]) -> Spread:
        if not segments or not jnp.issubdtype(jnp.result_type(x.value), jnp.floating):
            return x
        dims = [self.size(s) for s in segments]
        own = [n if _covers(x.blocks, s) else 1 for n, s in zip(dims, segments, strict=True)]
        shape = jnp.shape(x.value)[len(x.blocks) :]
        full = jnp.reshape(x.value, (*own, *shape))
        for axis, (n, m) in enumerate(zip(dims, own, strict=True)):
            full = full if m == n else repeated(full, n, axis)
        return self.merged(full, segments)

    def _split(self, x: Spread, segments: list[Block]) -> Any:
        if not x.blocks:
            return x.value
        dims = [self.size(s) for s in segments if _covers(x.blocks, s)]
        return x.value.reshape((*dims, *x.value.shape[len(x.blocks) :]))


def _first_path(x: Spread) -> Any:
    return x.value[(0,) * len(x.blocks)] if x.blocks else x.value


def _segments(blocks: list[Block]) -> list[Block]:
    """The coarsest refinement of blocks: each lies inside or outside every segment."""
    cuts = sorted({end for block in blocks for end in block})
    pieces = itertools.pairwise(cuts)
    return [p for p in pieces if any(_inside(p, block) for block in blocks)]


def _inside(piece: Block, block: Block) -> bool:
    return block[0] <= piece[0] and piece[1] <= block[1]


def _covers(blocks: tuple[Block, ...], segment: Block) -> bool:
    return any(_inside(segment, block) for block in blocks)


def _joined(segments: list[Block]) -> tuple[Block, ...]:
    joined: list[Block] = []
    for start, stop in segments:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)
