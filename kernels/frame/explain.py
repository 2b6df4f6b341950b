"""Which implementation will run, and why the others will not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from .. import _jax
from ..errors import ImplementationRefusedError
from .choice import choose, on_platform
from .implementation import PLATFORMS, Call
from .primitives import OWNERS, _call


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of an operation: `chosen` by platform, and what every implementation said.

    Attributes:
        operation: its name.
        part: "value", "adjoint" (its reverse derivative) or "tangent".
        call: shapes, dtypes, batch axis and statics.
        chosen: platform -> name of the implementation that runs, or None if all refuse.
        reasons: platform -> {implementation: why it does not serve, or None}.
    """

    operation: str
    part: str
    call: Call
    chosen: dict[str, str | None]
    reasons: dict[str, dict[str, str | None]]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The operations behind a function, in the order of use; `print` shows a table."""

    uses: tuple[Use, ...]

    def __str__(self) -> str:
        if not self.uses:
            return "no operation of varax.kernels is used"
        return "\n\n".join(_shown(use) for use in self.uses)

    __repr__ = __str__


def explain(f: Callable[..., Any], *args: Any, platform: str | None = None, **kwargs: Any) -> Any:
    """Which implementation serves each operation that `f(*args, **kwargs)` uses.

    Args:
        f: an operation's public function, or any function of JAX arrays; of
            `jax.grad(f)`, the adjoints are shown too.
        args, kwargs: as `f` takes them; arrays or `jax.ShapeDtypeStruct`s.
        platform: one of "cpu", "cuda", "tpu"; without it, all three.

    Returns:
        An `Explanation`: a table per use, with the implementation that runs on each platform and
        the reason of each that does not.
    """
    platforms = PLATFORMS if platform is None else (platform,)
    is_array = [isinstance(a, (jax.Array, jax.ShapeDtypeStruct)) for a in args]
    positions = [i for i, yes in enumerate(is_array) if yes]

    def of_arrays(*arrays: Any) -> Any:
        given = dict(zip(positions, arrays, strict=True))
        return f(*(given.get(i, a) for i, a in enumerate(args)), **kwargs)

    jaxpr = jax.make_jaxpr(of_arrays)(*(args[i] for i in positions))
    found: dict[str, Use] = {}
    for eqn in _jax.equations(jaxpr):
        if eqn.primitive in OWNERS:
            operation, part = OWNERS[eqn.primitive]
            use = _use(operation, part, eqn, platforms)
            found[f"{use.operation} {use.part} {use.call}"] = use
    return Explanation(tuple(found.values()))


def _use(operation: Any, part: str, eqn: Any, platforms: Any) -> Use:
    params = eqn.params
    avals = [v.aval for v in eqn.invars]
    arity = params.get("arity", len(avals))
    chosen, reasons = {}, {}
    call = None
    for platform in platforms:
        batched = params["batched"][:arity]
        save = params.get("save", True)
        call = _call(avals[:arity], platform, params["batch"], batched, params["statics"], save)
        if part == "tangent":
            chosen[platform], reasons[platform] = "xla", {}
            continue
        adjoint, implementations = part == "adjoint", operation.implementations
        here = on_platform(implementations, platform)
        reasons[platform] = {i.name: i.reason_against(call, adjoint=adjoint) for i in here}
        elsewhere = {i.name: f"runs on {', '.join(i.platforms)}" for i in implementations}
        reasons[platform] = elsewhere | reasons[platform]
        try:
            picked = choose(
                operation.name, implementations, call, params["forced"], adjoint=adjoint
            )
            chosen[platform] = picked.name
        except ImplementationRefusedError:
            chosen[platform] = None
    assert call is not None
    return Use(operation.name, part, call, chosen, reasons)


def _shown(use: Use) -> str:
    shapes = ", ".join(f"{s.dtype.name}[{','.join(map(str, s.shape))}]" for s in use.call.operands)
    batch = f", batch of {use.call.batch}" if use.call.batch is not None else ""
    lines = [f"{use.operation} ({use.part}) of {shapes}{batch}"]
    for platform, name in use.chosen.items():
        lines.append(f"  {platform:5} {name or 'NONE'}")
        for other, reason in use.reasons[platform].items():
            if other != name:
                lines.append(f"          not {other}: {reason or 'comes later'}")
    return "\n".join(lines)
