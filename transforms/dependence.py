"""What depends on what: a forward analysis of a jaxpr, axis by axis.

For every variable it finds the *sources* (inputs, random choices) that it depends on, and along
which axes entry i needs entry i of the source alone. So it sees that a plate's terms are each a
matter of one lane, and that a step of a scan depends on earlier steps only, without annotation.

Sound by construction: what no rule understands depends on every entry of everything before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from . import _jax
from .axis_rules import Along, AxisMap, axis_map
from .interpreter import refused
from .law import density_jaxpr
from .site import Site, eqn_has_sites, site_p

STEP = -1  # inside a scan's body: the step, in the place of an axis
Axes = tuple[Along | None, ...]  # for each axis of a source: the axis that it is here, or None
CALLS = frozenset(
    (_jax.jit_p, _jax.closed_call_p, _jax.remat_p, _jax.custom_jvp_call_p, _jax.custom_vjp_call_p)
)
MANY = 64  # sources whose axes are followed at a time; older ones are then taken as a whole


@dataclasses.dataclass(frozen=True)
class Dep:
    """The sources of one variable, by number.

    whole: a bit for each source that matters as a whole.
    aligned: the sources of which at least one axis is aligned.
    """

    whole: int = 0
    aligned: dict[int, Axes] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.whole or self.aligned)

    @property
    def sources(self) -> int:
        """All of them, as bits."""
        found = self.whole
        for number in self.aligned:
            found |= 1 << number
        return found

    def axes(self, number: int, rank: int) -> Axes:
        """How the axes of one source lie here."""
        return self.aligned.get(number, (None,) * rank)


NONE = Dep()


def make(whole: int, aligned: dict[int, Axes]) -> Dep:
    """A Dep in normal form."""
    kept = {n: a for n, a in aligned.items() if any(a) and not whole >> n & 1}
    for number in aligned.keys() - kept.keys():
        whole |= 1 << number
    while len(kept) > MANY:
        number = next(iter(kept))
        del kept[number]
        whole |= 1 << number
    return Dep(whole, kept) if whole or kept else NONE


def join(deps: Sequence[Dep]) -> Dep:
    """What depends on any of them."""
    deps = [d for d in deps if d]
    if len(deps) < 2:
        return deps[0] if deps else NONE
    whole, aligned = 0, {}
    for dep in deps:
        whole |= dep.whole
        for number, axes in dep.aligned.items():
            known = aligned.get(number)
            aligned[number] = axes if known is None else _meet_all(known, axes)
    return make(whole, aligned)


def _meet_all(a: Axes, b: Axes) -> Axes:
    return tuple(_meet(x, y) for x, y in zip(a, b, strict=True))


def _meet(a: Along | None, b: Along | None) -> Along | None:
    if a is None or b is None or a.axis != b.axis or a.order * b.order < 0:
        return None
    return Along(a.axis, a.order or b.order)


def move(dep: Dep, axes: AxisMap) -> Dep:
    """The sources of a result, of which this is the operand's."""
    if not dep.aligned:
        return dep
    return make(dep.whole, {n: tuple(_move(x, axes) for x in a) for n, a in dep.aligned.items()})


def _move(x: Along | None, axes: AxisMap) -> Along | None:
    if x is None or x.axis == STEP:
        return x
    to = axes.get(x.axis)
    if to is None or x.order * to.order < 0:
        return None
    return Along(to.axis, x.order or to.order)


@dataclasses.dataclass
class Footprint:
    """The dependences of a jaxpr's outputs: sources are its inputs, then its random choices."""

    inputs: int
    choices: list[tuple[int, ...]]  # their positions: the number of an equation that draws, nested
    shapes: list[tuple[int, ...]]  # of their elements, scans in front
    sites: list[Site]
    outs: list[Dep] = dataclasses.field(default_factory=list)


