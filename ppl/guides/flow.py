"""Flow guides: u = c + S f(eps), f an inverse autoregressive flow near the identity at first."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ..families import inverse_autoregressive, rational_quadratic_spline
from ..families.flow import Flow
from .gaussian import as_matrix
from .start import Start

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placed:
    """y = c + S f(x) for a bijection f and a lower triangular S."""

    inner: Any
    center: Array
    scale: Array

    cond_shape = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return jnp.shape(self.center)

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """y [D] and log |det dy/dx|."""
        z, log_det = self.inner.transform_and_log_det(x, condition)
        return self.center + self.scale @ z, log_det + jnp.log(jnp.diag(self.scale)).sum()

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """x [D] and log |det dx/dy|."""
        z = jax.scipy.linalg.solve_triangular(self.scale, y - self.center, lower=True)
        x, log_det = self.inner.inverse_and_log_det(z, condition)
        return x, log_det - jnp.log(jnp.diag(self.scale)).sum()


@dataclasses.dataclass(frozen=True)
class FlowGuide:
    """An inverse autoregressive flow in the coordinates of the start.

    Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling 2016; Durkan, Bekasov, Murray and
    Papamakarios 2019 (splines); Agrawal, Sheldon and Domke 2020 (flows as guides).
    """

    start: Start
    layers: int
    spline: bool

    inverts = False  # its density at a given value takes D passes of the networks

    def init(self, key: Array) -> Any:
        """Parameters: the flow, its networks' outputs made small, and a scale for each axis."""
        transformer = rational_quadratic_spline() if self.spline else None
        d = self.start.center.size
        flow = inverse_autoregressive(
            key, d, self.layers, transformer=transformer, activation=jax.nn.gelu
        )
        small = jax.tree.map(lambda x: 0.1 * x if _is_weight(x) else x, flow)
        return {"flow": small, "shift": jnp.zeros(d), "log_scale": jnp.zeros(d)}

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        scale = as_matrix(self.start)
        center = self.start.center + scale @ params["shift"]
        placed = Placed(params["flow"], center, scale * jnp.exp(params["log_scale"]))
        return Flow(npd.Normal(jnp.zeros(center.shape), 1.0), placed)


def _is_weight(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim >= 3
