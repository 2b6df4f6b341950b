"""Flows with neural networks, made of flowjax's bijections.

    coupling                  y_2 = tau(x_2; net(x_1)); both directions are fast
    inverse_autoregressive    y_i = tau(x_i; net(x_1 .. x_{i-1})); sampling is fast
    masked_autoregressive     its inverse: x_i = tau(y_i; net(y_1 .. y_{i-1})); density is fast

each with a scalar transformer tau, by default y = scale x + shift, and permutations in between.
The slow direction of an autoregressive flow takes D passes of the network. Make them outside
`jax.jit`: flowjax keeps arrays of a transformer in functions.

Dinh, Sohl-Dickstein and Bengio 2017 (coupling); Kingma et al. 2016 (IAF); Papamakarios, Pavlakou
and Murray 2017 (MAF); Durkan, Bekasov, Murray and Papamakarios 2019 (splines).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.errors import MissingExtraError
from ...transforms.smooth import assume_smooth
from .elementary import Stack

Array = jax.Array
MIN_SCALE = 1e-2


def coupling(
    key: Array,
    dim: int,
    layers: int = 8,
    *,
    condition_dim: int | None = None,
    transformer: Any = None,
    width: int = 50,
    depth: int = 1,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Stack:
    """Coupling layers: the first half is kept and transforms the second, then all are permuted.

    Args:
        key: of the networks and permutations.
        dim: D >= 2.
        layers: how many.
        condition_dim: length of a condition vector, if there is one.
        transformer: a scalar bijection whose parameters the networks give: affine by default,
            `rational_quadratic_spline()`, or one of flowjax's.
        width, depth, activation: of the networks.

    Raises:
        MissingExtraError: flowjax is not installed.
    """
    bijections = _flowjax()

    def layer(key: Array) -> Any:
        return bijections.Coupling(
            key,
            transformer=_affine() if transformer is None else transformer,
            untransformed_dim=dim // 2,
            dim=dim,
            cond_dim=condition_dim,
            nn_width=width,
            nn_depth=depth,
            nn_activation=activation,
        )

    return _stack(layer, key, dim, layers)


def inverse_autoregressive(
    key: Array,
    dim: int,
    layers: int = 4,
    *,
    condition_dim: int | None = None,
    transformer: Any = None,
    width: int = 50,
    depth: int = 1,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Stack:
    """Inverse autoregressive flow: fast to sample, with `Flow.draw` also its own density.

    Arguments and errors as for `coupling`.
    """
    bijections = _flowjax()

    def layer(key: Array) -> Any:
        return bijections.MaskedAutoregressive(
            key,
            transformer=_affine() if transformer is None else transformer,
            dim=dim,
            cond_dim=condition_dim,
            nn_width=width,
            nn_depth=depth,
            nn_activation=activation,
        )

    return _stack(layer, key, dim, layers)


def masked_autoregressive(key: Array, dim: int, layers: int = 4, **options: Any) -> Any:
    """Masked autoregressive flow: fast density of given values, slow to sample.

    Arguments and errors as for `coupling`.
    """
    return _flowjax().Invert(inverse_autoregressive(key, dim, layers, **options))


def rational_quadratic_spline(knots: int = 8, interval: int = 4) -> Any:
    """A scalar monotone spline on [-interval, interval], the identity outside; a transformer.

    Its bins are found by comparisons, which the check of pathwise derivatives would refuse. Value
    and derivative are continuous where bins meet, and that is declared.

    Raises:
        MissingExtraError: flowjax is not installed.
    """
    return _spline_class()(knots=knots, interval=int(interval))


@functools.cache
def _spline_class() -> type:
    class Spline(_flowjax().RationalQuadraticSpline):
        def transform_and_log_det(self, x: Any, condition: Any = None) -> Any:
            return assume_smooth(super().transform_and_log_det(x, condition))

        def inverse_and_log_det(self, y: Any, condition: Any = None) -> Any:
            return assume_smooth(super().inverse_and_log_det(y, condition))

    return Spline


def _affine() -> Any:
    """y = scale x + shift, scale = softplus(s) + MIN_SCALE, the identity at the start."""
    import equinox as eqx
    import paramax

    start = jnp.log(jnp.expm1(1 - MIN_SCALE))
    scale = paramax.Parameterize(lambda s: jax.nn.softplus(s) + MIN_SCALE, start)
    return eqx.tree_at(lambda a: a.scale, _flowjax().Affine(), scale)


def _stack(layer: Callable[[Array], Any], key: Array, dim: int, layers: int) -> Stack:
    import equinox as eqx

    bijections = _flowjax()

    def permuted(key: Array) -> Any:
        one, two = jax.random.split(key)
        order = jnp.arange(dim)[::-1] if dim == 2 else jax.random.permutation(two, dim)
        return bijections.Chain([layer(one), bijections.Permute(order)])

    return Stack(eqx.filter_vmap(permuted)(jax.random.split(key, layers)))


def _flowjax() -> Any:
    try:
        import flowjax.bijections
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "This family is made of flowjax's bijections.",
            expected="flowjax",
            got=str(error),
            where=user_line(),
            fix="pip install 'varax[flows]'",
        ) from error
    return flowjax.bijections
