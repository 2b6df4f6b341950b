"""Credit assignment: which part of the objective a random choice answers for.

The outputs of a program are sums of *terms*, found by walking back from the outputs through what is
linear: additions, multiples, reductions over an axis, reshapes. A choice's weight then multiplies
the terms that depend on it, element by element where a term's entries depend on one element each,
and no others: for every other term its mean is 1, whatever the term.

law:  E[sum_terms term * weights of the choices it depends on]  =  E[sum_terms term * all weights]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from .dependence import NONE, Analysis, Dep, Footprint, bits, make
from .flat import Flat, Op
from .linear import ADDITIVE, linear_in
from .site import eqn_has_sites


@dataclasses.dataclass
class Credit:
    """Where the program is cut into terms.

    deps: of every number of the flat program that depends on a choice with weights.
    found: those choices, and where they sit.
    tail: the numbers computed from terms by linear operations alone.
    terms: the numbers whose values are weighed.
    """

    deps: dict[int, Dep]
    found: Footprint
    tail: set[int] = dataclasses.field(default_factory=set)
    terms: set[int] = dataclasses.field(default_factory=set)

    @staticmethod
    def unknown(flat: Flat, analysis: Analysis) -> Credit:
        """Of a region whose outputs may be used in any way."""
        credit = assign(flat, analysis)
        credit.tail.clear()
        credit.terms = {x for x in flat.outs if isinstance(x, int)}
        credit.deps = dict.fromkeys(credit.terms, make(-1 % (1 << len(credit.found.choices)), {}))
        return credit

    def coupled(self, numbers: Iterable[int]) -> dict[int, tuple[bool, ...]]:
        """For each axis of a choice's elements, whether some term mixes them along it."""
        coupled = {n: [False] * len(self.found.shapes[n]) for n in numbers}
        mask = sum(1 << n for n in coupled)
        for dep in map(self.deps.__getitem__, self.terms):
            for n in bits(dep.sources & mask):
                for i, at in enumerate(dep.axes(n, len(coupled[n]))):
                    coupled[n][i] |= at is None or at.order != 0
        return {n: tuple(c) for n, c in coupled.items()}


def assign(flat: Flat, analysis: Analysis) -> Credit:
    """Find the dependences and the terms of a program."""
    credit = Credit({}, Footprint(0, [], [], []))
    deps, drawing = credit.deps, 0
    for op in flat.ops:
        ins = [deps.get(x, NONE) if isinstance(x, int) else NONE for x in op.ins]
        position = None
        if eqn_has_sites(op.eqn):
            position, drawing = drawing, drawing + 1
        outs = analysis.equation(op.eqn, ins, credit.found, position)
        deps.update({number: d for number, d in zip(op.outs, outs, strict=True) if d})
    _cut(flat, credit)
    return credit


def _cut(flat: Flat, credit: Credit) -> None:
    """Walk back from the outputs through what is linear, as far as it tells choices apart."""
    deps = credit.deps
    maker = {number: op for op in flat.ops for number in op.outs}
    through: dict[int, list[int]] = {}  # the random operands of a linear equation
    roots = [x for x in flat.outs if isinstance(x, int) and x in deps]
    credit.terms.update(x for x in roots if not flat.is_float(x))
    stack = roots = [x for x in roots if flat.is_float(x)]
    while stack:
        at, *stack = stack
        if at not in through:
            through[at] = linear_in(maker[at], deps)
            stack += through[at]
    gains: set[int] = set()
    for at in sorted(through):  # operands before results
        below = through[at]
        if below and _adds_constant(maker[at], deps):
            gains.add(at)
        if not gains.isdisjoint(below) or len({_sharpness(deps[x]) for x in (*below, at)}) > 1:
            gains.add(at)
    stack = roots
    while stack:
        at, *stack = stack
        if at in gains and at not in credit.tail:
            credit.tail.add(at)
            stack += through[at]
        elif at not in gains:
            credit.terms.add(at)


def _adds_constant(op: Op, deps: dict[int, Dep]) -> bool:
    """Whether an equation adds something that no choice influences, and that is not just 0."""
    if op.eqn.primitive.name not in ADDITIVE:
        return False
    return any(x not in deps if isinstance(x, int) else np.any(x.val) for x in op.ins)


def _sharpness(dep: Dep) -> Any:
    """What a dependence says, but for which axis is which."""
    aligned = {n: tuple(None if x is None else x.order for x in a) for n, a in dep.aligned.items()}
    return dep.whole, frozenset(aligned.items())
