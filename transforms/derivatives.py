"""`grad` and `value_and_grad`: JAX's, key first, of the expectation instead of one run.

law:  E[vx.grad(f)(key, theta)] = d E[f(theta)] / d theta
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.source import user_line
from .errors import DifferentiationError, ObjectiveError
from .expect import Estimators, expect, require_key
from .strategies import Strategy


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    using: Strategy | None = None,
    strict: bool = False,
    estimators: Estimators | None = None,
) -> Callable[..., Any]:
    """`(key, *args) -> (estimate of E[f], estimate of its gradient)`, both unbiased.

    Args:
        f: a program with a scalar value, or with `has_aux` a pair of a scalar and a pytree.
        argnums: which arguments of f to differentiate, counted without the key.
        has_aux: as in `jax.value_and_grad`.
        using, strict, estimators: as in `expect`.

    The gradient has the tree of the argument. Leaves that are not floating-point arrays or numbers
    (functions in an Equinox module, integers) have no derivative: None stands in their place.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    estimate = expect(f, using=using, strict=strict, estimators=estimators)

    @functools.wraps(f)
    def wrapped(key: jax.Array, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        require_key(key)
        chosen = [args[n] for n in numbers]
        floats, rest = zip(*(split_floats(a) for a in chosen), strict=True)

        def of_floats(floats: tuple[Any, ...]) -> Any:
            full = list(args)
            for n, x, r in zip(numbers, floats, rest, strict=True):
                full[n] = join(x, r)
            out = estimate(key, *full, **kwargs)
            _require_scalar(out[0] if has_aux else out)
            return out

        with reverse_mode():
            value, grads = jax.value_and_grad(of_floats, has_aux=has_aux)(tuple(floats))
        return value, grads[0] if isinstance(argnums, int) else grads

    return wrapped


@contextlib.contextmanager
def reverse_mode() -> Iterator[None]:
    """Name what JAX cannot transpose.

    Raises:
        DifferentiationError: a while loop.
    """
    try:
        yield
    except ValueError as error:
        if "while_loop" not in str(error):
            raise
        raise DifferentiationError(
            "JAX has no reverse-mode derivative through a while_loop.",
            got=str(error).splitlines()[0],
            where=user_line(),
            fix="use jax.lax.scan over the largest number of steps with "
            "vx.masked(distribution, still_running), or jax.jvp of vx.expect",
        ) from error


def _require_scalar(out: Any) -> None:
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or jnp.shape(leaves[0]) != () or not is_float(leaves[0]):
        raise ObjectiveError(
            "A gradient is that of one number.",
            expected="a scalar of a floating-point type (with has_aux: and a second value)",
            got=", ".join(f"shape {jnp.shape(x)}, {jnp.result_type(x)}" for x in leaves)
            or "nothing",
            where=user_line(),
            fix="return the mean or the sum, or use jax.jacobian of vx.expect(f)",
        )


def grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    using: Strategy | None = None,
    strict: bool = False,
    estimators: Estimators | None = None,
) -> Callable[..., Any]:
    """`(key, *args) -> unbiased estimate of the gradient of E[f]`; see `value_and_grad`."""
    both = value_and_grad(f, argnums, has_aux, using=using, strict=strict, estimators=estimators)

    @functools.wraps(f)
    def wrapped(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        value, grads = both(key, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def is_float(x: Any) -> bool:
    """True for what JAX differentiates: floating-point arrays and Python floats."""
    if isinstance(x, (bool, int, str)) or not (isinstance(x, (float, complex)) or _has_dtype(x)):
        return False
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _has_dtype(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def split_floats(tree: Any) -> tuple[Any, Any]:
    """A tree's floats and its other leaves, None in the place of the others."""
    floats = jax.tree.map(lambda x: x if is_float(x) else None, tree)
    rest = jax.tree.map(lambda x: None if is_float(x) else x, tree)
    return floats, rest


def join(floats: Any, rest: Any) -> Any:
    """The inverse of `split_floats`."""
    return jax.tree.map(
        lambda x, r: r if x is None else x, floats, rest, is_leaf=lambda x: x is None
    )