class Analysis:
    """Footprints of jaxprs, each computed once.

    Args:
        elements: shape of a site's elements where it is a source, None where it is not.
    """

    def __init__(self, elements: Callable[[Site], tuple[int, ...] | None]):
        self.elements = elements
        self._known: dict[int, tuple[Any, Footprint]] = {}

    def footprint(self, region: Any) -> Footprint:
        """Of a region as it stands, its constants among the inputs."""
        jaxpr, _ = _jax.opened(region)
        if (known := self._known.get(id(jaxpr))) is None:
            known = self._known[id(jaxpr)] = (jaxpr, self._walk(jaxpr))
        return known[1]

    def _walk(self, jaxpr: Any) -> Footprint:
        inputs = _jax.input_vars(jaxpr)
        found = Footprint(len(inputs), [], [], [])
        env = {}
        for i, v in enumerate(inputs):
            rank = len(_jax.struct(v).shape)
            identity: dict[int, Axes] = {i: tuple(Along(a) for a in range(rank))}
            env[v] = make(0, identity)
        drawing = 0
        for eqn in jaxpr.eqns:
            deps = [NONE if isinstance(v, _jax.Literal) else env[v] for v in eqn.invars]
            position = None
            if eqn_has_sites(eqn):
                position, drawing = drawing, drawing + 1
            env.update(zip(eqn.outvars, self.equation(eqn, deps, found, position), strict=True))
        found.outs = [NONE if isinstance(v, _jax.Literal) else env[v] for v in jaxpr.outvars]
        return found

    def equation(
        self, eqn: _jax.JaxprEqn, deps: list[Dep], into: Footprint, position: int | None
    ) -> list[Dep]:
        """The dependences of an equation's results; its random choices are added to `into`."""
        if eqn.primitive is site_p:
            return [self._site(eqn, deps, into, position)]
        if position is None and not (any(deps) and eqn.outvars):
            return [NONE] * len(eqn.outvars)
        if eqn.primitive is _jax.scan_p:
            return self._scan(eqn, deps, into, position)
        if eqn.primitive is _jax.cond_p:
            return self._cond(eqn, deps, into, position)
        if eqn.primitive is _jax.while_p:
            return self._while(eqn, deps, into, position)
        if eqn.primitive in CALLS:
            return self._call(next(_jax.subjaxprs(eqn)), deps, into, (position,))
        if position is not None:
            raise refused(eqn)
        if eqn.primitive.name == "custom_linear_solve":
            return self._solve(eqn, deps, into)
        moved = [move(d, m) for d, m in zip(deps, axis_map(eqn), strict=True) if d]
        return [join(moved)] * len(eqn.outvars)

    def _call(
        self, region: Any, deps: list[Dep], into: Footprint, prefix: tuple[int | None, ...]
    ) -> list[Dep]:
        inner = self.footprint(region)
        at = self._adopt(inner, into, prefix)
        deps = [NONE] * (inner.inputs - len(deps)) + deps  # closed-over constants
        return [compose(d, deps, inner.inputs, at) for d in inner.outs]

    def _solve(self, eqn: Any, deps: list[Dep], into: Footprint) -> list[Dep]:
        """The solver's result; its derivative goes through the product with the matrix."""
        counts, regions = eqn.params["const_lengths"], eqn.params["jaxprs"]
        n, first = counts.matvec, sum(counts[:2])
        right = deps[sum(counts) :]
        solved = self._call(regions.solve, deps[first : first + counts.solve] + right, into, ())
        product = self._call(regions.matvec, deps[:n] + solved, into, ())
        return [join(pair) for pair in zip(solved, product, strict=True)]

    def _site(
        self, eqn: _jax.JaxprEqn, deps: list[Dep], into: Footprint, position: int | None
    ) -> Dep:
        site = eqn.params["site"]
        if site.kind != "draw":
            same = site.kind == "record" and _jax.struct(eqn.invars[-1]).shape == site.shape
            axes = {i: Along(i) for i in range(len(site.shape))} if same else {}
            return join([move(d, axes) for d in deps])
        of_law = self._law(site, eqn, deps)
        elements = self.elements(site)
        if elements is None:
            return of_law
        assert position is not None
        number = _add(into, (position,), elements, site)
        own = make(1 << number if not elements else 0, {number: _identity(elements)})
        return join([of_law, own])

    def _law(self, site: Site, eqn: _jax.JaxprEqn, deps: list[Dep]) -> Dep:
        """An element of a draw depends on what its density depends on."""
        deps = deps[: len(deps) - site.extras]
        if not any(deps):
            return NONE
        jaxpr = density_jaxpr(site, [_jax.struct(v) for v in eqn.invars])
        if jaxpr is None:
            return _whole(deps)
        inner = self.footprint(jaxpr)  # of the constants, the operands and the value
        full = [NONE] * (inner.inputs - len(deps) - 1) + deps + [NONE]
        return compose(inner.outs[0], full, inner.inputs, [])

    def _cond(self, eqn: Any, deps: list[Dep], into: Footprint, position: int | None) -> list[Dep]:
        predicate, deps = _whole(deps[:1]), deps[1:]
        outs = []
        for i, branch in enumerate(eqn.params["branches"]):
            outs.append(self._call(branch, deps, into, (position, i)))
        return [join([predicate, *column]) for column in zip(*outs, strict=True)]

    def _while(self, eqn: Any, deps: list[Dep], into: Footprint, position: int | None) -> list[Dep]:
        inner = self.footprint(eqn.params["body_jaxpr"])
        at = self._adopt(inner, into, (position,), summed=True)
        mine = sum(1 << number for number in at)
        return [join([_whole(deps), make(mine, {})])] * len(eqn.outvars)

    def _scan(self, eqn: Any, deps: list[Dep], into: Footprint, position: int | None) -> list[Dep]:
        inner = self.footprint(eqn.params["jaxpr"])
        n_consts, n_carry = _jax.scan_counts(eqn)
        at = self._adopt(inner, into, (position,), scanned=eqn.params["length"])
        ranks = [len(shape) for shape in inner.shapes]
        closed = inner.inputs - len(deps)
        step: AxisMap = {0: Along(STEP)} | {a: Along(a - 1) for a in range(1, 32)}
        consts, xs = deps[:n_consts], [move(d, step) for d in deps[n_consts + n_carry :]]
        carry = deps[n_consts : n_consts + n_carry]
        order = -1 if eqn.params["reverse"] else 1
        while True:
            full = [NONE] * closed + consts + carry + xs
            outs = [compose(d, full, inner.inputs, at, ranks) for d in inner.outs]
            later = [join([a, _passed(b, order)]) for a, b in zip(carry, outs, strict=False)]
            if later == carry:
                break
            carry = later
        final = [_left(join([c, d])) for c, d in zip(carry, outs, strict=False)]
        return [*final, *(_stacked(d) for d in outs[n_carry:])]

    def _adopt(
        self,
        inner: Footprint,
        into: Footprint,
        prefix: tuple[int | None, ...],
        scanned: int | None = None,
        summed: bool = False,
    ) -> list[int]:
        """Take over a region's random choices; their numbers."""
        numbers = []
        for position, shape, site in zip(inner.choices, inner.shapes, inner.sites, strict=True):
            full = () if summed else shape if scanned is None else (scanned, *shape)
            path = tuple(p for p in prefix if p is not None) + position
            numbers.append(_add(into, path, full, site))
        return numbers


