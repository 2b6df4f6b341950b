"""`tune_estimators`: measure variance times time of the sound estimators, and choose.

Sites are tuned one after the other, in program order, the others as they are by then; a second
round follows while the budget lasts. What is minimised is the gradient's variance, summed over its
coordinates, times the time of one estimate: the variance that a second of computing buys.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from .derivatives import value_and_grad
from .errors import BudgetError, EstimatorError, show_address
from .estimators import (
    DisARM,
    Enumerate,
    Estimator,
    Implicit,
    LeaveOneOut,
    MeasureValued,
    Rejection,
    Reparam,
    Score,
    WithoutReplacement,
)
from .expect import Estimators
from .law import Law
from .nested import stage_forward
from .plan import Plan
from .site import Address, Site

CANDIDATES: tuple[Estimator, ...] = (
    Reparam(),
    Implicit(),
    Rejection(),
    Enumerate(),
    Score(),
    Score(LeaveOneOut(2)),
    Score(LeaveOneOut(4)),
    MeasureValued(),
    DisARM(),
    WithoutReplacement(2),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One assignment that was measured.

    Attributes:
        address, estimator: what was tried, the other sites as they were by then.
        variance: of one estimate of the gradient, summed over its coordinates.
        seconds: CPU or device time of one estimate, in batches of `draws`.
        chosen: whether it was the best of its site.
    """

    address: str
    estimator: Estimator
    variance: float
    seconds: float
    chosen: bool = False

    @property
    def cost(self) -> float:
        """Variance times seconds."""
        return self.variance * self.seconds


@dataclasses.dataclass(frozen=True, repr=False)
class Tuning:
    """The best assignment, and the table that it is based on.

    Attributes:
        estimators: by address; pass it on as `vx.grad(f, estimators=...)` or to `vx.fit`.
        trials: what was measured, in order.
        complete: False where the budget ended the search early.
    """

    estimators: dict[str, Estimator]
    trials: tuple[Trial, ...]
    complete: bool

    def __repr__(self) -> str:
        rows = [("site", "estimator", "variance", "us", "variance x us", "")]
        for t in self.trials:
            us = t.seconds * 1e6
            rows.append(
                (
                    t.address,
                    repr(t.estimator),
                    f"{t.variance:.4g}",
                    f"{us:.3g}",
                    f"{t.variance * us:.4g}",
                    "chosen" if t.chosen else "",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = [
            "  ".join(x.ljust(n) for x, n in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        return "\n".join(lines + ([] if self.complete else ["the budget ended before the search"]))


def tune_estimators(
    objective: Callable[..., Any],
    params: Any,
    key: jax.Array,
    budget: float = 60.0,
    *,
    draws: int = 512,
) -> Tuning:
    """Choose an estimator for every site of `objective(params)`.

    Args:
        objective: a program with a scalar value.
        params: where to measure.
        key: of the draws; every candidate sees the same.
        budget: seconds. The default assignment is always measured, whatever it takes.
        draws: estimates of the gradient to a measurement.

    Raises:
        BudgetError: the budget is not positive.
    """
    if not budget > 0:
        raise BudgetError(
            "Tuning needs time.", expected="budget > 0 seconds", got=budget, where=user_line()
        )
    until = time.monotonic() + budget
    staged = stage_forward(lambda: objective(params))
    plan = Plan(staged.jaxpr)
    sites = {site.address: site for site in plan.sites}
    best = {address: plan.estimator(site) for address, site in sites.items()}
    bench = _Bench(objective, params, key, draws)
    trials: list[Trial] = []
    current = bench.measure(by_name(best))
    complete, changed = True, bool(sites)
    while changed and complete:
        changed = False
        for address, site in sites.items():
            group = [(best[address], current)]
            for candidate in _candidates(plan, site, best[address]):
                if time.monotonic() > until:
                    complete = False
                    break
                try:
                    group.append((candidate, bench.measure(by_name(best | {address: candidate}))))
                except EstimatorError:  # not sound, or too many paths
                    continue
            winner = min(group, key=lambda g: g[1][0] * g[1][1])
            changed |= winner is not group[0]
            name = show_address(address)
            trials += [Trial(name, e, *m, chosen=e is winner[0]) for e, m in group]
            best[address], current = winner
    return Tuning(by_name(best), tuple(trials), complete)


def by_name(estimators: dict[Address, Estimator]) -> dict[str, Estimator]:
    """Keys as users write them."""
    return {show_address(a): e for a, e in estimators.items()}


def _candidates(plan: Plan, site: Site, present: Estimator) -> list[Estimator]:
    """What the site's distribution can be served by, but for what it has."""
    law, found = Law(site, plan.operands[id(site)]), []
    for candidate in CANDIDATES:
        try:
            candidate.serve(law)
        except EstimatorError:
            continue
        if candidate != present:
            found.append(candidate)
    return found


class _Bench:
    """Variance and time of the gradient under an assignment."""

    def __init__(self, objective: Callable[..., Any], params: Any, key: jax.Array, draws: int):
        self.objective, self.params = objective, params
        self.keys = jax.random.split(key, draws)

    def measure(self, estimators: Estimators) -> tuple[float, float]:
        """`(variance, seconds)` of one estimate."""
        both = value_and_grad(self.objective, estimators=estimators)

        @jax.jit
        def moments(keys: jax.Array, params: Any) -> jax.Array:
            grads = jax.vmap(lambda key: both(key, params)[1])(keys)
            leaves = [x.reshape(len(keys), -1) for x in jax.tree.leaves(grads)]
            return jnp.concatenate(leaves, 1).astype(float).var(0, ddof=1).sum()

        variance = float(moments(self.keys, self.params))
        times = []
        for _ in range(5):
            clock = time.perf_counter()
            jax.block_until_ready(moments(self.keys, self.params))
            times.append(time.perf_counter() - clock)
        return variance, float(np.median(times)) / len(self.keys)
