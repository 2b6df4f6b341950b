"""Pathwise derivatives from a distribution function instead of a sampler."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
from jax.nn import log_softmax
from jax.scipy.stats import norm

from ..errors import NotReparameterizableError
from ..law import Law
from ..site import Site, over_lanes
from .base import Direct, Drawn, cannot
from .parts import element, filled

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


class Implicit(Direct):
    """Pathwise estimator by implicit differentiation of the distribution function F.

        u = F(x; theta) fixed:   dx/dtheta = -(dF/dtheta)(x; theta) / p(x; theta)

    Unbiased where k is continuous in x and piecewise differentiable; any order of derivative that
    F has. The value is that of the distribution's own sampler. Serves

    - continuous scalars with a `cdf` that is differentiable in its parameters, mixtures included;
    - mixtures of vectors whose components have independent entries, or are multivariate normal:
      u_d is the distribution function of x_d given x_1, ..., x_{d-1};
    - von Mises laws, whose derivative in the concentration is an integral over the circle;
    - laws with a differentiable sampler (gamma, beta, Dirichlet, Student-t), through that.

    The derivative of a mixture in its weights is that of a transport of mass between components:
    its variance grows where components are far apart.

    Figurnov, Mohamed and Mnih 2018; Graves 2016 (mixtures).
    """

    pathwise = True
    weighs = False

    def serve(self, law: Law) -> None:
        if law.has_rsample:
            return
        x = jax.ShapeDtypeStruct(law.site.shape, law.site.value.dtype)
        try:
            jax.eval_shape(lambda ops, x: _noise(law.site, ops, x), law.operands, x)
        except (NotImplementedError, AttributeError, ImportError):
            raise cannot(
                NotReparameterizableError,
                self,
                law,
                "a continuous scalar with a distribution function (cdf), a von Mises law, or a "
                "mixture of independent or multivariate normal components",
                "estimator=Score()",
            ) from None

    def draw(self, key: jax.Array, law: Law) -> Drawn:
        if law.has_rsample:
            return Drawn(law.rsample(key))
        x = jax.lax.stop_gradient(law.sample(key))
        return Drawn(filled(law, settled(law.site.form, law.operands, x)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def settled(site: Site, operands: list[Any], x: jax.Array) -> jax.Array:
    """x, which follows the parameters so that its noise stays what it is."""
    return x


@settled.defjvp
def _settled(site: Site, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    operands, x = primals[0], settled(site, *primals)
    _, du = jax.jvp(lambda ops: _noise(site, ops, x), (operands,), (tangents[0],))
    return x, -_solve(lambda x: _noise(site, operands, x), _slope(site, operands, x), x, du)


def _solve(noise: Any, slope: Any, x: jax.Array, du: jax.Array) -> jax.Array:
    """(du/dx)^-1 du, where the derivative is lower triangular over a vector."""
    if slope is not None:
        return du / slope
    basis = jnp.eye(x.shape[-1], dtype=x.dtype)
    columns = jax.vmap(lambda e: jax.jvp(noise, (x,), (jnp.broadcast_to(e, x.shape),))[1])(basis)
    jacobian = jnp.moveaxis(columns, 0, -1)  # [..., D, D]
    return jax.scipy.linalg.solve_triangular(jacobian, du[..., None], lower=True)[..., 0]


def _noise(site: Site, operands: list[Any], x: jax.Array) -> jax.Array:
    """u(x; theta), x's shape."""
    return over_lanes(site, lambda m, _, x: noise_of(element(m), x), operands, x)


def _slope(site: Site, operands: list[Any], x: jax.Array) -> jax.Array | None:
    """du/dx of scalars, None for vectors."""

    def one(measure: Any, _: Any, x: jax.Array) -> Any:
        law = element(measure)
        if law.event_shape:
            return None
        return jnp.ones_like(x) if isinstance(law, npd.VonMises) else jnp.exp(law.log_prob(x))

    return over_lanes(site, one, operands, x)


def noise_of(law: Any, x: jax.Array) -> jax.Array:
    """What stays fixed: a monotone function of x, or a triangular one of a vector."""
    if isinstance(law, npd.VonMises):
        loc: Any = law.loc
        return -jnp.broadcast_to(loc + _climb(law.concentration, x - loc), x.shape)
    if law.is_discrete:
        raise NotImplementedError
    if not law.event_shape:
        return jnp.broadcast_to(law.cdf(x), x.shape)
    if isinstance(law, npd.MixtureSameFamily) and len(law.event_shape) == 1:
        return _mixture(law, x)
    raise NotImplementedError


