"""Gaussian variational inference on R^D by geometry: natural and Bures-Wasserstein gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ...kernels.source import user_line
from ...transforms.errors import StepError
from ..language import sample
from ..measure import Measure
from ..potential import Potential, constrain
from ..steps import InferenceState, Metrics
from .gaussian import forward_backward, moments, next_precision, solve, square_root
from .target import Target, require_vector

Array = jax.Array
EXACT = 50  # most dimensions in which Hessians are taken by default


@dataclasses.dataclass(frozen=True, eq=False)
class _Gaussian:
    """What the two steps share."""

    m: Measure | Callable[[Any], Measure]
    _: dataclasses.KW_ONLY
    rate: float | Callable[[Array], Array] = 0.1
    draws: int = 8
    hessian: str | None = None
    start_sd: float = 0.1
    target: Target = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", Target(self.m))
        if self.hessian not in (None, "exact", "stein") or self.draws < 1:
            raise StepError(
                f"{type(self).__name__} cannot run like this.",
                expected='hessian "exact", "stein" or None, and at least one draw',
                got=f"hessian={self.hessian!r}, draws={self.draws}",
                where=user_line(),
            )

    @property
    def model(self) -> Measure | None:
        """The posterior's measure; None where there are only minibatches."""
        return self.m if isinstance(self.m, Measure) else None

    def _method(self, size: int) -> str:
        return self.hessian or ("exact" if size <= EXACT else "stein")

    def _rate(self, count: Array) -> Array:
        return jnp.asarray(self.rate(count) if callable(self.rate) else self.rate)

    def _mean(self, key: Array, params: Any) -> Array:
        if params is None:
            return self.target.start(key, 1, type(self).__name__)[0]
        fix = 'params={"mean": potential.ravel(u), ...}, or None'
        return require_vector(params["mean"], (None,), "means", fix)


