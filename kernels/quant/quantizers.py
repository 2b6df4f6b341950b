"""Rounding to the nearest level, with the scale of least squared error.

A *grid* says what codes mean before the scale and finds scales for groups of weights. There are
two: `Levels` (codebooks, and integers around zero) and `Affine` (integers from a zero point). Both
work on float64 NumPy arrays of shape [..., n], where the n weights of the last axis share a scale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .scheme import Scheme

Array = np.ndarray[Any, np.dtype[Any]]

# Candidates, in the scale that brings the largest weight to the outer level. Also above 1: of 64
# normal weights the largest is expected before the last of 16 Lloyd-Max levels.
FACTORS = np.geomspace(1.75, 0.2, 48)
FINE = (0.97, 0.98, 0.99, 1.01, 1.02, 1.03)  # and then, in the best of them
REFITS = 3


@dataclasses.dataclass(frozen=True)
class Scale:
    """What turns codes into weights: scale [...], and zero points [...] or None."""

    scale: Array
    zero: Array | None = None

    def __getitem__(self, at: Any) -> Scale:
        return Scale(self.scale[at], None if self.zero is None else self.zero[at])


class Grid(Protocol):
    """Codes, their meaning, and scales that suit given weights."""

    def fit(self, w: Array, importance: Array | None = None, *, clip: bool = True) -> Scale:
        """Scales for weights [..., n], to minimise sum importance (w - rounded)^2 over n."""
        ...

    def round(self, w: Array, by: Scale) -> Array:
        """Codes uint8[..., n] of weights [..., n] by scales [...]."""
        ...

    def values(self, codes: Array, by: Scale) -> Array:
        """The weights that codes [..., n] stand for."""
        ...


class Levels:
    """Weights are scale * levels[code], for increasing levels."""

    def __init__(self, levels: Array):
        self.levels = np.asarray(levels, np.float64)
        self.borders = (self.levels[1:] + self.levels[:-1]) / 2
        steps = np.diff(self.levels)
        self.equidistant = len(steps) > 0 and np.allclose(steps, steps[0], rtol=1e-12)
        self.mirrored = np.allclose(self.levels, -self.levels[::-1])

    def fit(self, w: Array, importance: Array | None = None, *, clip: bool = True) -> Scale:
        sides = (1.0,) if self.mirrored else (1.0, -1.0)  # -8 to 7 may suit better as -7 to 8
        covering = [self._covering(w, side) for side in sides]
        if not clip:
            return Scale(min_size(covering))
        largest = np.abs(w).max(-1, initial=0.0) / np.abs(self.levels).max()
        searches = []
        for side, scale in zip(sides, covering, strict=True):  # the finer search may turn the sides
            search = _Search(self, w, importance, Scale(scale))
            for factor in FACTORS:
                search.offer(Scale(stored(side * factor * largest)))
            coarse = search.best.scale
            for factor in FINE:
                search.offer(Scale(stored(factor * coarse)))
            for _ in range(REFITS):
                search.refit(self.levels[self.round(w, search.best)])
            searches.append(search)
        for search in searches[1:]:
            searches[0].offer(search.best)
        return searches[0].best

    def _covering(self, w: Array, side: float) -> Array:
        """The smallest scale of a sign by which no weight lies beyond the outer levels."""
        low, high = (self.levels * side).min(), (self.levels * side).max()
        up = w.max(-1, initial=0.0) / (high if high > 0 else np.inf)
        down = w.min(-1, initial=0.0) / (low if low < 0 else -np.inf)
        return stored(side * np.maximum(up, down))

    def round(self, w: Array, by: Scale) -> Array:
        x = _divide(w, by.scale[..., None])
        if self.equidistant:
            x = np.rint((x - self.levels[0]) / (self.levels[1] - self.levels[0]))
            return np.clip(x, 0, len(self.levels) - 1).astype(np.uint8)
        codes = np.zeros(x.shape, np.uint8)
        for border in self.borders:  # quicker than a search for 16 levels
            codes += x > border
        return codes

    def values(self, codes: Array, by: Scale) -> Array:
        return self.levels[codes] * by.scale[..., None]


class Affine:
    """Weights are scale * (code - zero), zero an integer code, so that zero is exact."""

    def __init__(self, bits: int):
        self.last = 2**bits - 1

    def fit(self, w: Array, importance: Array | None = None, *, clip: bool = True) -> Scale:
        low, high = w.min(-1, initial=0.0), w.max(-1, initial=0.0)

        def within(shrink: float) -> Scale:
            scale = stored((high - low) * shrink / self.last)
            zero = np.clip(np.rint(_divide(-low * shrink, scale)), 0, self.last)
            return Scale(scale, zero.astype(np.uint8))

        search = _Search(self, w, importance, within(1.0))
        if clip:
            for factor in FACTORS[FACTORS < 1]:
                search.offer(within(factor))
            coarse = search.best
            assert coarse.zero is not None
            for factor, shift in itertools.product((*FINE, 1.0), (-1.0, 0.0, 1.0)):
                zero = np.clip(coarse.zero + shift, 0, self.last).astype(np.uint8)
                search.offer(Scale(stored(factor * coarse.scale), zero))
            for _ in range(REFITS):
                by = search.best
                assert by.zero is not None
                search.refit(self.round(w, by).astype(np.float64) - by.zero[..., None])
        return search.best

    def round(self, w: Array, by: Scale) -> Array:
        assert by.zero is not None
        x = np.rint(_divide(w, by.scale[..., None])) + by.zero[..., None]
        return np.clip(x, 0, self.last).astype(np.uint8)

    def values(self, codes: Array, by: Scale) -> Array:
        assert by.zero is not None
        return (codes.astype(np.float64) - by.zero[..., None]) * by.scale[..., None]


def grid_of(scheme: Scheme) -> Grid:
    """The grid of a scheme."""
    levels = scheme.levels()
    if levels is not None:
        return Levels(levels.astype(np.float32))
    half = 2 ** (scheme.bits - 1)
    return Levels(np.arange(-half, half)) if scheme.symmetric else Affine(scheme.bits)


def groups(inputs: int, group: int) -> Iterator[slice]:
    """The inputs that share scales; the last group may be short."""
    step = group or max(inputs, 1)
    for start in range(0, inputs, step):
        yield slice(start, min(start + step, inputs))


def fit_groups(
    grid: Grid, w: Array, group: int, importance: Array | None = None, *, clip: bool = True
) -> Scale:
    """Scales [N, groups] for weights [N, K]; importance: [K] or [N, K]."""
    importance = None if importance is None else np.broadcast_to(importance, w.shape)
    if w.shape[1] == 0:  # no inputs: one empty group, or none
        by = grid.fit(w)[:, None]
        return by[:, :0] if group else by
    parts = [
        grid.fit(w[:, at], None if importance is None else importance[:, at], clip=clip)
        for at in groups(w.shape[1], group)
    ]
    zeros = [p.zero for p in parts if p.zero is not None]
    scale = np.stack([p.scale for p in parts], axis=-1)
    return Scale(scale, np.stack(zeros, axis=-1) if zeros else None)


def round_groups(grid: Grid, w: Array, group: int, by: Scale) -> Array:
    """Codes uint8[N, K] of weights [N, K], by scales [N, groups]."""
    codes = np.zeros(w.shape, np.uint8)
    for g, at in enumerate(groups(w.shape[1], group)):
        codes[:, at] = grid.round(w[:, at], by[:, g])
    return codes


def values_of_groups(grid: Grid, codes: Array, group: int, by: Scale) -> Array:
    """Weights [N, K] that codes [N, K] stand for, by scales [N, groups]."""
    w = np.zeros(codes.shape)
    for g, at in enumerate(groups(codes.shape[1], group)):
        w[:, at] = grid.values(codes[:, at], by[:, g])
    return w


def min_size(scales: list[Array]) -> Array:
    """Elementwise the number of least absolute value."""
    stacked = np.stack(scales)
    return np.take_along_axis(stacked, np.abs(stacked).argmin(0)[None], 0)[0]


def stored(scale: Array) -> Array:
    """A scale as it will be stored, so that codes are found for that one."""
    return scale.astype(np.float32).astype(np.float64)


def _divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return a / np.where(b == 0, np.inf, b)


class _Search:
    """The best scale of those that were offered, group by group."""

    def __init__(self, grid: Grid, w: Array, importance: Array | None, first: Scale):
        self.grid, self.w, self.importance = grid, w, importance
        self.best, self.loss = first, self._loss(first)

    def _loss(self, by: Scale) -> Array:
        error = (self.w - self.grid.values(self.grid.round(self.w, by), by)) ** 2
        return (error if self.importance is None else error * self.importance).sum(-1)

    def offer(self, new: Scale) -> None:
        """Take the new scales where they are better."""
        loss = self._loss(new)
        better, old = loss < self.loss, self.best
        zero = None
        if old.zero is not None and new.zero is not None:
            zero = np.where(better, new.zero, old.zero)
        self.best = Scale(np.where(better, new.scale, old.scale), zero)
        self.loss = np.where(better, loss, self.loss)

    def refit(self, c: Array) -> None:
        """Offer the scale of least squares for the codes of the best one, which mean c [..., n]."""
        m = c if self.importance is None else c * self.importance
        scale = stored(_divide((m * self.w).sum(-1), (m * c).sum(-1)))
        self.offer(Scale(scale, self.best.zero))
