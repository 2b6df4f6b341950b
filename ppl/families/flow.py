"""Normalizing flows as distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ...kernels.source import user_line
from ...transforms.errors import NoInverseError, ShapeError
from ...transforms.estimators import Reparam
from ...transforms.smooth import assume_smooth
from ..language import sample
from .held import Held, is_array

Array = jax.Array


class Flow(npd.TransformedDistribution):
    """The distribution of y = f(x) with x ~ base: log q(y) = log p(x) - log |det df/dx|.

        q = Flow(d.Normal(jnp.zeros(2), 1.0), families.planar(key, 2, layers=8))
        z = vx.sample("z", q)

    Args:
        base: a distribution of the bijection's shape; its batch axes become part of the event.
        bijection: with the methods of flowjax's bijections: one of `varax.families`, or of
            flowjax. Its arrays are the flow's parameters.
        condition: of the bijection's `cond_shape`, if it is conditional. One flow has one
            condition; under `jax.vmap` each lane has its own.
        support: of y where it is not all of R^D, a constraint of NumPyro.

    `log_prob(y)` inverts f. The density of a program's own pathwise draw is computed by f alone,
    and so is that of `draw(address)`, which leaves the noise itself in the program.

    Raises:
        ShapeError: base, bijection and condition do not fit.
        NoInverseError: `log_prob` where the bijection has no inverse.

    Rezende and Mohamed 2015; Papamakarios, Nalisnick, Rezende, Mohamed and Lakshminarayanan 2021.
    """

    transforms: list[Any]

    def __init__(
        self,
        base: npd.Distribution,
        bijection: Any,
        condition: Any = None,
        *,
        support: constraints.Constraint | None = None,
    ):
        condition = _require_fit(base, bijection, condition)
        self.base_dist = base.to_event(len(base.batch_shape)) if base.batch_shape else base
        self.transforms = [Pushed(bijection, condition, support)]
        npd.Distribution.__init__(self, (), bijection.shape, validate_args=False)

    @property
    def bijection(self) -> Any:
        """f."""
        return self.transforms[0].held.tree[0]

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> Array:
        """Log density, `[*sample_shape]`; `intermediates` are `sample_with_intermediates`'s."""
        if intermediates is not None:
            return jnp.asarray(super().log_prob(value, intermediates))
        x, log_det = self.transforms[0].inverse_and_log_det(value)
        return self.base_dist.log_prob(x) + log_det

    def forward(self, x: Any) -> tuple[Array, Array]:
        """y = f(x) and log |det df/dx|, leading axes kept."""
        return self.transforms[0].call_with_intermediates(x)

    def draw(self, address: str, *, path: bool = False) -> tuple[Array, Array]:
        """y and log q(y) in a program, by the forward pass of f.

            def elbo(phi):
                z, log_q = Flow(base, phi).draw("noise")
                return model().log_density({"z": z} | data) - log_q

        For bijections that have no inverse, and programs that use the noise. The random choice is
        that of the base, at `address`, and pathwise: y may not reach a jump, and another estimator
        at `address` would not see one.

        Args:
            address: of the base's choice.
            path: log q(y) is given the derivative of the path alone, in which the flow's own
                parameters stand still: what is left out has expectation zero, and where q is the
                target the gradient of a KL divergence has no variance. It takes D forward-mode
                passes of f and the solution of one linear system, and no inverse; derivatives of
                the first order only (Roeder, Wu and Duvenaud 2017; Vaitl, Nicoli, Nakajima and
                Kessel 2022).

        Raises:
            NotReparameterizableError: the base has no differentiable sampler.
        """
        x = sample(address, self.base_dist, estimator=Reparam())
        y, log_det = self.forward(x)
        log_q = jnp.asarray(self.base_dist.log_prob(x)) - log_det
        if not path:
            return y, log_q
        still_y, log_q = jax.lax.stop_gradient((y, log_q))
        # the score may jump (a network of relus), but its factor here is zero
        score = assume_smooth(jax.tree.map(_still, self).score_at(_still(x)))
        return y, log_q + (score * (y - still_y)).sum()

    def score_at(self, x: Array) -> Array:
        """d log q(y) / dy at y = f(x), of the event's shape.

        It is J^{-T} d(log p(x) - log |det J|)/dx with J = df/dx, and needs no inverse of f.
        """

        def log_q(x: Array) -> Array:
            return jnp.asarray(self.base_dist.log_prob(x)) - self.forward(x)[1]

        jacobian = jax.jacfwd(lambda x: self.forward(x)[0])(x)
        square = jacobian.reshape(x.size, x.size)
        return jnp.linalg.solve(square.T, jax.grad(log_q)(x).ravel()).reshape(x.shape)