@dataclasses.dataclass(frozen=True, eq=False)
class NaturalGradientGaussian(_Gaussian):
    """A Gaussian on the unconstrained space by natural gradients of the ELBO.

        P <- P + rho (E_q[-hess log p] - P)
        m <- m + rho P^-1 E_q[grad log p]

    the Bayesian learning rule (Khan and Rue 2023), which is variational online Newton; the
    precision stays positive definite (see `gaussian.next_precision`). On a Gaussian posterior a
    step with rate 1 arrives.

        step = vx.engines.NaturalGradientGaussian(model(data))
        result = vx.fit(step, None, steps=200, key=key)
        step.posterior(result.state)

    Args:
        m: a measure with observations, or a function from a minibatch to one.
        rank: "full" or "diag", of the precision.
        rate: rho in (0, 1], or a function of the number of steps taken (an optax schedule).
        draws: of q in a step, in antithetic pairs.
        hessian: "exact" differentiates twice; "stein" needs gradients alone and is noisier. By
            default exact in up to 50 dimensions.
        start_sd: of q at first, where `vx.fit` is given no params; else those are
            {"mean": [D], "precision": [D, D] or [D]}.

    The metric `objective` is an estimate of the ELBO, without noise where q is the posterior.
    """

    rank: str = dataclasses.field(default="full", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank not in ("full", "diag"):
            raise StepError(
                "This is no rank of a precision.",
                expected='"full" or "diag"',
                got=repr(self.rank),
                where=user_line(),
            )

    def init(self, key: Array, params: Any) -> InferenceState:
        """Mean and precision."""
        mean = self._mean(key, params)
        shape = (mean.size,) * (2 if self.rank == "full" else 1)
        if params is None:
            precision = jnp.ones(shape) if self.rank == "diag" else jnp.eye(mean.size)
            precision = precision / self.start_sd**2
        else:
            precision = require_vector(
                params["precision"], shape, "precisions", f"rank {self.rank}"
            )
        return InferenceState({"mean": mean, "precision": precision}, jnp.zeros((), int))

    def step(self, key: Array, state: InferenceState, batch: Any) -> tuple[InferenceState, Metrics]:
        """One step of both parameters."""
        mean, precision = state.params["mean"], state.params["precision"]
        scale, rate = square_root(precision), self._rate(state.memory)
        log_density, method = self.target.log_density(batch), self._method(mean.size)
        found = moments(log_density, mean, scale, key, self.draws, method)
        precision = next_precision(precision, found.hessian, rate)
        mean = mean - rate * solve(precision, found.gradient)
        params = {
            k: v.astype(state.params[k].dtype)
            for k, v in {"mean": mean, "precision": precision}.items()
        }
        return InferenceState(params, state.memory + 1), {"objective": found.elbo}

    def guide(self, params: Any, m: Measure | None = None) -> Measure:
        """The Gaussian's image in the choices: exact density, and it draws.

        `m` is the measure of all data, where the step knows minibatches alone.
        """
        return _image(
            self.target.whole("A posterior", m), params["mean"], square_root(params["precision"])
        )

    def posterior(self, state: InferenceState, m: Measure | None = None) -> Measure:
        """The guide at the present parameters."""
        return self.guide(state.params, m)


@dataclasses.dataclass(frozen=True, eq=False)
class BuresWasserstein(_Gaussian):
    """A Gaussian on the unconstrained space by the gradient flow of KL in the Wasserstein metric.

    Forward-backward Gaussian VI (Diao, Balasubramanian, Chewi and Salim 2023): a gradient step for
    the potential, then the exact proximal step for the entropy. For a log-concave posterior whose
    curvature is at most L it converges with rates up to 1 / L.

    Args:
        m, draws, hessian, start_sd: as for `NaturalGradientGaussian`; params are {"mean": [D],
            "covariance": [D, D]}.
        rate: eta, in units of the unconstrained space squared.
    """

    def init(self, key: Array, params: Any) -> InferenceState:
        """Mean and covariance."""
        mean = self._mean(key, params)
        if params is None:
            covariance = jnp.eye(mean.size) * self.start_sd**2
        else:
            shape = (mean.size, mean.size)
            covariance = require_vector(params["covariance"], shape, "covariances", "full matrices")
        return InferenceState({"mean": mean, "covariance": covariance}, jnp.zeros((), int))

    def step(self, key: Array, state: InferenceState, batch: Any) -> tuple[InferenceState, Metrics]:
        """One step of both parameters."""
        mean, covariance = state.params["mean"], state.params["covariance"]
        scale, rate = jnp.linalg.cholesky(covariance), self._rate(state.memory)
        log_density, method = self.target.log_density(batch), self._method(mean.size)
        found = moments(log_density, mean, scale, key, self.draws, method)
        params = {
            "mean": (mean - rate * found.gradient).astype(mean.dtype),
            "covariance": forward_backward(covariance, found.hessian, rate).astype(mean.dtype),
        }
        return InferenceState(params, state.memory + 1), {"objective": found.elbo}

    def guide(self, params: Any, m: Measure | None = None) -> Measure:
        """The Gaussian's image in the choices: exact density, and it draws.

        `m` is the measure of all data, where the step knows minibatches alone.
        """
        return _image(
            self.target.whole("A posterior", m),
            params["mean"],
            jnp.linalg.cholesky(params["covariance"]),
        )

    def posterior(self, state: InferenceState, m: Measure | None = None) -> Measure:
        """The guide at the present parameters."""
        return self.guide(state.params, m)


def _image(potential: Potential, mean: Array, scale: Array) -> Measure:
    """The image of N(mean, scale scale^T) in the choices; independent where the scale is [D]."""
    if scale.ndim == 1:
        law: Any = npd.Normal(mean, scale)
    else:
        law = npd.MultivariateNormal(mean, scale_tril=scale)

    def noise() -> None:
        # One address that no model has, so that `constrain` takes it for all of R^D.
        sample("u of the posterior", law)

    return constrain(Measure(noise, "gaussian"), potential.measure)
