"""Measure-valued derivatives: the derivative of a law as a difference of two laws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from jax.lax import stop_gradient
from jax.scipy.special import gammaln

from ..errors import EstimatorError
from ..law import Law
from .base import Branches, Branching, cannot
from .parts import change, class_log_probs, filled, mirrored_uniform, parameter, support


@dataclasses.dataclass(frozen=True)
class MeasureValued(Branching):
    """Measure-valued (weak-derivative) estimator.

        d p(x; theta) / d theta = c (p+(x) - p-(x)),
        grad E[k(x)] = sum over parameters of  c (E_{p+}[k] - E_{p-}[k]) + E[dk/dtheta]

    Unbiased for every k, also where it has jumps; first derivatives. Each element of the draw that
    is coupled with others is perturbed alone, the others keep their values: J = 1 + P n runs for n
    coupled elements with P perturbed values each, 1 + P where the objective is a sum over them.

        law               parameter        c               p+                  p-
        Normal            loc              1/(s sqrt 2pi)  loc + s Rayleigh    loc - s Rayleigh
                          scale s          1/s             double Maxwell      the law itself
        LogNormal         both             as for the normal law of log x
        Exponential       rate r           1/r             the law itself      Gamma(2, r)
        Gamma(a, b)       rate b           a/b             the law itself      Gamma(a + 1, b)
        Poisson           rate             1               the law + 1         the law itself
        finite supports   p_k for each k   1               x = k               the law itself

    The shape of a gamma law has no such pair that can be sampled; its derivative is that of the
    score function. For a finite support one value k, other than the one drawn, is drawn with
    probability p_k / (1 - p_x) and its difference is divided by that: exact for two values.

    Args:
        coupled_noise: p+, p- and the law itself share their noise, which makes differences small
            where k varies slowly over the law; where k oscillates within a standard deviation,
            independent noise can be better. Normal, loc: both sides have the same Rayleigh
            variate, so that even parts of k cancel, and the mean is taken with the variate of
            1 - u, so that odd parts cancel (two more runs for an element: P = 5, else 3). Normal,
            scale: the Maxwell and
            the normal variate have the same u. Gamma(a + 1) is Gamma(a) plus an exponential
            variate; Poisson + 1 is the draw plus one.

    Pflug 1989; Mohamed, Rosca, Figurnov and Mnih 2020, section 6.
    """

    coupled_noise: bool = True

    order = 1

    def serve(self, law: Law) -> None:
        if law.support_shape is None and _rule(law) is None:
            raise cannot(
                EstimatorError,
                self,
                law,
                "a normal, log-normal, exponential, gamma or Poisson law, or a finite support",
                "estimator=Score(), which serves every law with a density",
            )

    def count(self, law: Law) -> int:
        perturbed = 1
        if issubclass(law.distribution, (npd.Normal, npd.LogNormal)):
            perturbed = 5 if self.coupled_noise else 3
        return 1 + perturbed * law.coupled_count

    def branch(self, key: jax.Array, law: Law) -> Branches:
        rule = _rule(law) or _finite
        x, others, log_weight = stop_values(rule(key, law, self.coupled_noise))
        chosen = one_at_a_time(law)  # [n, *elements]
        values, weights = [x[None]], []
        for other, weight in others:
            values.append(jnp.where(law.spread(chosen), other, x))
            weights.append(law.couple(jnp.where(chosen, weight, 0.0)))
        changes = jnp.concatenate(weights)  # [P n, *groups], of value zero
        base = 1.0 if log_weight is None else jnp.exp(law.couple(log_weight))
        weights = jnp.concatenate([(base - changes.sum(0))[None], changes])
        return Branches(filled(law, jnp.concatenate(values)), weights)


class Perturbed(NamedTuple):
    """A draw, the values to compare it with, and what is left to the score function.

    value: shape `site.shape`.
    others: (value, weight of shape `elements`), where the weight has value zero and the draw
        itself has minus the sum of the weights.
    log_weight: shape `elements`, of value zero, or None.
    """

    value: jax.Array
    others: list[tuple[jax.Array, jax.Array]]
    log_weight: jax.Array | None = None


def stop_values(p: Perturbed) -> Perturbed:
    """No derivative passes through values."""
    others = [(stop_gradient(x), weight) for x, weight in p.others]
    return Perturbed(stop_gradient(p.value), others, p.log_weight)


def one_at_a_time(law: Law) -> jax.Array:
    """Which element each of n runs changes, [n, *elements]: one of those coupled, in all groups."""
    n = law.coupled_count
    shape = [m if c else 1 for m, c in zip(law.elements, law.coupled or (), strict=True)]
    chosen = jnp.arange(n).reshape((1, *shape)) == jnp.arange(n).reshape((n, *(1,) * len(shape)))
    return jnp.broadcast_to(chosen, (n, *law.elements))


# ---- one rule per family: (key, law, coupled noise) -> Perturbed


def _normal(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    loc, scale = parameter(law, "loc"), parameter(law, "scale")
    keys = jax.random.split(key, 4)
    u = mirrored_uniform(keys[0], loc)
    maxwell = jnp.linalg.norm(jax.random.normal(keys[1], (3, *loc.shape), loc.dtype), axis=0)
    sign = jax.random.rademacher(keys[2], loc.shape, loc.dtype)
    for_loc = change(loc) / (stop_gradient(scale) * math.sqrt(2 * math.pi))
    for_scale = change(scale) / stop_gradient(scale)
    if coupled:
        normal = sign * _normal_like(maxwell)
        sizes = [(w, w, for_loc / 2) for w in (_rayleigh(u), _rayleigh(1 - u))]
    else:
        normal = jax.random.normal(keys[3], loc.shape, loc.dtype)
        sizes = [(_rayleigh(u), _rayleigh(mirrored_uniform(keys[3], loc)), for_loc)]
    others = [(loc + scale * sign * maxwell, for_scale)]
    for up, down, weight in sizes:
        others += [(loc + scale * up, weight), (loc - scale * down, -weight)]
    return Perturbed(loc + scale * normal, others)


def _rayleigh(u: jax.Array) -> jax.Array:
    return jnp.sqrt(-2 * jnp.log(u))


def _normal_like(m: jax.Array) -> jax.Array:
    """The quantile of the half-normal law at the probability of a Maxwell variate."""
    above = jax.scipy.special.erfc(m / math.sqrt(2))
    above += math.sqrt(2 / math.pi) * m * jnp.exp(-(m**2) / 2)
    return -jax.scipy.special.ndtri(jnp.minimum(above / 2, 0.5))


def _lognormal(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    log_x, others, _ = _normal(key, law, coupled)
    return Perturbed(jnp.exp(log_x), [(jnp.exp(y), weight) for y, weight in others])


def _gamma(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    shape, rate = parameter(law, "concentration"), parameter(law, "rate")
    k1, k2, k3 = jax.random.split(key, 3)
    a, b = stop_gradient(shape), stop_gradient(rate)
    x = stop_gradient(law.sample(k1))
    other = (x if coupled else law.sample(k3)) + jax.random.exponential(k2, a.shape, a.dtype) / b
    log_p = (shape - 1) * jnp.log(x) + shape * jnp.log(b) - gammaln(shape)
    return Perturbed(x, [(other, -a / b * change(rate))], change(log_p))


def _exponential(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    rate = parameter(law, "rate")
    k1, k2, k3 = jax.random.split(key, 3)
    r = stop_gradient(rate)
    x = law.sample(k1)
    other = (x if coupled else law.sample(k3)) + jax.random.exponential(k2, r.shape, r.dtype) / r
    return Perturbed(x, [(other, -change(rate) / r)])


def _poisson(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    k1, k2 = jax.random.split(key)
    x = law.sample(k1)
    other = x if coupled else law.sample(k2)
    return Perturbed(x, [(other + 1, change(parameter(law, "rate")))])


def _finite(key: jax.Array, law: Law, coupled: bool) -> Perturbed:
    k1, k2 = jax.random.split(key)
    values, log_p = support(law), class_log_probs(law)  # [K, *event], [K, *elements]
    at = jax.random.categorical(k1, log_p, axis=0)
    drawn = jnp.arange(len(values)).reshape((-1, *(1,) * at.ndim)) == at
    other = jax.random.categorical(k2, jnp.where(drawn, -jnp.inf, log_p), axis=0)
    rest = jnp.where(drawn, 0.0, jnp.exp(log_p)).sum(0)  # 1 - p(x)
    weight = change(_take(log_p, other)) * stop_gradient(rest)
    return Perturbed(values[at], [(values[other], weight)])


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, at[None], 0)[0]


Rule = Callable[[Any, Law, bool], Perturbed]
RULES: dict[type, Rule] = {
    npd.Normal: _normal,
    npd.LogNormal: _lognormal,
    npd.Gamma: _gamma,
    npd.Exponential: _exponential,
    npd.Poisson: _poisson,
}


def _rule(law: Law) -> Rule | None:
    return next((rule for kind, rule in RULES.items() if issubclass(law.distribution, kind)), None)