class Pushed(Transform):
    """A bijection with its condition, as a transform of NumPyro: a pytree of their arrays."""

    def __init__(self, bijection: Any, condition: Any, support: Any):
        self.held = Held((bijection, condition))
        self.form = (tuple(bijection.shape), support)

    def tree_flatten(self) -> Any:
        """Children and structure."""
        return (self.held,), self.form

    @classmethod
    def tree_unflatten(cls, form: Any, children: Any) -> Pushed:
        """The inverse of `tree_flatten`."""
        new = object.__new__(cls)
        (new.held,), new.form = children, form
        return new

    @property
    def domain(self) -> Any:
        """R^D."""
        shape = self.form[0]
        return constraints.independent(constraints.real, len(shape)) if shape else constraints.real

    @property
    def codomain(self) -> Any:
        """The support of y."""
        return self.form[1] or self.domain

    def call_with_intermediates(self, x: Any) -> tuple[Array, Array]:
        """y and log |det dy/dx|, leading axes kept."""
        return self._each("transform_and_log_det", x)

    def inverse_and_log_det(self, y: Any) -> tuple[Array, Array]:
        """x and log |det dx/dy|, leading axes kept."""
        try:
            return self._each("inverse_and_log_det", y)
        except NotImplementedError as error:
            raise NoInverseError(
                "The density of a given value needs the inverse of the flow's bijection.",
                expected="a bijection with inverse_and_log_det",
                got=f"{type(self.held.tree[0]).__name__}: {error}",
                where=user_line(),
                fix="Flow.draw(address) gives a draw and its density without it; "
                "varax.families.planar has an inverse",
            ) from error

    def __call__(self, x: Any) -> Array:
        """y, leading axes kept."""
        return self.call_with_intermediates(x)[0]

    def _inverse(self, y: Any) -> Array:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Array:
        """Log |det dy/dx|; the intermediate of a forward pass, if given, is just that."""
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    def _each(self, method: str, x: Any) -> tuple[Array, Array]:
        bijection, condition = self.held.tree
        one: Callable[[Any], Any] = lambda x: getattr(bijection, method)(x, condition)  # noqa: E731
        for _ in range(jnp.ndim(x) - len(self.form[0])):
            one = jax.vmap(one)
        return one(x)


def _still(x: Any) -> Any:
    return jax.lax.stop_gradient(x) if is_array(x) else x


def _require_fit(base: Any, bijection: Any, condition: Any) -> Any:
    if base.shape() != tuple(bijection.shape):
        raise ShapeError(
            "A flow's base has not the shape of its bijection.",
            expected=f"a base of shape {tuple(bijection.shape)}",
            got=f"shape {base.shape()} of {type(base).__name__}",
            where=user_line(),
            fix="one flow has no batch: draw several under jax.vmap",
        )
    needs = bijection.cond_shape
    given = None if condition is None else jnp.shape(condition)
    if given != needs:
        raise ShapeError(
            "A flow's condition is not what its bijection depends on.",
            expected="no condition" if needs is None else f"a condition of shape {tuple(needs)}",
            got="no condition" if given is None else f"shape {given}",
            where=user_line(),
            fix="Flow(base, bijection, condition), one condition under each lane of jax.vmap",
        )
    return None if condition is None else jnp.asarray(condition, float)
