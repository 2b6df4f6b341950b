"""Measures: programs with their arguments, ready to be sampled, scored and conditioned."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from ..transforms import replay as _replay
from ..transforms import seed as _seed
from ..transforms import trace as _trace
from ..transforms.choices import Choices, flatten
from ..transforms.edit import Condition, Do
from ..transforms.errors import show_address
from ..transforms.law import Law
from ..transforms.layout import layout
from ..transforms.measures import is_normalised
from ..transforms.nested import first_estimate
from ..transforms.site import draws
from ..transforms.staging import stage
from .trace import Trace

if TYPE_CHECKING:
    from .potential import Potential


class Capability(enum.Enum):
    """What a measure can do. An operation that needs a missing one raises `CapabilityError`."""

    SAMPLEABLE = "simulate draws from it"
    DENSITY = "log_density is exact"
    STOCHASTIC_DENSITY = "log_density and simulate estimate the density without bias"
    UNNORMALISED = "log_density is exact up to a constant; simulate does not draw from it"


class Measure:
    """A program closed over its arguments: a measure on its random choices.

    Made by calling a `Model`. It may be sampled in another program, `vx.sample("local", m)`, which
    nests its addresses.
    """

    def __init__(self, program: Callable[[], Any], name: str, original: Measure | None = None):
        self.program = program
        self.name = name
        self.original = original or self  # before any intervention

    def simulate(self, key: jax.Array | None = None) -> Trace:
        """Run forward.

        Args:
            key: randomness. Without it the draws stay random choices of the program that calls
                this, an objective for example.

        Raises:
            CapabilityError: the program observes or weighs.
            DuplicateAddressError, LoopDensityError: its choices have no layout.
            UnhandledSampleError: no key, and not inside a program.
        """
        return _keyed(lambda: Trace.of(*_trace.simulate(self.program)), key)

    def log_density(self, choices: Choices, key: jax.Array | None = None) -> jax.Array:
        """Joint log density of the choices and of the program's observations: a scalar, in nats.

        With a `vx.marginal` or `vx.normalize` in it, an estimate log w with E[w] = p(choices).

        Args:
            choices: a value for every unobserved address, and no other address.
            key: randomness of such an estimate. Without it, its draws are random choices of the
                program that calls this, an objective for example.

        Raises:
            MissingAddressError, UnknownAddressError, AddressMismatchError: the addresses differ.
            ShapeError: a value has not its address's shape; nothing is broadcast.
            SupportError: a value known now lies outside its support (otherwise the density there
                is the distribution's own: minus infinity or NaN).
            LoopDensityError: the program samples in a `while_loop`.
        """
        return _keyed(lambda: _trace.log_density(self.program, choices), key)

    def generate(self, key: jax.Array | None, observations: Choices) -> tuple[Trace, jax.Array]:
        """Run forward with some choices given: a trace of all choices, and its log weight.

        The weight is the log density of what was given (and of observations and factors), so
        E[exp(weight)] is the evidence. `key=None` as in `simulate`.
        """

        def run() -> tuple[Trace, jax.Array]:
            value, record = _trace.generate(self.program, observations)
            return Trace.of(value, record), record.weight

        return _keyed(run, key)

    def condition(self, observations: Choices) -> Measure:
        """The unnormalised measure over the other addresses, these fixed to their values."""

        def program() -> Any:
            return _trace.edit(self.program, observations, Condition, "condition")

        return Measure(program, f"{self.name}.condition({_names(observations)})")

    def do(self, values: Choices) -> Measure:
        """Set addresses from outside: they are no longer random, what follows uses the values."""

        def program() -> Any:
            return _trace.edit(self.program, values, Do, "do")

        return Measure(program, f"do({self.name}, {_names(values)})", self.original)

    def detach(self) -> Measure:
        """The same measure, constant in everything that the program got from outside.

        Its densities have no derivative in parameters, only in the choices they are evaluated at.
        """

        def program() -> Any:
            return _trace.detached(self.program)

        return Measure(program, f"{self.name}.detach()", self.original)

    def replay(self, trace: Trace) -> Measure:
        """This measure with the noise of a trace: the counterfactual, after `do`.

        `m.do({"x": 1.0}).replay(trace).simulate()` is what would have been in the world of `trace`,
        which came from `m`, had x been 1. Replayed addresses are no longer random: they are in the
        new trace's `recorded`. Addresses that the trace does not have stay random.

        Raises:
            CapabilityError: a draw's noise cannot be recovered (discrete distributions).
        """

        def program() -> Any:
            noise = _replay.abduct(self.original.program, trace.choices)
            return _replay.predict(self.program, noise)

        return Measure(program, f"replay({self.name})")

    def potential(self) -> Potential:
        """Minus the log density on R^D, for samplers and optimisers: see `Potential`.

        Raises:
            CapabilityError: a choice is discrete or may be absent, or a density is an estimate.
        """
        from .potential import Potential  # which is made of measures

        return Potential(self)

    @property
    def addresses(self) -> dict[str, tuple[int, ...]]:
        """Shape of every unobserved choice, by address (nested ones as `outer/inner`)."""
        entries = _trace.addresses(self.program)
        return {show_address(a): e.shape for a, e in entries.items()}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this measure can do."""
        jaxpr = stage(self.program).jaxpr
        proper = all(is_normalised(Law(site, []).template) for site in draws(jaxpr))
        if not proper or layout(jaxpr, kinds=("observe", "factor")):
            found = {Capability.UNNORMALISED}
        else:
            found = {Capability.SAMPLEABLE, Capability.DENSITY}
        if first_estimate(jaxpr) is not None:
            found = found - {Capability.DENSITY} | {Capability.STOCHASTIC_DENSITY}
        return frozenset(found)

    def require_exact(self, who: str) -> None:
        """Raise a `CapabilityError` where this measure's density is an estimate."""
        if (region := first_estimate(stage(self.program).jaxpr)) is not None:
            raise region.inexact(
                f"{who} needs an exact density, and that of {region.name} is an estimate.",
                "objectives.elbo and iwelbo take estimated densities in the right direction",
            )

    def __repr__(self) -> str:
        return f"Measure({self.name})"


def _names(choices: Choices) -> str:
    return "{" + ", ".join(show_address(a) for a in flatten(choices)) + "}"


def _keyed(run: Callable[[], Any], key: jax.Array | None) -> Any:
    return run() if key is None else _seed.seed(run, key)
