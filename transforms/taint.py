"""Forward analysis of a jaxpr: which pathwise choices a value follows, and where it jumps in them.

A `Value` has three sets of causes, as bits of an integer:

    smooth   pathwise sites that it depends on along the path
    jump     origins: operations behind it whose result jumps where a pathwise value moves
    edge     origins that can only make it jump to or from infinity: support guards

This file walks; `jumps.py` has a rule for each kind of operation. A region (the body of a jit,
scan, cond, ...) is analysed once for each pattern of its inputs' causes, on placeholders, and each
equation that calls it puts its own causes in their place. So the time is that of one look at every
equation that a pathwise value reaches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _jax
from .site import Site, eqn_has_sites
from .trusted import trusted


class Value(NamedTuple):
    """Causes of a variable."""

    smooth: int = 0
    jump: int = 0
    edge: int = 0

    @property
    def rough(self) -> int:
        """All origins, where an edge is no longer safe."""
        return self.jump | self.edge


NONE = Value()


@dataclasses.dataclass(eq=False)
class Origin:
    """An operation at which something stops being continuous, and the pathwise sites behind it."""

    eqns: tuple[_jax.JaxprEqn, ...]  # it, then the equations around it, innermost first
    sites: int


class Summary(NamedTuple):
    """What a region makes of placeholders: its outputs, and the jumps that matter inside it."""

    outs: list[Value]
    matters: int


Rule = Callable[["Region", _jax.JaxprEqn, list[Value]], Sequence[Value]]


class Rules(NamedTuple):
    """Rules by the name of a primitive, and the one for all others."""

    table: Mapping[str, Rule]
    otherwise: Rule


class Taint:
    """What the regions of one program share. A cause is a bit; `causes[i]` says what bit i is."""

    def __init__(self, rules: Rules, pathwise: Callable[[Site], bool], *, direct: bool = False):
        self.rules = rules
        self.pathwise = pathwise
        self.direct = direct  # whether a draw follows its own path only, not its parameters'
        self.causes: list[Site | Origin | None] = []  # None for a placeholder
        self.known: dict[Any, Summary] = {}
        self._sites: dict[int, int] = {}  # bits by id
        self._placeholders: list[Value] = []

    def new(self, cause: Site | Origin | None) -> int:
        """A bit for a cause."""
        self.causes.append(cause)
        return 1 << (len(self.causes) - 1)

    def site(self, site: Site) -> int:
        """The bit of a site."""
        if id(site) not in self._sites:
            self._sites[id(site)] = self.new(site)
        return self._sites[id(site)]

    def placeholder(self, i: int) -> Value:
        """What stands for the i-th of a region's distinct inputs."""
        while len(self._placeholders) <= i:
            self._placeholders.append(Value(*(self.new(None) for _ in Value._fields)))
        return self._placeholders[i]

    def of(self, bits: int) -> Iterator[tuple[int, Site | Origin | None]]:
        """The causes in a set, oldest first."""
        while bits:
            low = bits & -bits
            yield low, self.causes[low.bit_length() - 1]
            bits ^= low


