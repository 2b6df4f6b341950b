"""`assume_smooth`: an identity by which the user answers for what the soundness check cannot see.

A primitive of its own, because any other identity would be gone when the program is analysed. Its
tangent is its operand's, so derivatives of every order and every transformation pass through.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from . import _jax

assume_smooth_p = _jax.Primitive("assume_smooth")


def assume_smooth(x: Any) -> Any:
    """`x` itself, declared to depend smoothly enough on every pathwise random choice behind it.

    For a branch that is continuous where its two sides meet, a comparison that can hardly change,
    or a relaxation whose bias is accepted. The check of pathwise estimators stops here: on the
    user's word, the expectation of whatever is computed from `x` is differentiated along the path.

    Args:
        x: a pytree of arrays of any dtype; a mask may be declared as well as a value.
    """
    return jax.tree.map(lambda leaf: assume_smooth_p.bind(jnp.asarray(leaf)), x)


def _identity(x: Any) -> Any:
    return x


def _batch(size: int, operands: Any, dims: Any) -> Any:
    return assume_smooth_p.bind(*operands), dims[0]


def _jvp(primals: Any, tangents: Any) -> Any:
    return assume_smooth_p.bind(*primals), tangents[0]


_jax.set_rules(
    assume_smooth_p,
    impl=_identity,
    abstract=_identity,
    batch=_batch,
    jvp=_jvp,
    lower=_jax.lower_as(_identity),
)
