"""Structured guides: the conditional independences of the model's own posterior.

    z_i = m_i + sum_j W_ij z_j + exp(r_i + sum_j R_ij z_j) eps_i,       j in parents(i),
    u = c + s z

The parents of a coordinate are those that its conditional depends on when the later ones are
integrated out, were the posterior Gaussian: coordinates are eliminated from the last to the first
along the sparsity of the Hessian, which holds lanes, chains and nesting alike. A hierarchy's lanes
depend on what they share and not on each other; a scale that depends on its parents makes funnels.

Hoffman and Blei 2015; Tan and Nott 2018 (sparse precision); Ambrogioni et al. 2021.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd

from ..families.flow import Flow
from .start import FULL, Start

Array = jax.Array
BOUND = 10.0  # of a log scale's dependence on the parents
PROBES = 3  # points at which the Hessian is looked at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditionals:
    """u of eps: conditional normals, one level of the graph after the other.

    Args:
        center, sd: c and s, [D]; shift, log_scale: m and r, [D].
        weights, scales: W and R, [D, D], zero where j is no parent of i.
        level: the longest way to each coordinate, [D]; levels: how many.
    """

    center: Array
    sd: Array
    shift: Array
    log_scale: Array
    weights: Array
    scales: Array
    level: Array
    levels: int = dataclasses.field(metadata={"static": True})

    cond_shape = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return jnp.shape(self.center)

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """u [D] and log |det du/d eps|."""

        def at(z: Array, level: Array) -> tuple[Array, None]:
            mean, log_sd = self._given(z)
            return jnp.where(self.level == level, mean + jnp.exp(log_sd) * x, z), None

        z, _ = jax.lax.scan(at, jnp.zeros_like(x), jnp.arange(self.levels))
        return self.center + self.sd * z, self._log_det(z)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """eps [D] and log |det d eps/du|."""
        z = (y - self.center) / self.sd
        mean, log_sd = self._given(z)
        return (z - mean) * jnp.exp(-log_sd), -self._log_det(z)

    def _given(self, z: Array) -> tuple[Array, Array]:
        more = BOUND * jnp.tanh(self.scales @ z / BOUND)
        return self.shift + self.weights @ z, self.log_scale + more

    def _log_det(self, z: Array) -> Array:
        return (self._given(z)[1] + jnp.log(self.sd)).sum()


@dataclasses.dataclass(frozen=True)
class Structured:
    """Conditional normals along the graph of the posterior.

    Attributes:
        parents: [D, D] bool, strictly lower triangular.
    """

    start: Start
    parents: np.ndarray

    inverts = True

    def init(self, key: Array) -> Any:
        """Parameters: the start's Gaussian, as far as the graph has it."""
        s = np.asarray(self._sd, float)
        root = np.asarray(self.start.scale, float) / s[:, None]
        cov = root @ root.T  # of z
        d = len(s)
        weights, log_scale = np.zeros((d, d)), np.zeros(d)
        for i in range(d):
            (pa,) = np.nonzero(self.parents[i])
            left = cov[i, i]
            if len(pa):
                weights[i, pa] = np.linalg.lstsq(cov[np.ix_(pa, pa)], cov[pa, i], rcond=None)[0]
                left = cov[i, i] - weights[i, pa] @ cov[pa, i]
            log_scale[i] = 0.5 * np.log(max(left, 1e-8 * cov[i, i]))
        at = np.nonzero(self.parents)
        return {
            "shift": jnp.zeros(d),
            "log_scale": jnp.asarray(log_scale, float),
            "weights": jnp.asarray(weights[at], float),
            "scales": jnp.zeros(len(at[0])),
        }

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        d = len(self.parents)
        at = np.nonzero(self.parents)
        level = self._levels()
        placed = Conditionals(
            self.start.center,
            self._sd,
            params["shift"],
            params["log_scale"],
            jnp.zeros((d, d)).at[at].set(params["weights"]),
            jnp.zeros((d, d)).at[at].set(params["scales"]),
            jnp.asarray(level),
            int(level.max(initial=0)) + 1,
        )
        return Flow(npd.Normal(jnp.zeros(d), 1.0), placed)

    @property
    def _sd(self) -> Array:
        return jnp.linalg.norm(self.start.scale, axis=1)  # of each coordinate by itself

    def _levels(self) -> np.ndarray:
        level = np.zeros(len(self.parents), int)
        for i, row in enumerate(self.parents):
            level[i] = level[row].max(initial=-1) + 1
        return level


def find_parents(energy: Any, start: Start, key: Array) -> np.ndarray:
    """The parents of every coordinate, [D, D] bool, by elimination from the last to the first."""
    d = start.center.size
    assert d <= FULL
    points = start.center + start.conditional * jax.random.normal(key, (PROBES, d))
    hessian = np.asarray(jax.jit(lambda us: jax.lax.map(jax.hessian(energy), us))(points))
    units = np.asarray(start.conditional)
    linked = np.abs(np.nan_to_num(hessian) * units[:, None] * units).max(0) > 1e-9
    linked |= linked.T
    for i in reversed(range(d)):
        (before,) = np.nonzero(linked[i, :i])
        linked[np.ix_(before, before)] = True
    return np.tril(linked, -1)
