"""Implicit distributions, which have draws and no density, and their entropy by linearisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from numpyro.distributions import constraints

from ...kernels.source import user_line
from ...transforms.errors import NoDensityError, ShapeError
from .held import Held

Array = jax.Array


class Implicit(npd.Distribution):
    """The law of g(e), e ~ base, for any generator g: sampled, pathwise, without a density.

        z = vx.sample("z", Implicit(d.Normal(jnp.zeros(8), 1.0), generator))

    Args:
        base: a distribution with a differentiable sampler; its batch axes belong to the event.
        generator: a function of one draw of the base, an Equinox module for example. Its arrays
            are the parameters.

    It may be drawn in any program, so an objective that needs draws alone can have it as guide:
    moments, kernels (MMD), critics, or `linearised_entropy` in the place of -E[log q]. A measure
    that contains it cannot be scored, so not be the guide of `vx.objectives.elbo`.

    Raises:
        NoDensityError: when its density is asked for.

    Huszar 2017.
    """

    pytree_data_fields = ("base_dist", "held")

    def __init__(self, base: npd.Distribution, generator: Callable[[Any], Array]):
        self.base_dist = base.to_event(len(base.batch_shape)) if base.batch_shape else base
        self.held = Held(generator)
        base_draw = jax.ShapeDtypeStruct(base.shape(), jnp.result_type(float))
        out = jax.eval_shape(generator, base_draw)
        super().__init__((), out.shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether the base's draws are differentiable."""
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:
        """All of R^D."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def rsample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """`[*sample_shape, *event]`, differentiable in the parameters of base and generator."""
        g: Callable[[Any], Any] = self.held.tree
        for _ in sample_shape:
            g = jax.vmap(g)
        return g(self.base_dist.rsample(key, sample_shape))

    sample = rsample

    def log_prob(self, value: Any) -> NoReturn:
        """There is none."""
        raise NoDensityError(
            "An implicit distribution has draws and no density.",
            expected="Density",
            got="Sampleable",
            where=user_line(),
            fix="draw it in the objective with vx.sample, and put "
            "varax.families.linearised_entropy(generator, e) in the place of -log q",
        )


def linearised_entropy(
    generator: Callable[[Array], Array], e: Array, noise: float | Array = 0.0
) -> Array:
    """Entropy of x = g(e) + noise xi, with e and xi standard normal, from g's linearisation at e.

        H(e) = D/2 log(2 pi exp(1)) + 1/2 log det(J J' + noise^2 I),   J = dg/de  [D, k]

    Its mean over e is the entropy where g is affine; where k = D, g is injective and noise = 0;
    otherwise an approximation, good where g bends little over a unit of e or on the scale of the
    noise. k derivatives of g along its inputs (or D along its outputs), one determinant of the
    smaller of D and k.

    Args:
        generator: [k] -> [D].
        e: [k], a draw of N(0, I).
        noise: standard deviation; needed where D > k, as g(e) then has no entropy.

    Raises:
        ShapeError: D > k without noise.

    Uppal, Stensbo-Smidt, Boomsma and Frellsen 2023.
    """
    k = e.shape[0]
    (d,) = jax.eval_shape(generator, e).shape
    if d > k and isinstance(noise, (int, float)) and noise == 0:
        raise ShapeError(
            "The image of a generator with fewer inputs than outputs has no entropy.",
            expected=f"noise > 0, or at least {d} inputs",
            got=f"{k} inputs, {d} outputs and noise = 0",
            where=user_line(),
        )
    jacobian = (jax.jacfwd if k <= d else jax.jacrev)(generator)(e)  # [D, k]
    gram = jacobian @ jacobian.T if d <= k else jacobian.T @ jacobian  # [m, m], m = min(D, k)
    gram = gram + jnp.asarray(noise) ** 2 * jnp.eye(min(d, k))
    log_det = jnp.linalg.slogdet(gram)[1]
    if d > k:
        log_det = log_det + 2 * (d - k) * jnp.log(noise)
    return d / 2 * math.log(2 * math.pi * math.e) + log_det / 2
