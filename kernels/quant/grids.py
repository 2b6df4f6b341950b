"""Grids for normal weights: Lloyd-Max and the best uniform one.

    lloyd_max(16)            # 16 levels, increasing; distortion(lloyd_max(16)) is 0.00950
    uniform(16)              # 16 equidistant levels, 0.01154

Weights are near to normal within a group, and after a randomised Hadamard rotation (`rotate`) they
are so by the central limit theorem. What a grid costs is then the distortion E (x - q(x))^2 of a
unit normal x that is rounded to the nearest level. Everything here is float64 NumPy.
NF4, which starts from the same thought but is not of least distortion, is in `packed`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.linalg import solve_banded
from scipy.special import ndtr, ndtri

from ..errors import KernelValueError

Array = np.ndarray[Any, np.dtype[Any]]


def _pdf(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _cells(grid: Array) -> tuple[Array, Array, Array]:
    """Borders of the cells (first -inf, last inf), their masses, and their first moments."""
    borders = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    upper = np.where(borders > 0, ndtr(-borders), 0.0)  # by the smaller tail: no cancellation
    lower = np.where(borders > 0, 0.0, ndtr(borders))
    mass = np.where(
        borders[:-1] > 0,
        upper[:-1] - upper[1:],
        np.where(borders[1:] <= 0, lower[1:] - lower[:-1], 1.0 - lower[:-1] - upper[1:]),
    )
    density = _pdf(borders)
    return borders, mass, density[:-1] - density[1:]


def distortion(grid: Any) -> float:
    """E (x - q(x))^2 for x ~ N(0, 1) and q(x) the nearest of the levels `grid`.

    Exact: E x^2 - 2 E x q(x) + E q(x)^2, with the cells' masses and first moments in closed form.
    """
    levels = np.sort(np.asarray(grid, np.float64))
    _, mass, moment = _cells(levels)
    return float(1.0 - 2.0 * levels @ moment + levels**2 @ mass)


def _checked(levels: int) -> int:
    if levels < 1 or levels != int(levels):
        raise KernelValueError(
            "A grid needs a whole number of levels.", expected="at least 1", got=levels
        )
    return int(levels)


@functools.lru_cache
def _lloyd_max(levels: int) -> Array:
    # Panter and Dite (1951): the density of optimal levels goes as the cube root of that of x,
    # here N(0, 3). From there Newton's method on c - centroid(c) = 0 needs a few steps, where
    # Lloyd's own iteration needs thousands at 256 levels.
    grid = np.sqrt(3.0) * ndtri((np.arange(levels) + 0.5) / levels)
    for _ in range(100):
        borders, mass, moment = _cells(grid)
        centroid = moment / mass
        # d centroid_i / d border = +-pdf(border) (border - centroid_i) / mass_i; a border is the
        # mean of its two levels, so the Jacobian is tridiagonal
        inner, density = borders[1:-1], _pdf(borders[1:-1])
        right = density * (inner - centroid[:-1]) / mass[:-1] / 2  # of c_i in its upper border
        left = density * (centroid[1:] - inner) / mass[1:] / 2  # of c_i in its lower border
        diagonal = 1.0 - np.append(right, 0.0) - np.append(0.0, left)
        bands = [np.append(0.0, -right), diagonal, np.append(-left, 0.0)]
        step = solve_banded((1, 1), bands, grid - centroid)
        grid = grid - step
        grid = (grid - grid[::-1]) / 2  # the optimum is symmetric
        if np.abs(step).max() < 1e-10:  # quadratic convergence: the next would be at rounding
            break
    grid.flags.writeable = False
    return grid


def lloyd_max(levels: int) -> Array:
    """The levels of least distortion for N(0, 1): each is the mean of its own cell.

    Max (1960), Quantizing for minimum distortion; Lloyd (1982). Unique, as the density is
    log-concave (Fleischer 1964).

    Args:
        levels: how many, at least 1; also no power of two.

    Returns:
        float64[levels], increasing, symmetric about zero. Not writable: it is remembered.

    Raises:
        KernelValueError: fewer than one level.
    """
    return _lloyd_max(_checked(levels))


@functools.lru_cache
def _uniform(levels: int) -> Array:
    at = np.arange(levels) - (levels - 1) / 2  # levels of step 1
    if levels == 1:
        return at
    # distortion is unimodal in the step; golden section to a relative 1e-8 (its square in value)
    golden = (np.sqrt(5.0) - 1) / 2
    low, high = 1e-3, 4.0
    while high - low > 1e-8 * high:
        third = golden * (high - low)
        if distortion(at * (high - third)) < distortion(at * (low + third)):
            high = low + third
        else:
            low = high - third
    grid = at * (low + high) / 2
    grid.flags.writeable = False
    return grid


def uniform(levels: int) -> Array:
    """The equidistant levels of least distortion for N(0, 1) (Max 1960, table 2).

    Args and errors as of `lloyd_max`.
    """
    return _uniform(_checked(levels))