# ---- mixtures of vectors


def _mixture(law: Any, x: jax.Array) -> jax.Array:
    """The distribution function of each entry given the earlier ones, `[..., D]`."""
    log_p, cdf = _conditionals(law.component_distribution, x[..., None, :])  # [..., K, D]
    earlier = jnp.cumsum(log_p, -1) - log_p  # log density of the entries before each
    log_weights = log_softmax(law.mixing_distribution.logits, -1)[..., None]
    return (jax.nn.softmax(log_weights + earlier, -2) * cdf).sum(-2)


def _conditionals(component: Any, x: jax.Array) -> tuple[Any, Any]:
    """Log density and distribution function of each entry given the earlier ones."""
    if isinstance(component, npd.MultivariateNormal):
        tril: Any = component.scale_tril
        centred = x - component.loc
        each = jnp.broadcast_to(tril, (*centred.shape, centred.shape[-1]))
        e = jax.scipy.linalg.solve_triangular(each, centred[..., None], lower=True)[..., 0]
        scale = jnp.diagonal(tril, axis1=-2, axis2=-1)
        return norm.logpdf(e) - jnp.log(scale), norm.cdf(e)
    if isinstance(component, npd.Independent) and component.reinterpreted_batch_ndims == 1:
        base = component.base_dist
        return base.log_prob(x), base.cdf(x)
    raise NotImplementedError


# ---- the von Mises law


@jax.custom_jvp
def _climb(kappa: jax.Array, y: jax.Array) -> jax.Array:
    """Zero, with the derivative of an angle y from the mode in the concentration."""
    return jnp.zeros(jnp.broadcast_shapes(jnp.shape(kappa), jnp.shape(y)), y.dtype)


@_climb.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _climb(*primals), von_mises_slope(*primals) * tangents[0]


def von_mises_slope(kappa: jax.Array, y: jax.Array) -> jax.Array:
    """dy/dkappa for an angle y from the mode.

    With A = E[cos t] = I1(kappa) / I0(kappa) it is

        -int_0^y (cos t - A) e^{kappa (cos t - cos y)} dt
            =  int_y^pi (cos t - A) e^{kappa (cos t - cos y)} dt,        0 <= y <= pi

    The first has one sign while cos y > A and the second from there on, so that nothing cancels.
    The second is cut where e^{...} falls below rounding. Gauss-Legendre quadrature, 64 nodes.
    """
    y = y - 2 * math.pi * jnp.round(y / (2 * math.pi))
    size, sign = jnp.abs(y), jnp.where(y < 0, -1.0, 1.0)

    def sink(t: jax.Array) -> jax.Array:  # 1 - cos t, accurately
        return 2 * jnp.sin(t / 2) ** 2

    def end(start: jax.Array) -> jax.Array:
        """Where kappa (cos start - cos t) is 40, or pi."""
        least = sink(start) + 40 / jax.lax.stop_gradient(kappa)
        return jnp.where(least < 1.9, jnp.arccos(1 - jnp.minimum(least, 1.9)), math.pi)

    mode = jnp.zeros_like(size)
    at, weights = _nodes(mode, end(mode))
    bell = weights * jnp.exp(-kappa * sink(at))
    spread = (bell * sink(at)).sum(0) / bell.sum(0)  # 1 - A
    near = sink(size) < spread
    at, weights = _nodes(jnp.where(near, 0.0, size), jnp.where(near, size, end(size)))
    rise = 2 * jnp.sin((size + at) / 2) * jnp.sin((size - at) / 2)  # cos t - cos y
    area = (weights * (spread - sink(at)) * jnp.exp(kappa * rise)).sum(0)
    return jnp.where(near, -sign, sign) * area


def _nodes(start: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights on an interval each, `[64, ...]`."""
    shape = (-1, *(1,) * start.ndim)
    half = (end - start) / 2
    nodes, weights = (jnp.asarray(x.reshape(shape), half.dtype) for x in (NODES, WEIGHTS))
    return start + half * (nodes + 1), half * weights
