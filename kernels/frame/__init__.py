"""What every operation has in common.

An `Operation` is a function of arrays with a *definition* in plain JAX and any number of
`Implementation`s: each computes the same function on some platforms, or refuses with a reason.
It is three primitives, so that a lowering rule per platform can choose among them:

    value      x -> f(x), and what the derivative wants to have kept
    tangent    x, dx -> f'(x) dx        linear in dx; always by the definition
    adjoint    x, kept, ct -> f'(x)^T ct

Laws, each a test:

- every implementation equals the definition, and its adjoint the definition's;
- jit, vmap, grad, jvp and their compositions, to any order: the first reverse derivative is the
  implementation's, everything else is the definition's;
- a call is lowered for every platform at once (`jax.export`), whatever machine this is;
- what was forced by `using` runs or is an error, also where a compiled form is remembered.

Read `implementation`, then `operation`, `primitives` and `batching`; `choice` says who runs,
`explain` says why, `checks` holds what public functions do with their arguments.
"""

from .choice import using
from .explain import explain
from .implementation import Call, Implementation
from .operation import Operation, over_batch

__all__ = ["Call", "Implementation", "Operation", "explain", "over_batch", "using"]