def _add(into: Footprint, position: tuple[int, ...], shape: tuple[int, ...], site: Site) -> int:
    into.choices.append(position)
    into.shapes.append(shape)
    into.sites.append(site)
    return into.inputs + len(into.choices) - 1


def _identity(shape: tuple[int, ...]) -> Axes:
    return tuple(Along(a) for a in range(len(shape)))


def compose(
    dep: Dep,
    deps: Sequence[Dep],
    inputs: int,
    at: Sequence[int],
    ranks: Sequence[int] | None = None,
) -> Dep:
    """A dependence inside a region, in terms of what its inputs depend on.

    Args:
        dep: on inputs and choices of the region.
        deps: what each input depends on.
        inputs: how many inputs; the choices are numbered after them.
        at: the choices' numbers outside.
        ranks: for a scan's body, how many axes each choice has inside; outside, steps lead them.
    """
    step = () if ranks is None else (Along(STEP),)
    parts = []
    for number in bits(dep.whole):
        if number < inputs:
            parts.append(move(deps[number], {}))
        elif ranks is None:
            parts.append(make(1 << at[number - inputs], {}))
        else:  # as a whole, in this step alone
            axes = (*step, *(None,) * ranks[number - inputs])
            parts.append(make(0, {at[number - inputs]: axes}))
    for number, axes in dep.aligned.items():
        if number < inputs:
            parts.append(move(deps[number], {i: a for i, a in enumerate(axes) if a is not None}))
        else:
            parts.append(make(0, {at[number - inputs]: (*step, *axes)}))
    return join(parts)


def _whole(deps: Sequence[Dep]) -> Dep:
    """Dependence on all sources of these as a whole."""
    found = 0
    for dep in deps:
        found |= dep.sources
    return make(found, {})


def _steps(dep: Dep, function: Callable[[Along], Along | None]) -> Dep:
    moved = {
        n: tuple(None if x is None else function(x) for x in a) for n, a in dep.aligned.items()
    }
    return make(dep.whole, moved)


def _passed(dep: Dep, order: int) -> Dep:
    """What the next step finds in the carry: this step is an earlier one."""

    def later(x: Along) -> Along | None:
        if x.axis != STEP:
            return x
        return None if x.order == -order else Along(STEP, order)

    return _steps(dep, later)


def _left(dep: Dep) -> Dep:
    """After the last step."""
    return _steps(dep, lambda x: None if x.axis == STEP else x)


def _stacked(dep: Dep) -> Dep:
    """The outputs of all steps along a leading axis."""
    return _steps(dep, lambda x: Along(0 if x.axis == STEP else x.axis + 1, x.order))


def bits(x: int) -> list[int]:
    """The positions of the ones."""
    found = []
    while x:
        low = x & -x
        found.append(low.bit_length() - 1)
        x ^= low
    return found
