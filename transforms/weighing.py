"""What multiplies a term: the weights of the choices that it depends on, laid along its axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .axes import Axes, Spread
from .credit import Credit
from .dependence import NONE, Along, Dep, bits
from .direct import Position
from .flat import Op
from .plan import Plan

RUNS = "varax_runs"  # the axis of the runs that leave-one-out baselines compare


class Weights:
    """The log weights of choices with one value, the weights of those treated element by element.

    Attributes:
        log: by number of the choice, of shape `elements`.
        apart: by axis, the number of the choice and its weights, of shape `groups`.
        joint: by axis, the weights of choices whose elements are coupled.
        baselines: by number, of shape `elements`.
        controls: the number of a choice and a scalar to add to what depends on it.
        averaged: whether several runs are averaged, so that all outputs become floats.
    """

    averaged = False

    def __init__(self, axes: Axes, plan: Plan, credit: Credit):
        self.axes, self.plan, self.credit = axes, plan, credit
        self.log: dict[int, Spread] = {}
        self.apart: dict[int, tuple[int, Spread]] = {}
        self.joint: dict[int, Spread] = {}
        self.baselines: dict[int, Spread] = {}
        self.controls: list[tuple[int, Spread]] = []
        self.behind: dict[int, Dep | None] = {}  # of the values of choices with a baseline
        self._numbers = {p: n for n, p in enumerate(credit.found.choices)}
        self._sums: dict[tuple[int, bool], Spread | None] = {}
        self._compared: int | None = None

    def number(self, position: Position) -> int | None:
        """The number of the choice at a position; of a loop's total, that of its first choice."""
        if position in self._numbers:
            return self._numbers[position]
        inside = (n for p, n in self._numbers.items() if p[: len(position)] == position)
        return next(inside, None)

    def add(
        self, position: Position, log_weight: Spread, baseline: Spread | None, dep: Dep | None
    ) -> None:
        """Take what a choice left; `dep` is that of its value, None if it is inside a region."""
        number = self.number(position)
        if number is None:
            return
        self.log[number] = log_weight
        if baseline is not None:
            self.baselines[number] = baseline
            self.behind[number] = dep

    def add_control(self, number: int, control: Spread, dep: Dep, rank: int) -> None:
        """Take a control variate of a choice, of the shape of its groups or a scalar."""
        known = dep if _rank(control) == rank else None
        self.controls += [(number, c) for c in self._alone(control, known)]

    def _alone(self, control: Spread, dep: Dep | None) -> list[Spread]:
        """A scalar from a control over elements, or nothing where it cannot be told which element
        belongs to which lane of earlier choices: leaving it out is unbiased too.
        """
        if dep is not None:
            control = self._sum_apart(control, dep, _rank(control))
        if any(start <= axis < stop for axis in self.apart for start, stop in control.blocks):
            return []
        return self.axes.apply(lambda c: [jnp.sum(c)], control)

    def all(self) -> list[Spread]:
        """Every log weight."""
        return list(self.log.values())

    # ---- one term

    def weigh(self, term: int, value: Spread, shift: dict[int, Any] | None = None) -> Spread:
        """A term's value times its weights, summed over the axes of choices that are apart."""
        dep, rank = self.credit.deps.get(term, NONE), _rank(value)
        if not jnp.issubdtype(jnp.result_type(value.value), jnp.floating):
            value = Spread(jnp.asarray(value.value, float), value.blocks)
        plain = self._laid(dep, rank, compared=False, shift=shift)
        compared = self._laid(dep, rank, compared=True, shift=shift)
        if not compared:
            return self._sum_apart(self._times(value, plain), dep, rank)
        mean = self._sum_joint(self._sum_apart(value, dep, rank))
        others = Spread(_mean_of_others(jax.lax.stop_gradient(mean.value)))

        def weighed(v: Any, b: Any, *ws: Any) -> list[Any]:  # v exp(w) - b (exp(w) - 1)
            return [v + (v - b) * jnp.expm1(sum(ws)).astype(v.dtype)]

        if not self.apart:
            (value,) = self.axes.apply(weighed, self._times(value, plain), others, *compared)
            return value
        return self._beside_apart(value, others, plain, compared, dep, rank)

    def _beside_apart(
        self,
        value: Spread,
        others: Spread,
        plain: list[Spread],
        compared: list[Spread],
        dep: Dep,
        rank: int,
    ) -> Spread:
        """The same where some choices are summed at the term: the baseline is of the sum."""
        mean = self._sum_apart(self._times(value, plain + compared), dep, rank)
        (excess,) = self.axes.apply(
            lambda v, *ws: [jnp.zeros_like(v) + jnp.expm1(sum(ws))], value, *compared
        )
        excess = self._sum_apart(excess, dep, rank)
        (out,) = self.axes.apply(lambda m, b, e: [m - b * e.astype(m.dtype)], mean, others, excess)
        return out

    def weigh_signals(self, op: Op, values: list[Spread], shift: Any = None) -> Spread:
        """A term of many lanes: each lane's choices multiply its learning signal alone."""
        dep, lanes = self.credit.deps.get(op.outs[0], NONE), self.credit.deps.get(op.ins[2], NONE)
        rank = _rank(values[1])
        mine = {n for n, axes in lanes.aligned.items() if Along(rank - 1) in axes}
        own = Dep(0, {n: lanes.aligned[n] for n in mine})
        whole = sum(1 << n for n in bits(dep.whole) if n not in mine)
        rest = Dep(whole, {n: axes for n, axes in dep.aligned.items() if n not in mine})
        logs = self._laid(own, rank, compared=False, shift=shift)
        logs += self._laid(own, rank, compared=True, shift=shift)
        value = values[0]
        if logs:
            (value,) = self.axes.apply(
                lambda v, s, *ws: [v + (s * jnp.expm1(sum(ws))).sum(-1)], *values[:2], *logs
            )
        others = self._laid(rest, rank - 1, compared=False, shift=shift)
        others += self._laid(rest, rank - 1, compared=True, shift=shift)
        return self._sum_apart(self._times(value, others), rest, rank - 1)

    def _times(self, value: Spread, logs: list[Spread]) -> Spread:
        if not logs:
            return value
        (out,) = self.axes.apply(
            lambda v, *ws: [v * jnp.exp(sum(ws)).astype(v.dtype)], value, *logs
        )
        return out

    def _sum_apart(self, value: Spread, dep: Dep, rank: int) -> Spread:
        """Sum over the axes of choices whose elements are apart, last one first."""
        for axis in sorted(self.apart, reverse=True):
            if any(start <= axis < stop for start, stop in value.blocks):
                number, weights = self.apart[axis]
                (laid,) = self.axes.apply(lambda w, n=number: [_lay(w, dep, n, rank)], weights)
                value = self.axes.sum_over(axis, laid, value)
        return value

    def _sum_joint(self, value: Spread) -> Spread:
        """Sum over all paths that are left: what a run is worth by itself."""
        for axis in sorted(self.joint, reverse=True):
            if any(start <= axis < stop for start, stop in value.blocks):
                value = self.axes.sum_over(axis, self.joint[axis], value)
        return value

    # ---- log weights along a term's axes

    def _laid(self, dep: Dep, rank: int, *, compared: bool, shift: Any) -> list[Spread]:
        """The log weights of a term's choices, each broadcastable to it."""
        mine = self.compared if compared else ~self.compared
        whole = self._whole(dep.whole & mine & self.weighted, shift)
        laid = [] if whole is None else [whole]
        for number in dep.aligned:
            if (mine >> number & 1) and number in self.log:
                laid.append(self._one(number, lambda w, n=number: _lay(w, dep, n, rank), shift))
        return laid

    def _whole(self, numbers: int, shift: Any) -> Spread | None:
        """The sum of the log weights of some choices, shared between terms."""
        if not numbers:
            return None
        missing = []
        while numbers and (numbers, shift is None) not in self._sums:
            last = numbers.bit_length() - 1
            missing.append((numbers, last))
            numbers ^= 1 << last
        total = self._sums[(numbers, shift is None)] if numbers else None
        for known, last in reversed(missing):
            one = self._one(last, jnp.sum, shift)
            total = one if total is None else self.axes.add(total, one)
            if shift is None:
                self._sums[(known, True)] = total
        return total

    def _one(self, number: int, lay: Callable[[Any], Any], shift: Any) -> Spread:
        more = 0.0 if shift is None else shift.get(number, 0.0)
        return self.axes.apply(lambda w: [lay(w + more)], self.log[number])[0]

    @property
    def weighted(self) -> int:
        """The choices with a log weight, as bits."""
        return sum(1 << n for n in self.log)

    @property
    def compared(self) -> int:
        """The choices whose baseline is the mean of other runs, as bits."""
        if self._compared is None:
            sites = self.credit.found.sites
            runs = [getattr(self.plan.estimator(site), "particles", 1) for site in sites]
            self._compared = sum(1 << n for n, r in enumerate(runs) if r > 1)
        return self._compared

    # ---- what is added to the outputs

    def added(self) -> list[tuple[int, Spread]]:
        """Controls of mean zero, by choice: those of estimators, and baselines times scores."""
        found = list(self.controls)
        for number, baseline in self.baselines.items():
            (control,) = self.axes.apply(
                lambda w, b: [-jax.lax.stop_gradient(b) * jnp.expm1(w)], self.log[number], baseline
            )
            found += [(number, c) for c in self._alone(control, self.behind[number])]
        return found

    def trained(self) -> dict[int, float]:
        """The choices whose baseline is trained, with the sign."""
        signs = {
            n: getattr(self.plan.estimator(self.credit.found.sites[n]), "regression", 0.0)
            for n in self.baselines
        }
        return {n: sign for n, sign in signs.items() if sign}

    def error(self, number: int, signal: Any) -> list[Spread]:
        """A zero whose gradient is that of minus half a baseline's squared error, signed."""
        sign = self.trained()[number]

        def loss(baseline: Any) -> list[Any]:
            half = -sign * (signal - baseline) ** 2 / 2
            return [half - jax.lax.stop_gradient(half)]

        (each,) = self.axes.apply(loss, self.baselines[number])
        return self._alone(each, self.behind[number])


def _rank(value: Spread) -> int:
    return jnp.ndim(value.value) - len(value.blocks)


def _lay(x: Any, dep: Dep, number: int, rank: int) -> Any:
    """An array over a choice's elements, summed along what is mixed, along a term's axes."""
    axes, taken, gone = dep.axes(number, x.ndim), set(), []
    for i, at in enumerate(axes):
        if at is None or at.axis in taken:
            gone.append(i)
            continue
        taken.add(at.axis)
        if at.order and x.shape[i] > 1:
            x = jax.lax.cumsum(x, i, reverse=at.order < 0)
    kept = [at.axis for i, at in enumerate(axes) if i not in gone and at is not None]
    x = jnp.sum(x, tuple(gone)) if gone else x
    x = jnp.transpose(x, sorted(range(len(kept)), key=kept.__getitem__))
    shape = [1] * rank
    for axis, n in zip(sorted(kept), x.shape, strict=True):
        shape[axis] = n
    return x.reshape(shape)


def _mean_of_others(x: jax.Array) -> jax.Array:
    """Over the runs of the program, all but this one."""
    total = jax.lax.psum(x, RUNS)
    count = jax.lax.psum(1, RUNS)
    return (total - x) / (count - 1)
