"""Importance weights w = p(x, z) / q(z), what most objectives are functions of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.choices import Choices, flatten
from ...transforms.errors import AddressError, DrawCountError, GuideMismatchError, show_address
from ..measure import Measure
from ..trace import Trace


def log_weight(p: Measure, trace: Trace, data: Choices, of: jax.Array | None = None) -> jax.Array:
    """log p(x, z) - log q(z) at a guide's trace, or minus another density of it: a scalar.

    Raises:
        GuideMismatchError: the trace's addresses and data are not together p's, each once.
    """
    scored = trace.log_density if of is None else of
    with explained(p, trace.choices, data):
        return p.log_density(trace.choices | dict(data)) - scored


def log_weights(p: Measure, q: Measure, data: Choices, k: int) -> jax.Array:
    """`log_weight` at k independent draws of q: [k].

    Raises:
        DrawCountError: k < 1.
        GuideMismatchError: see `log_weight`.
    """
    require_draws(k)
    return jax.vmap(lambda _: log_weight(p, q.simulate(), data))(jnp.arange(k))


def log_mean_exp(x: jax.Array, axis: int = 0) -> jax.Array:
    """log 1/n sum_i exp(x_i) along an axis of length n."""
    return jax.nn.logsumexp(x, axis) - jnp.log(x.shape[axis])


def require_draws(k: int, least: int = 1) -> None:
    """Raise unless k is a number of draws."""
    if k < least:
        raise DrawCountError(
            "An objective has too few draws.",
            expected=f"at least {least}",
            got=str(k),
            where=user_line(),
        )


@contextlib.contextmanager
def explained(p: Measure, choices: Choices, data: Choices) -> Iterator[None]:
    """An error about p's addresses becomes one about the guide and the data that give them."""
    try:
        if clash := flatten(choices).keys() & flatten(data).keys():
            raise AddressError(f"{len(clash)} address given twice")
        yield
    except AddressError as error:
        shown = {
            "model": set(p.addresses),
            "guide": {show_address(a) for a in flatten(choices)},
            "data": {show_address(a) for a in flatten(data)},
        }
        wrong = shown["model"] ^ (shown["guide"] | shown["data"]) | shown["guide"] & shown["data"]
        raise GuideMismatchError(
            "The guide does not match the model.",
            address=", ".join(sorted(wrong)),
            expected=f"guide and data share out the model's addresses {_set(shown['model'])}",
            got=f"guide {_set(shown['guide'])} and data {_set(shown['data'])}",
            where=error.where or user_line(),
            fix="sample each unobserved address of the model, and no other, in the guide",
        ) from error


def _set(names: set[str]) -> str:
    return "{" + ", ".join(sorted(names)) + "}"
