"""Part of a finite support: the most probable values exactly, or a sample without replacement."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from ..errors import EstimatorError
from ..law import Law
from .base import Branches
from .enumerate import Finite, joint_digits
from .parts import filled, ratio, support

MOST = 8  # values without replacement: their 2^n subsets are summed over
LEAST = -60.0  # log probability with which impossible values are drawn; their weight is zero


class Joint(NamedTuple):
    """The joint values of each group.

    digits: of every element, its place in the support, `[S, *elements]`.
    log_p: log probabilities, `[S, *groups]`.
    """

    digits: jax.Array
    log_p: jax.Array


@dataclasses.dataclass(frozen=True)
class SumAndSample(Finite):
    """Rao-Blackwellised sum: the k most probable values exactly, one draw from the others.

        C the k most probable values,   x ~ p / (1 - p(C)) outside C
        E[k(x)] = E[sum_{c in C} p(c) k(c)  +  (1 - p(C)) (p(x; theta) / p(x)) k(x)]

    Unbiased for every k; any order of derivative. k + 1 runs, exact if k is the number of values.

    Args:
        k: how many values are summed.
        baseline: subtract from k(x), in its score term, the mean of k(c) over C. It costs no run,
            and makes the weights' sum exactly one.

    Liu, Regier, Tripuraneni, Jordan and McAuliffe 2019.
    """

    k: int
    baseline: bool = True

    def __post_init__(self) -> None:
        _positive("SumAndSample", "k", self.k)

    def count(self, law: Law) -> int:
        return min(self.k + 1, self.size(law))

    def branch(self, key: jax.Array, law: Law) -> Branches:
        joint, size = joint_law(law), self.size(law)
        at = _largest(joint.log_p, min(self.k, size))  # [k, *groups]
        p_top = jnp.exp(_take(joint.log_p, at))
        if self.k >= size:
            return Branches(values_at(law, joint, at), p_top)
        outside = _drop(joint.log_p, at)
        x = jax.random.categorical(key, stop_gradient(outside), axis=0)[None]
        rest = jnp.exp(outside).sum(0)  # 1 - p(C)
        drawn = stop_gradient(rest) * ratio(_take(joint.log_p, x)[0])
        if self.baseline:
            p = stop_gradient(p_top)
            p_top = p_top - (drawn - rest) * p / p.sum(0)
        weights = jnp.concatenate([p_top, drawn[None]])
        return Branches(values_at(law, joint, jnp.concatenate([at, x])), weights)


@dataclasses.dataclass(frozen=True)
class WithoutReplacement(Finite):
    """Unordered set estimator: n different values.

        S = n draws without replacement,   R(S, s) = P(S | first draw s) / P(S)
        E[k(x)] = E[sum_{s in S} p(s; theta) R(S, s) k(s)]

    The expectation of a single draw given the set. Unbiased for every k; any order of derivative.
    n runs, exact if n is the number of values. The ratios are exact, from all 2^n subsets.

    Args:
        n: how many values.
        baseline: compare each k(s), in its score term, with an estimate of E[k(x)] from the same
            set that is independent of s in expectation. It costs no run.

    Kool, van Hoof and Welling 2020.
    """

    n: int
    baseline: bool = True

    def __post_init__(self) -> None:
        _positive("WithoutReplacement", "n", self.n)
        if self.n > MOST:
            raise EstimatorError(
                "WithoutReplacement sums over all subsets of its values.",
                expected=f"n <= {MOST}",
                got=self.n,
                fix="SumAndSample(k) for more values",
            )

    def count(self, law: Law) -> int:
        return min(self.n, self.size(law))

    def branch(self, key: jax.Array, law: Law) -> Branches:
        joint, n = joint_law(law), self.count(law)
        drawn_with = jnp.maximum(stop_gradient(joint.log_p), LEAST)  # [S, *groups]
        gumbel = jax.random.gumbel(key, drawn_with.shape, drawn_with.dtype)
        at = _largest(drawn_with + gumbel, n)
        outside = logsumexp(_drop(drawn_with, at), axis=0)
        first, second = leave_out(_take(drawn_with, at), outside)
        p = jnp.exp(_take(joint.log_p, at))  # [n, *groups]
        weights = p * first
        if self.baseline and n > 1:
            slope = (p - stop_gradient(p)) * first
            weights = weights - stop_gradient(p) * (slope[:, None] * second).sum(0)
        return Branches(values_at(law, joint, at), weights)


def joint_law(law: Law) -> Joint:
    """All joint values with their log probabilities."""
    values = support(law)
    digits = joint_digits(len(values), law)
    each = values[digits].astype(law.site.value.dtype)
    log_p = law.log_prob_each(each.reshape((len(digits), *law.site.shape)))
    if law.has_mask:  # an absent element has one value: its first
        log_p = jnp.where(law.present_elements() | (digits == 0), log_p, -jnp.inf)
    return Joint(jnp.asarray(digits), law.couple(log_p))


def values_at(law: Law, joint: Joint, at: jax.Array) -> jax.Array:
    """The joint values at places `[m, *groups]`: `[m, *site.shape]`."""
    places = jnp.broadcast_to(at, (len(at), *law.elements))
    return filled(law, support(law)[jnp.take_along_axis(joint.digits, places, 0)])


def leave_out(log_p: jax.Array, log_rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much more probable a set of n draws is once one or two of its members were drawn.

    Let V(A) be the probability that n - |A| draws without replacement, after A was drawn, complete
    the set S:  V(S) = 1,  V(A) = sum_{s in S - A} p(s) / (1 - p(A)) V(A + s).

    Args:
        log_p: of the members, `[n, ...]`.
        log_rest: log probability of all values outside S, `[...]`.

    Returns:
        `V({s}) / V({})`, `[n, ...]`, and `V({s, t}) / V({s})`, `[n, n, ...]`, 1 where s = t.
    """
    n = len(log_p)
    sets = np.arange(2**n)[:, None] >> np.arange(n) & 1 == 1  # [2^n, n]
    bits = 1 << np.arange(n)
    missing = sets.reshape(sets.shape + (1,) * log_rest.ndim)
    tails = logsumexp(jnp.where(missing, -jnp.inf, log_p), axis=1)
    tails = jnp.logaddexp(tails, log_rest)  # log(1 - p(A)), [2^n, ...]
    log_v = jnp.where(sets.all(1).reshape((-1, *(1,) * log_rest.ndim)), 0.0, -jnp.inf)
    log_v = jnp.broadcast_to(log_v, tails.shape)
    for size in range(n - 1, -1, -1):
        here = np.flatnonzero(sets.sum(1) == size)
        nexts = log_v[here[:, None] | bits]  # [sets of this size, n, ...]
        steps = jnp.where(missing[here], -jnp.inf, log_p + nexts)
        log_v = log_v.at[here].set(logsumexp(steps, axis=1) - tails[here])
    one = log_v[bits]
    two = log_v[bits[:, None] | bits]
    return jnp.exp(one - log_v[0]), jnp.exp(two - one[:, None])


def _largest(x: jax.Array, k: int) -> jax.Array:
    """The places of the k largest along the first axis, `[k, ...]`."""
    _, at = jax.lax.top_k(jnp.moveaxis(stop_gradient(x), 0, -1), k)
    return jnp.moveaxis(at, -1, 0)


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, at, 0)


def _drop(x: jax.Array, at: jax.Array) -> jax.Array:
    """x with minus infinity at some places."""
    places = jnp.arange(len(x)).reshape((-1, 1, *(1,) * (x.ndim - 1)))
    return jnp.where((places == at).any(1), -jnp.inf, x)


def _positive(name: str, field: str, value: int) -> None:
    if value < 1:
        raise EstimatorError(
            f"{name} needs at least one value.", expected=f"{field} >= 1", got=value
        )
