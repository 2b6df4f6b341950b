"""Signal to noise of a stochastic gradient, by parameter and by random choice.

    ratio = |E g| / sd(g),   for several parameters together  ||E g|| / sqrt(tr Cov g)

Far from an optimum a small ratio says that the gradient is lost in its noise (Rainforth et al.
2018, section 3): about 1 / ratio^2 gradients must be averaged to see its direction. At an optimum
the signal is zero by definition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...transforms.choices import flatten
from ...transforms.derivatives import join, split_floats, value_and_grad
from ...transforms.errors import DifferentiationError, show_address
from ...transforms.seed import seed
from ...transforms.staging import stage
from ...transforms.trace import joint
from ..groups import path_name
from ..steps import strong
from .draws import require_draws


@dataclasses.dataclass(frozen=True)
class SignalToNoise:
    """Moments of a stochastic gradient, estimated from some of them.

    Attributes:
        mean, sd: trees like the params, None in the place of what has no gradient.
        draws: gradients. A ratio below 1 / sqrt(draws) cannot be told from zero.
    """

    mean: Any
    sd: Any
    draws: int

    @property
    def ratio(self) -> Any:
        """|mean| / sd of every single parameter: a tree like the params."""
        return jax.tree.map(lambda m, s: _ratio(np.abs(m), s), self.mean, self.sd)

    @property
    def parts(self) -> dict[str, float]:
        """||mean|| / sqrt(tr Cov) of each leaf of the params, by path."""
        leaves = jax.tree_util.tree_leaves_with_path(self.mean)
        spreads = jax.tree.leaves(self.sd)
        pairs = zip(leaves, spreads, strict=True)
        return {path_name(p): float(_ratio(_norm(m), _norm(s))) for (p, m), s in pairs}

    def of(self, mask: Any) -> float:
        """||mean|| / sqrt(tr Cov) of the parameters where `mask`, a tree of bools, is true."""
        chosen = jax.tree.map(lambda x, m: np.where(m, x, 0.0), self.mean, mask)
        spread = jax.tree.map(lambda x, m: np.where(m, x, 0.0), self.sd, mask)
        return float(_ratio(_total(chosen), _total(spread)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name or 'params'}: {x:.3g}" for name, x in self.parts.items())
        return f"SignalToNoise({shown}; {self.draws} gradients)"


def signal_to_noise(
    objective: Callable[[Any], Any], params: Any, key: jax.Array, n: int = 256, **asked: Any
) -> SignalToNoise:
    """Mean and standard deviation of an objective's stochastic gradient at some parameters.

    Args:
        objective: `objective(params)`, a program with a scalar value.
        params: any pytree; floating-point leaves are differentiated.
        key: randomness.
        n: gradients, at least 2.
        asked: `using`, `estimators`, `strict` as in `vx.value_and_grad`.
    """
    require_draws(n - 1)
    estimate = value_and_grad(objective, **asked)
    floats, rest = split_floats(params)
    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), floats)

    def add(moments: Any, key_number: Any) -> Any:
        """Welford's update."""
        (mean, squares), (key, number) = moments, key_number
        grads = estimate(key, join(floats, rest))[1]
        off = jax.tree.map(lambda g, m: g - m, grads, mean)
        mean = jax.tree.map(lambda m, d: m + d / number, mean, off)
        squares = jax.tree.map(lambda s, d, g, m: s + d * (g - m), squares, off, grads, mean)
        return (mean, squares), None

    keys = jax.random.split(key, n)
    run = jax.jit(lambda keys: jax.lax.scan(add, (zeros, zeros), (keys, jnp.arange(1, n + 1)))[0])
    mean, squares = run(keys)
    sd = jax.tree.map(lambda s: np.sqrt(np.maximum(s, 0) / (n - 1)), squares)
    return SignalToNoise(jax.tree.map(np.asarray, mean), sd, n)


def reach(guide: Callable[[Any], Any], params: Any, key: jax.Array) -> dict[str, Any]:
    """By address, which parameters of a guide reach the choice: a tree of bools like the params.

    Those that its value depends on where all of the guide is pathwise, otherwise those that its
    density given the other choices depends on.
    """
    floats, rest = split_floats(params)
    floats = jax.tree.map(strong, floats)
    directions, draws = jax.random.split(key)

    def choices(floats: Any) -> Any:
        measure = guide(join(floats, rest))
        return flatten(seed(lambda: measure.simulate().choices, draws))

    def values(floats: Any) -> Any:
        return {a: x for a, x in choices(floats).items() if jnp.issubdtype(x.dtype, jnp.inexact)}

    def densities(floats: Any) -> Any:
        given = choices(jax.lax.stop_gradient(floats))
        staged = stage(guide(join(floats, rest)).program)

        def density(address: Any) -> Any:
            return joint(staged, given, what="reach", keep=False, weighed=[address])[1].weight

        return {a: seed(lambda a=a: density(a), draws) for a in given}

    @jax.jit
    def masks(floats: Any) -> Any:
        try:
            found, pull = jax.vjp(values, floats)
        except DifferentiationError:
            found, pull = jax.vjp(densities, floats)
        zeros = jax.tree.map(jnp.zeros_like, found)
        reached = {}
        for i, (address, value) in enumerate(found.items()):
            way = jax.random.normal(jax.random.fold_in(directions, i), value.shape, value.dtype)
            (grads,) = pull(zeros | {address: way})
            reached[address] = jax.tree.map(lambda g: g != 0, grads)
        return reached

    return {show_address(a): jax.tree.map(np.asarray, m) for a, m in masks(floats).items()}


def _ratio(signal: Any, noise: Any) -> Any:
    """Their ratio; infinite without noise, 0 without both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(signal == 0, 0.0, np.divide(signal, noise))


def _norm(x: Any) -> float:
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).sum()))


def _total(tree: Any) -> float:
    return float(np.sqrt(sum(_norm(x) ** 2 for x in jax.tree.leaves(tree))))
