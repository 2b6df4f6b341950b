"""Draws of a guide with their importance weights, and functions of many draws on the device."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import CapabilityError, DrawCountError
from ...transforms.layout import layout
from ...transforms.predictive import supported
from ...transforms.seed import seed
from ...transforms.staging import stage
from ..measure import Measure
from ..objectives.weights import log_weight
from .psis import khat_threshold, psis

DRAWS = 10_000  # of a diagnosis
CHUNK = 2**24  # numbers that one call to the device may hold for each array of a program


def model_of(result: Any, who: str) -> Measure:
    """The measure that a result is about; one that depends on the params is a function of them."""
    return _measure(result, "model", "vx.fit(..., model=model(data), guide=...)", who)


def guide_of(result: Any, who: str) -> Measure:
    """The guide at a result's parameters."""
    return _measure(result, "guide", "vx.fit(..., guide=lambda params: guide(params))", who)


def _measure(result: Any, what: str, expected: str, who: str) -> Measure:
    given = getattr(result, what)
    found = given(result.params) if callable(given) and not isinstance(given, Measure) else given
    if isinstance(found, Measure):
        return found
    raise CapabilityError(
        f"{who} needs the {what}, and this result does not know it.",
        expected=expected,
        got=f"{what}={given!r}",
        where=user_line(),
        fix="pass model= (a measure with its observations) and guide= (params -> measure) to "
        "vx.fit; objectives made by vx.autoguide bring both",
    )


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Independent draws of a guide with their weights p(x, z) / q(z).

    Attributes:
        choices: [S, ...] by address; empty where the weights alone were asked for.
        log_weights: log p(x, z) - log q(z), [S], as they are.
    """

    choices: dict[str, Any]
    log_weights: np.ndarray

    @functools.cached_property
    def _smoothed(self) -> tuple[np.ndarray, float]:
        return psis(self.log_weights)

    @property
    def smoothed(self) -> np.ndarray:
        """Normalised log weights, [S]."""
        return self._smoothed[0]

    @property
    def khat(self) -> float:
        """The tail index of the weights."""
        return self._smoothed[1]

    @property
    def threshold(self) -> float:
        """The largest k-hat at which S draws are enough."""
        return khat_threshold(len(self.log_weights))


def weigh(model: Measure, guide: Measure, key: jax.Array, n: int, *, keep: bool = True) -> Weighted:
    """n draws of a guide with their weights.

    Outside the support of a choice the model's density is zero. Where a density is an estimate the
    weights are those of the extended space, random ones included: right as weights, and k-hat
    speaks of the algorithm together with the guide.

    Raises:
        GuideMismatchError: the guide's addresses are not the model's.
    """
    inside = Measure(lambda: supported(model.program), model.name)

    def program() -> tuple[dict[str, Any], jax.Array]:
        trace = guide.simulate()
        return (trace.choices if keep else {}), log_weight(inside, trace, {})

    choices, log_weights = over_keys(lambda k: seed(program, k), key, n, size_of(model))
    return Weighted(choices, np.asarray(log_weights, np.float64))


def default_key() -> jax.Array:
    """Of a diagnosis that was given none, so that it gives the same answer again."""
    return jax.random.key(0)


def khat_of(result: Any) -> float:
    """k-hat of 10,000 draws of a fit's guide, from a fixed key."""
    model, guide = model_of(result, "khat"), guide_of(result, "khat")
    return weigh(model, guide, jax.random.split(default_key())[0], DRAWS, keep=False).khat


def sample(
    result: Any, key: jax.Array, n: int, *, importance: bool = False, candidates: int | None = None
) -> dict[str, Any]:
    """n draws [n, ...] of the guide, or with `importance` n of its weighted draws.

    Args:
        result: a `FitResult`.
        key: randomness.
        n: how many.
        importance: draw `candidates` and resample n of them, with replacement, by their smoothed
            weights: nearer to the posterior, as far as k-hat permits.
        candidates: 10 n by default, at least 1,000.
    """
    require_draws(n)
    guide = guide_of(result, "sample")
    if not importance:
        choices = lambda k: seed(lambda: guide.simulate().choices, k)  # noqa: E731
        return over_keys(choices, key, n, size_of(guide))
    model = model_of(result, "sample(..., importance=True)")
    draw, pick = jax.random.split(key)
    found = weigh(model, guide, draw, candidates or max(10 * n, 1000))
    if found.khat > found.threshold:
        warnings.warn(
            f"k-hat is {found.khat:.2f}, above {found.threshold:.2f}: the reweighted draws are not "
            "reliable either",
            stacklevel=3,
        )
    p = jnp.asarray(np.exp(found.smoothed))
    at = jax.random.choice(pick, len(found.log_weights), (n,), p=p)
    return jax.tree.map(lambda x: x[at], found.choices)


def over_keys(one: Callable[..., Any], key: jax.Array, n: int, size: int, *args: Any) -> Any:
    """`one(key_i, *args_i)` for n keys and leading axes [n], compiled once, in chunks.

    Args:
        size: how many numbers one evaluation holds, about.
    """
    chunk = max(1, min(n, CHUNK // max(size, 1)))
    calls = math.ceil(n / chunk)
    padded = np.minimum(np.arange(calls * chunk), n - 1)  # the last one again, where it ends

    @jax.jit
    def run(keys: jax.Array, args: Any) -> Any:
        one_chunk = lambda xs: jax.vmap(one)(*xs)  # noqa: E731
        if calls == 1:
            return one_chunk((keys, *args))
        at = padded.reshape(calls, chunk)
        split = jax.tree.map(lambda x: x[at], (keys, *args))
        found = jax.lax.map(one_chunk, split)
        return jax.tree.map(lambda x: x.reshape(calls * chunk, *x.shape[2:])[:n], found)

    return run(jax.random.split(key, n), args)


def size_of(measure: Measure) -> int:
    """How many numbers a run of a measure holds: choices and observations."""
    entries = layout(stage(measure.program).jaxpr, kinds=("draw", "observe"))
    return sum(math.prod(e.shape) for e in entries.values())


def require_draws(n: Any) -> None:
    """Raise unless n is a number of draws."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise DrawCountError(
            "This is not a number of draws.",
            expected="a Python integer, at least 1",
            got=repr(n),
            where=user_line(),
        )
