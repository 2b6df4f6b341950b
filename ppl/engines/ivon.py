"""IVON: variational learning of a network's weights at the cost of Adam."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from ...kernels.source import user_line
from ...transforms.derivatives import join, value_and_grad
from ...transforms.errors import StepError
from ..groups import path_name, split_trained
from ..language import sample
from ..measure import Measure
from ..steps import InferenceState, Metrics, strong

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class IVON:
    """Improved variational online Newton (Shen et al. 2024).

    q = N(m, diag s^2) over the weights, s = 1 / sqrt(lambda (h + delta)), for the loss l, a mean
    over data points, and the prior N(0, 1 / (lambda delta)). With e ~ N(0, I), w = m + s e:

        g_hat = grad l(w),   h_hat = g_hat e / s
        g <- b1 g + (1 - b1) g_hat
        h <- b2 h + (1 - b2) h_hat + (1 - b2)^2 (h - h_hat)^2 / (2 (h + delta))
        m <- m - rate clip((g / (1 - b1^t) + delta m) / (h + delta))

    The last term of h keeps it above -delta. Minimises E_q[lambda l(w)] + KL(q || prior).

        step = vx.engines.IVON(loss, data_points=len(x), learning_rate=0.1)
        result = vx.fit(step, weights, steps=5000, key=key, data=(x, y), batch_size=100)
        step.posterior(result.state).simulate(key).value         # weights drawn from q

    Args:
        loss: `loss(params)` or `loss(params, batch)`: minus the mean log-likelihood of a point.
        data_points: lambda, how many the loss is a mean of (the effective sample size).
        learning_rate: a number, or a function of the number of steps taken.
        beta1: of the gradient's running mean.
        beta2: of the Hessian's: how slowly it follows.
        weight_decay: delta.
        hess_init: h at first. Too small makes the first draws wild.
        clip_radius: bound on every entry of the step before the learning rate.
        draws: of the weights in a step.

    Floating-point leaves of the params are the weights; others stay. The metric `objective` is the
    loss at the draws.

    Raises:
        StepError: data_points, weight_decay, hess_init, draws or a beta out of range.
    """

    maximize: ClassVar[bool] = False  # for rules that stop a fit

    loss: Callable[..., Any]
    _: dataclasses.KW_ONLY
    data_points: float
    learning_rate: float | Callable[[Array], Array] = 0.1
    beta1: float = 0.9
    beta2: float = 0.99999
    weight_decay: float = 1e-4
    hess_init: float = 1.0
    clip_radius: float = float("inf")
    draws: int = 1

    def __post_init__(self) -> None:
        shown = {
            "data_points > 0": self.data_points > 0,
            "weight_decay > 0": self.weight_decay > 0,
            "hess_init > 0": self.hess_init > 0,
            "0 <= beta1 < 1": 0 <= self.beta1 < 1,
            "0 <= beta2 < 1": 0 <= self.beta2 < 1,
            "clip_radius > 0": self.clip_radius > 0,
            "draws >= 1": self.draws >= 1,
        }
        if not all(shown.values()):
            raise StepError(
                "IVON cannot run like this.",
                expected=", ".join(text for text, holds in shown.items() if not holds),
                got=repr(self),
                where=user_line(),
            )

    def init(self, key: Array, params: Any) -> InferenceState:
        """The weights are q's mean; h is `hess_init`."""
        trained, rest = split_trained(params, None, "IVON")
        trained = jax.tree.map(strong, trained)
        memory = {
            "gradient": jax.tree.map(jnp.zeros_like, trained),
            "hessian": jax.tree.map(lambda x: jnp.full_like(x, self.hess_init), trained),
            "steps": jnp.zeros((), int),
        }
        return InferenceState(join(trained, rest), memory)

    def step(self, key: Array, state: InferenceState, batch: Any) -> tuple[InferenceState, Metrics]:
        """One update. The draws depend on the key alone."""
        mean, rest = split_trained(state.params, None, "IVON")
        g, h, count = (state.memory[name] for name in ("gradient", "hessian", "steps"))
        data = () if batch is None else (batch,)

        def one(key: Array) -> tuple[Array, Any, Any]:
            noise_key, key = jax.random.split(key)
            noise = _normal_like(noise_key, mean)
            scale = self.scale(h)
            w = jax.tree.map(lambda m, s, e: m + s * e, mean, scale, noise)
            loss, slope = value_and_grad(lambda w: self.loss(join(w, rest), *data))(key, w)
            return loss, slope, jax.tree.map(lambda d, e, s: d * e / s, slope, noise, scale)

        found = jax.vmap(one)(jax.random.split(key, self.draws))
        loss, g_hat, h_hat = jax.tree.map(lambda x: x.mean(0), found)
        b1, b2, decay = self.beta1, self.beta2, self.weight_decay
        g = jax.tree.map(lambda g, new: b1 * g + (1 - b1) * new, g, g_hat)
        h = jax.tree.map(
            lambda h, new: (
                b2 * h + (1 - b2) * new + 0.5 * (1 - b2) ** 2 * (h - new) ** 2 / (h + decay)
            ),
            h,
            h_hat,
        )
        debias = 1 - b1 ** (count + 1)
        rate = self.learning_rate(count) if callable(self.learning_rate) else self.learning_rate

        def move(m: Array, g: Array, h: Array) -> Array:
            way = (g / debias + decay * m) / (h + decay)
            return (m - rate * jnp.clip(way, -self.clip_radius, self.clip_radius)).astype(m.dtype)

        mean = jax.tree.map(move, mean, g, h)
        memory = {"gradient": g, "hessian": h, "steps": count + 1}
        memory = jax.tree.map(lambda new, old: new.astype(old.dtype), memory, state.memory)
        return InferenceState(join(mean, rest), memory), {"objective": loss}

    def scale(self, hessian: Any) -> Any:
        """q's standard deviations, as a tree like the weights, from h."""
        return jax.tree.map(
            lambda h: 1 / jnp.sqrt(self.data_points * (h + self.weight_decay)), hessian
        )

    def posterior(self, state: InferenceState) -> Measure:
        """q: each leaf at the address that is its path; the measure's value are the weights."""
        mean, rest = split_trained(state.params, None, "IVON")
        scale = self.scale(state.memory["hessian"])

        def program() -> Any:
            def leaf(path: Any, m: Array, s: Array) -> Array:
                return _at(path_name(path).split("/"), npd.Normal(m, s))

            return join(jax.tree_util.tree_map_with_path(leaf, mean, scale), rest)

        return Measure(program, "IVON")


def _at(path: list[str], law: Any) -> Any:
    """A choice at a nested address."""
    if len(path) == 1:
        return sample(path[0] or "weights", law)
    return sample(path[0], Measure(lambda: _at(path[1:], law), path[0]))


def _normal_like(key: Array, tree: Any) -> Any:
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))
    return form.unflatten(
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    )
