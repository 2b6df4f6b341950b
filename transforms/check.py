"""`check`: what an expectation's gradient rests on, site by site.

Besides what was decided (`plan.py`) and found (`credit.py`) it measures: the gradient is estimated
many times, and once more with fresh noise at one site alone. Half the mean squared difference is
the variance that this site is responsible for (the total effect of Sobol's decomposition); shares
add up to more than 1 where sites interact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .credit import Credit, assign
from .dependence import NONE, Analysis
from .derivatives import is_float
from .direction import EXACT, Side, direction
from .errors import show_address
from .estimators import Branching, Estimator
from .expect import Estimators, by_path, run
from .flat import flatten
from .law import Law
from .nested import stage_forward
from .plan import Plan
from .site import Address, Site
from .soundness import Violation


@dataclasses.dataclass(frozen=True)
class SiteReport:
    """One random choice.

    Attributes:
        address, line: where it is.
        distribution, estimator: what it is and how it is treated.
        unbiased: False for an estimator that is biased on purpose.
        why: what makes the gradient right, or not.
        credit: the part of the objective that it answers for.
        runs: how many times what follows it is evaluated.
        variance: of the gradient, summed over its coordinates, due to this choice; None if the
            objective has no parameters.
        share: of the gradient's variance.
    """

    address: str
    line: str
    distribution: str
    estimator: Estimator
    unbiased: bool
    why: str
    credit: str
    runs: int
    variance: float | None = None
    share: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `vx.check` found; prints as a table.

    Attributes:
        sites: one for each random choice, in program order.
        runs: of the whole program in one estimate.
        variance: of one estimate of the gradient, summed over its coordinates; None without
            parameters.
        declared: names and lines of derivatives that are biased on purpose, at no random choice.
        side: where the objective lies by the estimated densities in it.
    """

    sites: tuple[SiteReport, ...]
    runs: int
    variance: float | None
    declared: tuple[tuple[str, str], ...] = ()
    side: Side = EXACT

    @property
    def unbiased(self) -> bool:
        """Whether nothing is biased on purpose."""
        return all(site.unbiased for site in self.sites) and not self.declared

    def __getitem__(self, address: str) -> SiteReport:
        return next(site for site in self.sites if site.address == address)

    def __repr__(self) -> str:
        head = ("site", "distribution", "estimator", "sound", "credit", "runs", "variance", "share")
        rows = [head, *(_row(site) for site in self.sites)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(x.ljust(n) for x, n in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        what = "unbiased" if self.unbiased else "BIASED, on purpose"
        last = f"gradient: {what}, {self.runs} run{'s' * (self.runs > 1)} of the program"
        if self.variance is not None:
            last += f", variance {self.variance:.3g}"
        notes = [f"biased on purpose: {name} at {line}" for name, line in self.declared]
        if self.side.form != "exact":
            used = sorted(self.side.below | self.side.above, key=lambda e: e.line)
            notes.append(f"with estimated densities: {self.side.direction}")
            notes += [f"  {e.name}, unbiased for {e.of}, at {e.line}" for e in used]
        return "\n".join([*lines, *notes, last])


def _row(site: SiteReport) -> tuple[str, ...]:
    variance = "" if site.variance is None else f"{site.variance:.3g}"
    share = "" if site.share is None else f"{site.share:.0%}"
    name = repr(site.estimator)
    return (
        site.address,
        site.distribution,
        name if len(name) < 40 else f"{type(site.estimator).__name__}(...)",
        site.why,
        site.credit,
        str(site.runs),
        variance,
        share,
    )


def check(
    f: Callable[..., Any],
    *args: Any,
    key: jax.Array | None = None,
    draws: int = 256,
    strict: bool = False,
    estimators: Estimators | None = None,
) -> Report:
    """Report on the estimators of `f(*args)` and the variance of its gradient in args.

    Raises what `expect` raises.
    """
    asked = by_path(estimators)
    staged = stage_forward(lambda: f(*args))
    side = direction(staged)
    plan = Plan(staged.jaxpr, strict=strict, estimators=asked)
    flat = flatten(staged.jaxpr, plan)
    credit = assign(flat, Analysis(plan.elements))
    coupled = plan.settle(flat, credit)
    sites = {site.address: _describe(plan, credit, coupled, site) for site in plan.sites}
    leaves, tree = jax.tree.flatten(args)
    floats = [i for i, x in enumerate(leaves) if is_float(x)]
    if not floats or not sites:
        return Report(tuple(sites.values()), plan.runs(), None, tuple(plan.declared), side)

    def objective(values: list[Any], key: jax.Array, salts: Mapping[Address, Any]) -> jax.Array:
        full = list(leaves)
        for i, x in zip(floats, values, strict=True):
            full[i] = x
        staged = stage_forward(lambda: f(*jax.tree.unflatten(tree, full)))
        plan = Plan(staged.jaxpr, strict=strict, estimators=asked)
        plan.salts = dict(salts)
        return run(plan, staged.jaxpr, staged.consts, key)[0]

    key = jax.random.key(0) if key is None else key
    values = [jnp.asarray(leaves[i], float) for i in floats]
    total, each = _variances(objective, values, list(sites), key, draws)
    rows = [
        dataclasses.replace(site, variance=v, share=v / total if total > 0 else 0.0)
        for site, v in zip(sites.values(), each, strict=True)
    ]
    return Report(tuple(rows), plan.runs(), total, tuple(plan.declared), side)


def _variances(
    objective: Callable[..., Any], values: list[Any], addresses: list[Address], key: Any, draws: int
) -> tuple[float, list[float]]:
    """The gradient's variance, and what each site is responsible for."""

    def gradient(key: jax.Array, fresh: jax.Array) -> jax.Array:
        salts = dict(zip(addresses, fresh, strict=True))
        grads = jax.grad(objective)(values, key, salts)
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

    keys = jax.random.split(key, draws)
    one_hot = jnp.eye(len(addresses), dtype=jnp.int32)

    @jax.jit
    def measure() -> tuple[jax.Array, jax.Array]:
        estimates = jax.vmap(gradient, (0, None))
        base = estimates(keys, jnp.zeros(len(addresses), jnp.int32))  # [draws, p]

        def due_to(fresh: jax.Array) -> jax.Array:
            return ((base - estimates(keys, fresh)) ** 2).sum(1).mean() / 2

        return base.var(0, ddof=1).sum(), jax.lax.map(due_to, one_hot)

    total, each = measure()
    return float(total), [float(x) for x in np.asarray(each)]


def _describe(plan: Plan, credit: Credit, coupled: dict[int, Any], site: Site) -> SiteReport:
    estimator = plan.estimator(site)
    numbers = [n for n, s in enumerate(credit.found.sites) if s is site]
    runs = 1
    if isinstance(estimator, Branching) and numbers:
        operands = plan.operands[id(site)]
        runs = estimator.count(Law(site, operands, coupled.get(numbers[0])))
    return SiteReport(
        show_address(site.address),
        site.line,
        Law(site, []).name,
        estimator,
        not estimator.biased,
        _why(estimator, plan.demoted.get(id(site))),
        _credit(credit, numbers) if estimator.weighs else "its path",
        max(runs, getattr(estimator, "particles", 1)),
    )


def _why(estimator: Estimator, obstacle: Violation | None) -> str:
    if estimator.biased:
        return "no: biased on purpose"
    first = "" if estimator.order is None else ", first derivative"
    if getattr(estimator, "approximate", False):
        return "exact for polynomials of low degree"
    if estimator.pathwise:
        return "continuous in the value" + first
    path = f"; a path would meet {obstacle.operation} at {obstacle.line}" if obstacle else ""
    return "for every program" + first + path


def _credit(credit: Credit, numbers: list[int]) -> str:
    """Which terms the weights of a choice multiply, and how."""
    terms = [credit.deps.get(t, NONE) for t in credit.terms]
    bits = sum(1 << n for n in numbers)
    mine = [dep for dep in terms if dep.sources & bits]
    said = f"{len(mine)} of {len(terms)} term{'s' * (len(terms) > 1)}"
    for n in numbers[:1]:
        shape = credit.found.shapes[n]
        axes = [dep.axes(n, len(shape)) for dep in mine if dep.sources >> n & 1]
        columns = list(zip(*axes, strict=True))
        apart = [None not in column for column in columns]
        order = [any(x is not None and x.order for x in column) for column in columns]
        each = zip(shape, apart, order, strict=False)
        count = math.prod(k for k, p, o in each if p and not o) if axes else 1
        if count > 1:
            said += f", {count} elements apart"
        if any(p and o for p, o in zip(apart, order, strict=True)):
            said += ", not of earlier steps"
    return said
