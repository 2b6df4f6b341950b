"""Means and spreads of gradient estimates, and their tables (variance.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import Report
from jax.flatten_util import ravel_pytree
from scipy.special import ndtri

import varax as vx

jax.config.update("jax_enable_x64", True)  # so that rounding is no part of what is compared

FALSE_ALARM = 1e-6  # a table marks a sound estimate with `!` this often
ROUNDING = 1e-9  # of the largest coordinate: what rounding may add to a mean
KEYS = jax.random.split(jax.random.key(5), 1000)  # of single estimates


@dataclasses.dataclass
class Spread:
    """Moments of one estimate of a vector, from n independent ones.

    mean, sd: [D]. z: the largest |mean - exact| / (sd / sqrt(n)), less what is rounding.
    """

    mean: np.ndarray
    sd: np.ndarray
    exact: np.ndarray
    n: int

    @property
    def rms(self) -> float:
        return float(np.sqrt((self.sd**2).mean()))

    @property
    def relative(self) -> float:
        return self.rms / float(np.sqrt((self.exact**2).mean()))

    @property
    def z(self) -> float:
        away = np.abs(self.mean - self.exact) - ROUNDING * np.abs(self.exact).max()
        error = np.maximum(self.sd / math.sqrt(self.n), ROUNDING * np.abs(self.exact).max())
        return float((np.maximum(away, 0) / error).max())

    def verdict(self, tables: int = 1) -> str:
        """z, marked where it is beyond chance."""
        bound = ndtri(1 - FALSE_ALARM / (2 * len(self.mean) * tables))
        return f"{self.z:.1f}" + ("!" if self.z > bound else "")


def spread(
    estimate: Callable[[Any], Any], exact: Any, n: int, chunk: int = 0, seed: int = 1
) -> Spread:
    """The moments of `estimate(key)`, a pytree of floats, over n keys."""
    exact = np.asarray(ravel_pytree(exact)[0], float)
    chunk = min(n, chunk or max(64, min(4096, 2**21 // len(exact))))
    many = jax.jit(jax.vmap(lambda key: ravel_pytree(estimate(key))[0]))
    one, two, count = np.zeros(len(exact)), np.zeros(len(exact)), n // chunk
    for key in jax.random.split(jax.random.key(seed), count):
        away = np.asarray(many(jax.random.split(key, chunk)), float) - exact
        one, two = one + away.sum(0), two + (away**2).sum(0)
    n = count * chunk
    shift = one / n
    variance = np.maximum(two / n - shift**2, 0) * n / (n - 1)
    sd = np.where(variance < (ROUNDING * np.abs(exact).max()) ** 2, 0.0, np.sqrt(variance))
    return Spread(exact + shift, sd, exact, n)


def rows(found: dict[str, tuple[Spread, int | None]]) -> list[tuple[str, ...]]:
    """Lines of the usual table, from the spreads and the runs."""
    return [
        (
            name,
            str(runs or ""),
            f"{s.rms:.4g}",
            f"{s.relative:.4g}",
            f"{s.rms**2 * runs:.4g}" if runs else "",
            s.verdict(),
        )
        for name, (s, runs) in found.items()
    ]


Claim = tuple[str, str, bool]  # two names, and whether at equal numbers of runs
HEAD = ("", "runs", "sd", "sd / |g|", "var x runs", "z")


def compare(report: Report, found: dict[str, tuple[Spread, int | None]], *claims: Claim) -> None:
    """Say whether the first's standard deviation is at most the second's, within 2 %."""
    for a, b, equal in claims:
        one, other = (
            s.rms * (math.sqrt(runs or 1) if equal else 1) for s, runs in (found[a], found[b])
        )
        holds = "yes" if one <= 1.02 * other + ROUNDING else "NO"
        report.say(
            f"{a} <= {b}{', at equal runs' if equal else ''}: {holds} ({one:.4g}, {other:.4g})"
        )


def gradient(f: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Any], Any]:
    """`key -> varax's estimate of the gradient in the first of args`."""
    estimate = vx.grad(f, **options)
    return lambda key: estimate(key, *args)


def descend(loss: Callable[[Any, Any], Any], start: Any, steps: int, rate: float = 0.03) -> Any:
    """Minimise E[loss(x, key)] by Adam."""
    optimizer = optax.adam(rate)

    def step(carry, key):
        x, state = carry
        change, state = optimizer.update(jax.grad(loss)(x, key), state, x)
        return (optax.apply_updates(x, change), state), None

    keys = jax.random.split(jax.random.key(4), steps)
    run = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), keys)[0][0])
    return run(jax.tree.map(jnp.asarray, start))


def squared(estimate: Callable[..., Any], draws: int = 64) -> Callable[[Any, Any], Any]:
    """Mean square of the gradient `estimate(tuned, key)`: least where its variance is."""

    def loss(tuned, key):
        keys = jax.random.split(key, draws)
        return (jax.vmap(lambda k: ravel_pytree(estimate(tuned, k))[0])(keys) ** 2).sum(1).mean()

    return loss
