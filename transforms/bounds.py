"""What an estimated density is unbiased for, marked in the program.

    E[w] = p          E log w <= log p      (Jensen): an estimate from below
    E[1 / w] = 1 / p  E log w >= log p                an estimate from above

`density_estimate` is the identity; `direction.py` follows it through an objective.
"""

from __future__ import annotations

from typing import Any, Literal

import jax

from . import _jax

UnbiasedFor = Literal["p", "1 / p"]

estimate_p = _jax.Primitive("density_estimate")


def estimate(log_w: jax.Array, of: UnbiasedFor, name: str, line: str) -> jax.Array:
    """`log_w`, with the statement of what w is unbiased for, and of which measure."""
    return estimate_p.bind(log_w, of=of, name=name, line=line)


def has_estimates(region: Any) -> bool:
    """Whether a jaxpr has an estimated density, at any depth."""
    return any(
        eqn.primitive is estimate_p or any(map(has_estimates, _jax.subjaxprs(eqn)))
        for eqn in _jax.opened(region)[0].eqns
    )


def _identity(x: Any, **_: Any) -> Any:
    return x


def _batch(size: int, operands: Any, dims: Any, **params: Any) -> Any:
    return estimate_p.bind(*operands, **params), dims[0]


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    return estimate_p.bind(*primals, **params), _jax.instantiated(tangents[0])


_jax.set_rules(
    estimate_p,
    impl=_identity,
    abstract=_identity,
    batch=_batch,
    jvp=_jvp,
    lower=_jax.lower_as(_identity),
)