class Region:
    """One walk over the equations of a jaxpr.

    Args:
        derivative: whether differentiation made the equations.
        infinite: which inputs are known to be infinite or NaN.
    """

    def __init__(
        self, taint: Taint, jaxpr: Any, *, derivative: bool = False, infinite: Sequence[bool] = ()
    ):
        self.taint = taint
        self.jaxpr, _ = _jax.opened(jaxpr)
        self.derivative = derivative
        self.matters = 0  # jumps that matter inside, whatever becomes of the outputs
        self.env: dict[Any, Value] = {}
        self._inputs = _jax.input_vars(self.jaxpr)
        self._infinite = {v for v, flag in zip(self._inputs, infinite, strict=False) if flag}
        self._producers: dict[Any, _jax.JaxprEqn] | None = None
        self._origins: dict[Any, int] = {}
        self._trusted: dict[int, bool] = {}

    def run(self, values: Sequence[Value]) -> list[Value]:
        """Causes of the outputs; `values` are those of `[*consts, *args]`, or of args alone."""
        env, (rules, otherwise) = self.env, self.taint.rules
        consts = len(self._inputs) - len(values)
        env.update((v, x) for v, x in zip(self._inputs[consts:], values, strict=True) if any(x))
        for eqn in self.jaxpr.eqns:
            rule = rules.get(eqn.primitive.name)
            for v in eqn.invars:
                if type(v) is not _jax.Literal and v in env:
                    break
            else:
                if rule is None or not eqn_has_sites(eqn):
                    continue
            outs = (rule or otherwise)(self, eqn, [self.read(v) for v in eqn.invars])
            for v, out in zip(eqn.outvars, outs, strict=True):
                if out.smooth or out.jump or out.edge:
                    env[v] = out
        return [self.read(v) for v in self.jaxpr.outvars]

    def read(self, atom: Any) -> Value:
        """Causes of a variable or a literal."""
        return NONE if type(atom) is _jax.Literal else self.env.get(atom, NONE)

    def origin(self, eqn: _jax.JaxprEqn, sites: int) -> int:
        """The bit of an operation that jumps where one of `sites` moves; none if it is trusted."""
        return self._origin(eqn, None, (eqn,), sites) if sites and not self.trusts(eqn) else 0

    def _origin(self, eqn: Any, inner: Any, eqns: tuple[Any, ...], sites: int) -> int:
        """One origin for an equation and what is inside it, however often a loop comes around."""
        key = id(eqn), inner
        if key not in self._origins:
            self._origins[key] = self.taint.new(Origin(eqns, 0))
        bit = self._origins[key]
        found = self.taint.causes[bit.bit_length() - 1]
        assert isinstance(found, Origin)
        found.sites |= sites
        return bit

    def trusts(self, eqn: _jax.JaxprEqn) -> bool:
        """Whether an equation belongs to a library function that is known to be continuous."""
        if id(eqn) not in self._trusted:
            derivative = self.derivative or _jax.is_derivative(eqn)
            inputs = len(self._inputs)
            self._trusted[id(eqn)] = trusted(eqn, derivative=derivative, inputs=inputs)
        return self._trusted[id(eqn)]

    def call(
        self, eqn: _jax.JaxprEqn, jaxpr: Any, values: Sequence[Value], atoms: Sequence[Any] = ()
    ) -> list[Value]:
        """Causes of a region's outputs, from those of its arguments; `atoms` are the arguments."""
        classes: dict[Value, int] = {}
        pattern = tuple(classes.setdefault(x, len(classes)) if any(x) else -1 for x in values)
        guards = any(x.jump or x.edge for x in values)
        infinite = tuple(self.is_infinite(a) for a in atoms) if guards else ()
        derivative = self.derivative or _jax.is_derivative(eqn)
        jaxpr, _ = _jax.opened(jaxpr)
        key = id(jaxpr), pattern, infinite, derivative
        known = self.taint.known
        if key not in known:
            stand = {n: self.taint.placeholder(n) for n in classes.values()}
            stand = {n: self._only(x, stand[n]) for x, n in classes.items()}
            region = Region(self.taint, jaxpr, derivative=derivative, infinite=infinite)
            outs = region.run([NONE if n < 0 else stand[n] for n in pattern])
            known[key] = Summary(outs, region.matters)
        given: dict[int, int] = {}
        for x, n in classes.items():
            given.update(zip(self.taint.placeholder(n), x, strict=True))
        outs, matters = known[key]
        self.matters |= self._put(eqn, matters, given)
        return [Value(*(self._put(eqn, bits, given) for bits in out)) for out in outs]

    @staticmethod
    def _only(x: Value, placeholder: Value) -> Value:
        """The placeholder, without what its input does not have."""
        return Value(*(p if bits else 0 for bits, p in zip(x, placeholder, strict=True)))

    def _put(self, eqn: _jax.JaxprEqn, bits: int, given: Mapping[int, int]) -> int:
        """The causes that a summary stands for at an equation."""
        out = 0
        for low, cause in self.taint.of(bits):
            if cause is None:
                out |= given[low]
            elif isinstance(cause, Origin):
                if not self.trusts(eqn):
                    sites = self._put(eqn, cause.sites, given)
                    out |= self._origin(eqn, low, (*cause.eqns, eqn), sites)
            else:
                out |= low
        return out

    def producer(self, atom: Any) -> _jax.JaxprEqn | None:
        """The equation that makes a variable; None for literals and inputs."""
        if self._producers is None:
            self._producers = {v: eqn for eqn in self.jaxpr.eqns for v in eqn.outvars}
        return None if type(atom) is _jax.Literal else self._producers.get(atom)

    def is_infinite(self, atom: Any) -> bool:
        """Whether an atom is known to be infinite or NaN everywhere."""
        if type(atom) is _jax.Literal:
            return _is_infinite(atom.val)
        if atom in self._infinite:
            return True
        eqn = self.producer(atom)
        return eqn is not None and eqn.primitive.name in _COPIES and self.is_infinite(eqn.invars[0])


_COPIES = {"broadcast_in_dim", "convert_element_type", "neg", "reshape", "squeeze", "copy"}


def _is_infinite(x: Any) -> bool:
    try:
        return not bool(np.isfinite(x).any())
    except TypeError:  # a key
        return False
