"""How an expectation as a whole is taken: `expect(f, using=...)`.

Three kinds: several runs whose mean is the estimate; runs at chosen points of the noise behind the
smooth choices; another default estimator for every choice that the program leaves open. Choices
with an estimator of their own keep it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from .errors import EstimatorError
from .estimators import Enumerate, Estimator, GaussHermite, GaussLegendre
from .law import Law


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Base class. One run, the default estimators."""

    exact: ClassVar[bool] = False  # whether the estimate is a deterministic approximation

    @property
    def chooses(self) -> bool:
        """Whether it chooses the noise of smooth choices."""
        return False

    def runs(self, dimension: int) -> int:
        """How many times the program runs, given the dimension of the noise that is chosen."""
        return 1

    def default(self, law: Law) -> Estimator | None:
        """The estimator of a choice that the program leaves open; None for the usual one."""
        return None

    def points(self, key: jax.Array, dimension: int) -> jax.Array:
        """Standard normal noise, shape `[runs, dimension]`."""
        raise NotImplementedError

    def weights(self, dimension: int) -> np.ndarray:
        """Of the runs; they sum to 1."""
        n = self.runs(dimension)
        return np.full(n, 1 / n)


@dataclasses.dataclass(frozen=True)
class MonteCarlo(Strategy):
    """The mean of n independent runs. Leave-one-out baselines compare all of them."""

    n: int

    def __post_init__(self) -> None:
        _at_least(self, self.n, 1)

    def runs(self, dimension: int) -> int:
        return self.n


@dataclasses.dataclass(frozen=True)
class Antithetic(Strategy):
    """The mean of n runs in pairs whose smooth choices have mirrored noise, z and -z. Unbiased.

    The variance falls below that of independent runs where the objective is close to monotone in
    the noise; its part that is odd in the noise vanishes. Hammersley and Morton 1956.
    """

    n: int = 2

    def __post_init__(self) -> None:
        _at_least(self, self.n, 2)
        if self.n % 2:
            raise EstimatorError(
                "Antithetic runs come in pairs.", expected="even n", got=self.n, where=user_line()
            )

    @property
    def chooses(self) -> bool:
        return True

    def runs(self, dimension: int) -> int:
        return self.n

    def points(self, key: jax.Array, dimension: int) -> jax.Array:
        half = jax.random.normal(key, (self.n // 2, dimension))
        return jnp.concatenate([half, -half])


@dataclasses.dataclass(frozen=True)
class QuasiMonteCarlo(Strategy):
    """The mean of n runs whose smooth choices share a Sobol' sequence with a random digital shift.

    Unbiased: every run alone has the right law. The error for smooth integrands of low dimension
    falls almost like 1 / n. Best with n a power of 2. Owen 1995; Buchholz, Wenzel and Mandt 2018.
    """

    n: int

    def __post_init__(self) -> None:
        _at_least(self, self.n, 2)

    @property
    def chooses(self) -> bool:
        return True

    def runs(self, dimension: int) -> int:
        return self.n

    def points(self, key: jax.Array, dimension: int) -> jax.Array:
        if not dimension:
            return jnp.zeros((self.n, 0))
        digits = jnp.asarray(_sobol(self.n, dimension))  # [n, D], 30 bits
        shift = jax.random.bits(key, (dimension,), jnp.uint32) >> 2
        u = ((digits ^ shift).astype(float) + 0.5) / 2**30
        edge = jnp.finfo(u.dtype).eps
        return jax.scipy.special.ndtri(jnp.clip(u, edge, 1 - edge))


@dataclasses.dataclass(frozen=True)
class Quadrature(Strategy):
    """Gauss quadrature with n nodes for each element of a smooth choice; sums over finite supports.

    Deterministic. Exact for normal choices where the objective is a polynomial of degree 2 n - 1 in
    each. The grid is a product over choices and elements that the objective couples.
    """

    exact: ClassVar[bool] = True
    n: int = 8

    def default(self, law: Law) -> Estimator:
        for candidate in (Enumerate(), GaussHermite(self.n), GaussLegendre(self.n)):
            try:
                candidate.serve(law)
            except EstimatorError:
                continue
            return candidate
        raise no_rule(self, law, "a finite support, a normal or a scalar with an icdf")


@dataclasses.dataclass(frozen=True)
class Enumeration(Strategy):
    """The exact sum over all choices, which have finite supports."""

    exact: ClassVar[bool] = True

    def default(self, law: Law) -> Estimator:
        Enumerate().serve(law)
        return Enumerate()


@dataclasses.dataclass(frozen=True)
class SigmaPoints(Strategy):
    """The unscented transform of all smooth choices together: 2 D + 1 runs, D their dimension.

        z_0 = 0,  z_{+-i} = +-sqrt(D + kappa) e_i;   weights kappa / (D + kappa), 1 / 2 (D + kappa)

    Deterministic. Exact for polynomials of degree 3 in the noise; kappa = 3 - D matches fourth
    moments of one coordinate (negative weights for D > 3). Julier and Uhlmann 1997.
    """

    exact: ClassVar[bool] = True
    kappa: float = 1.0

    @property
    def chooses(self) -> bool:
        return True

    def runs(self, dimension: int) -> int:
        return 2 * dimension + 1

    def points(self, key: jax.Array, dimension: int) -> jax.Array:
        directions = np.sqrt(dimension + self.kappa) * np.eye(dimension)
        origin = np.zeros((1, dimension))
        return jnp.asarray(np.concatenate([origin, directions, -directions]), float)

    def weights(self, dimension: int) -> np.ndarray:
        if not dimension:
            return np.ones(1)
        side = 0.5 / (dimension + self.kappa)
        return np.array([self.kappa / (dimension + self.kappa)] + [side] * (2 * dimension))


def _sobol(n: int, dimension: int) -> np.ndarray:
    """The first n points of a Sobol' sequence as integers of 30 bits, `[n, dimension]`."""
    from scipy.stats import qmc

    sampler: Any = qmc.Sobol(dimension, scramble=False, bits=30)
    power = max(int(np.ceil(np.log2(n))), 0)
    return (sampler.random_base2(power)[:n] * 2**30).astype(np.uint32)


def _at_least(strategy: Strategy, n: int, least: int) -> None:
    if n < least:
        name = type(strategy).__name__
        raise EstimatorError(
            f"{name} needs runs.", expected=f"n >= {least}", got=n, where=user_line()
        )


def no_rule(strategy: Strategy, law: Law, needs: str) -> EstimatorError:
    """The error for a choice that a deterministic strategy cannot place."""
    return EstimatorError(
        f"{type(strategy).__name__} has no rule for {law.name}.",
        address=law.address,
        expected=needs,
        got=f"{law.name}, shape {law.site.shape}",
        where=law.site.line,
        fix="give this choice an estimator of its own, such as Reparam() or Score()",
    )
