"""Where samplers and optimisers start: points at which the density and its gradient are finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms import finite
from ..transforms.choices import Choices, flatten, nest
from ..transforms.errors import InitialisationError, UnknownAddressError, show_address
from ..transforms.layout import layout
from ..transforms.staging import stage
from .measure import Measure

TRIES = 100
RADIUS = 2.0  # of "uniform", as in Stan
STRATEGIES = ("uniform", "prior")


def find(
    potential: Any,
    key: jax.Array,
    chains: int | None = None,
    strategy: str | Choices | Measure = "uniform",
) -> dict[str, Any]:
    """A point of the unconstrained space, or with `chains` several, leading axis [chains].

    Of those with a finite density and gradient, preferred are those where the density is resolved:
    rounded by less than a nat. Elsewhere (an ARMA process with |theta| > 1 has 1e100 nats) no
    method can tell a step uphill from one downhill.

    Args:
        potential: of the model.
        key: randomness.
        chains: how many points.
        strategy: "uniform": u ~ U(-2, 2); "prior": the model's own draws, its observations left
            aside; choices, some or all of them: the others are uniform; or a measure over all of
            the choices, such as a guide: its draws.

    Raises:
        InitialisationError: no draw in 100 has a finite density and gradient: names the site.
        UnknownAddressError, ShapeError: of choices that are given.
    """
    propose, quality = _compiled(potential, strategy)
    n = 1 if chains is None else chains
    resolved: list[Any] = []
    finite_only: list[Any] = []
    for tries in (n, TRIES * n):  # most often the first draws will do
        key, now = jax.random.split(key)
        points = propose(jax.random.split(now, tries))
        grades = np.asarray(quality(points))
        for grade, kept in ((2, resolved), (1, finite_only)):
            (at,) = np.nonzero(grades == grade)
            kept += [jax.tree.map(lambda x, i=i: x[i], points) for i in at[:n]]
        if len(resolved) >= n:
            break
    if len(found := [*resolved, *finite_only][:n]) == n:
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *found)
        return stacked if chains is not None else jax.tree.map(lambda x: x[0], stacked)
    raise _nowhere(potential, jax.tree.map(lambda x: x[0], points), key)


def _compiled(potential: Any, strategy: str | Choices | Measure) -> tuple[Any, Any]:
    """From keys to points, and from points to their quality: kept with the potential."""
    kept = potential.kept
    if None not in kept:
        kept[None] = jax.jit(jax.vmap(lambda u: _quality(potential, u)))
    if not isinstance(strategy, str):  # choices may be arrays, and a guide is used once
        return jax.jit(jax.vmap(_proposer(potential, strategy))), kept[None]
    if strategy not in kept:
        kept[strategy] = jax.jit(jax.vmap(_proposer(potential, strategy)))
    return kept[strategy], kept[None]


def _proposer(potential: Any, strategy: str | Choices | Measure) -> Any:
    def uniform(key: jax.Array) -> Any:
        u = jax.random.uniform(key, (potential.size,), float, -RADIUS, RADIUS)
        return potential.unravel(u)

    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise InitialisationError(
                "This is no way to initialise.",
                expected=f"one of {', '.join(STRATEGIES)}, choices by address, or a measure",
                got=repr(strategy),
                where=user_line(),
            )
        if strategy == "uniform":
            return uniform
        measure = potential.measure
        return lambda key: potential.unconstrain(measure.generate(key, {})[0].choices)

    if isinstance(strategy, Measure):
        return lambda key: potential.unconstrain(strategy.simulate(key).choices)

    given = flatten(strategy)
    known = {tuple(name.split("/")) for name in potential.shapes}
    for address in given.keys() - known:
        raise UnknownAddressError(
            "An initial value is for no choice of the model.",
            address=address,
            expected=", ".join(potential.shapes),
            got=", ".join(map(show_address, given)),
            where=user_line(),
        )

    def near(key: jax.Array) -> Any:
        chosen = flatten(potential.constrain(uniform(key))) | given
        return potential.unconstrain(nest(chosen))

    return near


def _quality(potential: Any, u: Any) -> jax.Array:
    """2 where density and gradient are finite and the density is resolved, 1 where it is not."""
    value, grad = jax.value_and_grad(potential)(u)
    leaves = [value, *jax.tree.leaves(grad)]
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
    is_resolved = jnp.abs(value) * jnp.finfo(value.dtype).eps < 1
    return jnp.where(is_finite, 1 + is_resolved, 0)


def _nowhere(potential: Any, u: Any, key: jax.Array) -> InitialisationError:
    """Say what is not finite at the last point that was tried."""
    finding = finite.find(lambda: potential(u), key)
    if finding is None or finding.address is None:  # the sites are finite, each by itself
        finding = _between_sites(potential, u, finding)
    return InitialisationError(
        f"No point of {potential.measure.name} with a finite density and gradient was found.",
        address=finding.address,
        expected=f"one in {TRIES} draws",
        got=f"{finding.what}: {finding.detail}",
        where=finding.line or None,
        fix="check the data and the supports, bound scales away from zero, or give a point: "
        'strategy={"address": value}',
    )


def _between_sites(potential: Any, u: Any, first: finite.Finding | None) -> finite.Finding:
    """A factor that is not finite, else the choices in which the gradient is not."""
    sites = layout(stage(potential.measure.program).jaxpr, kinds=("factor",))
    for address, value in flatten(potential.factors(u)).items():
        bad = np.asarray(value)[~np.isfinite(value)].ravel()
        if bad.size:
            name = show_address(address)
            return finite.Finding("density", name, sites[address].site.line, f"it is {bad[0]}")
    grads = flatten(jax.grad(potential)(u))
    names = [show_address(a) for a, g in grads.items() if not np.isfinite(g).all()]
    detail = f"not finite in {', '.join(names)}" if names else "the density overflows as a sum"
    if first is not None:
        detail += f"; first non-finite arithmetic: {first.detail} at {first.line}"
    return finite.Finding("gradient", names[0] if names else None, "", detail)
