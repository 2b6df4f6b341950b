"""Planar and radial flows: bijections with few parameters, forward and inverse.

A bijection is a pytree with `shape`, `cond_shape` and the methods of flowjax's bijections

    transform_and_log_det(x, condition=None)   y = f(x),       log |det df/dx|
    inverse_and_log_det(y, condition=None)     x = f^{-1}(y),  log |det dx/dy|

for one event, so those here and flowjax's mix. Their arrays are their parameters, unconstrained;
an amortised flow makes them of a network's output: `Planar(*jnp.split(net(x), [D, 2 * D]))`.

Rezende and Mohamed 2015, section 4.1 and appendix A.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .held import is_array

Array = jax.Array
TINY = 1e-30  # squared distance from a radial flow's centre that counts as none
BISECTIONS = 60


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planar:
    """f(z) = z + u^ tanh(w'z + b),  u^ = u + (m(w'u) - w'u) w / |w|^2,  m(a) = softplus(a) - 1.

    log |det| = log(1 + s sech^2(w'z + b)) with s = w'u^ > -1.

    The inverse needs the root a of the increasing function a + s tanh(a) = w'y + b, which is found
    by bisection to rounding; its derivatives are those of the implicit function. Where s is close
    to -1 the map is nearly flat and the inverse loses digits.

    Args:
        w, u: [D]; b: scalar, or [1].
    """

    w: Array
    u: Array
    b: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return jnp.shape(self.w)[-1:]

    cond_shape = None

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """y [D] and log |det dy/dx|."""
        u, s = self._constrained()
        a = self.w @ x + self.b.reshape(())
        return x + u * jnp.tanh(a), _log_slope(s, a)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """x [D] and log |det dx/dy|."""
        u, s = self._constrained()
        a = _planar_root(self.w @ y + self.b.reshape(()), s)
        return y - u * jnp.tanh(a), -_log_slope(s, a)

    def _constrained(self) -> tuple[Array, Array]:
        """u^ and s = w'u^."""
        wu = self.w @ self.u
        s = jax.nn.softplus(wu) - 1
        return self.u + (s - wu) * self.w / (self.w @ self.w), s


def _log_slope(s: Array, a: Array) -> Array:
    """log(1 + s sech^2 a)."""
    return jnp.log1p(s * (1 - jnp.tanh(a) ** 2))


@jax.custom_jvp
def _planar_root(c: Array, s: Array) -> Array:
    """a with a + s tanh(a) = c."""

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = middle + s * jnp.tanh(middle) < c
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (c - jnp.abs(s), c + jnp.abs(s)))
    return (low + high) / 2


@_planar_root.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    a, (_, s), (dc, ds) = _planar_root(*primals), primals, tangents
    t = jnp.tanh(a)
    return a, (dc - t * ds) / (1 + s * (1 - t**2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Radial:
    """f(z) = z + beta^ (z - z0) / (alpha + r),  r = |z - z0|, beta^ = softplus(beta) - alpha.

    log |det| = (D - 1) log(1 + beta^ / (alpha + r)) + log(1 + alpha beta^ / (alpha + r)^2).

    alpha = softplus(log_alpha) > 0. The inverse is the positive root of a quadratic in r. The
    density has a kink at the centre z0, where r has no derivative; it is taken as zero there.

    Args:
        centre: z0 [D]; log_alpha, beta: scalars, or [1].
    """

    centre: Array
    log_alpha: Array
    beta: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return jnp.shape(self.centre)[-1:]

    cond_shape = None

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """y [D] and log |det dy/dx|."""
        alpha, sum_ = self._constrained()
        r = _distance(x, self.centre)
        stretch = (sum_ + r) / (alpha + r)  # 1 + beta^ / (alpha + r)
        return self.centre + stretch * (x - self.centre), self._log_det(alpha, sum_, r)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """x [D] and log |det dx/dy|."""
        alpha, sum_ = self._constrained()
        far = _distance(y, self.centre)
        # r^2 + (sum - far) r - alpha far = 0, without cancellation for either sign of sum - far
        root = jnp.sqrt(alpha * far)
        r = root * jnp.exp(jnp.arcsinh((far - sum_) / (2 * root)))
        return self.centre + r / far * (y - self.centre), -self._log_det(alpha, sum_, r)

    def _constrained(self) -> tuple[Array, Array]:
        """Alpha, and alpha + beta^ > 0."""
        alpha = jax.nn.softplus(self.log_alpha.reshape(()))
        return alpha, jax.nn.softplus(self.beta.reshape(()))

    def _log_det(self, alpha: Array, sum_: Array, r: Array) -> Array:
        around = (self.shape[0] - 1) * (jnp.log(sum_ + r) - jnp.log(alpha + r))
        return around + jnp.log1p(alpha * (sum_ - alpha) / (alpha + r) ** 2)


def _distance(x: Array, centre: Array) -> Array:
    return jnp.sqrt(jnp.maximum(((x - centre) ** 2).sum(), TINY))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of one kind one after the other, the first one first, by `jax.lax.scan`.

    Args:
        layers: a bijection whose arrays have a leading axis for the layers:
            `jax.vmap(make)(keys)`, or `eqx.filter_vmap` where it has parts that are not arrays.
    """

    layers: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return self.layers.shape

    @property
    def cond_shape(self) -> tuple[int, ...] | None:
        """Of a condition."""
        return self.layers.cond_shape

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """y and log |det dy/dx|."""
        return self._through("transform_and_log_det", x, condition)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """x and log |det dx/dy|."""
        return self._through("inverse_and_log_det", y, condition, reverse=True)

    def _through(self, method: str, x: Array, condition: Any, reverse: bool = False) -> Any:
        leaves, tree = jax.tree.flatten(self.layers)
        arrays = [x for x in leaves if is_array(x)]

        def layer(carry: tuple[Array, Array], arrays: Any) -> tuple[tuple[Array, Array], None]:
            left, (x, total) = iter(arrays), carry
            one = tree.unflatten([next(left) if is_array(x) else x for x in leaves])
            x, log_det = getattr(one, method)(x, condition)
            return (x, total + log_det), None

        start = (x, jnp.zeros((), x.dtype))
        return jax.lax.scan(layer, start, arrays, reverse=reverse)[0]


def planar(key: Array, dim: int, layers: int, scale: float = 0.1) -> Stack:
    """`layers` planar flows on R^dim, near the identity: w and u are N(0, scale^2), b = 0."""

    def make(key: Array) -> Planar:
        w, u = scale * jax.random.normal(key, (2, dim))
        return Planar(w, u, jnp.zeros(()))

    return Stack(jax.vmap(make)(jax.random.split(key, layers)))


def radial(key: Array, dim: int, layers: int, scale: float = 1.0) -> Stack:
    """`layers` radial flows on R^dim that are the identity, with centres from N(0, scale^2 I)."""

    def make(key: Array) -> Radial:
        centre = scale * jax.random.normal(key, (dim,))
        return Radial(centre, jnp.zeros(()), jnp.zeros(()))

    return Stack(jax.vmap(make)(jax.random.split(key, layers)))
