"""Nested inference: measures whose density is estimated by an algorithm.

    vx.marginal(m, keep, using)      some addresses of a measure, the others integrated out
    vx.normalize(target, using)      an unnormalised measure, normalised by resampling
    vx.importance(k, proposal)       importance sampling
    vx.smc(k, proposal)              sequential Monte Carlo

What `simulate` gives as density is unbiased for 1 / p in the sense E[1 / w | x] = 1 / p(x), what
`log_density` gives for p: E[w] = p(x). So `model.log_density(...) - guide.simulate().log_density`
is a lower bound whichever of the two is such a measure (`vx.bound` shows it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ..kernels.source import user_line
from ..transforms.choices import nest
from ..transforms.errors import (
    AddressMismatchError,
    CapabilityError,
    ParticleError,
    ProposalMismatchError,
    UnknownAddressError,
    show_address,
)
from ..transforms.inference import SCHEMES, SMC, Algorithm, Importance, Marginal, Normalized
from ..transforms.layout import Entry, layout
from ..transforms.nested import Flat, bind_nested
from ..transforms.site import Address
from ..transforms.staging import stage
from .measure import Measure

Proposal = Measure | Callable[[dict[str, Any]], Measure] | None


@dataclasses.dataclass(frozen=True)
class Using:
    """An algorithm with its proposal."""

    algorithm: Algorithm
    proposal: Proposal = None

    def __repr__(self) -> str:
        return repr(self.algorithm)


def importance(particles: int, proposal: Proposal = None, *, estimator: Any = None) -> Using:
    """Importance sampling, for `vx.marginal` and `vx.normalize`.

    Args:
        particles: how many draws, at least 1.
        proposal: a measure over the addresses to be integrated out (for `normalize`: all), or for
            `marginal` a function from the kept choices to one. Its density may be an estimate too.
            Without it they are drawn as the program itself draws them, given the kept choices.
        estimator: of the index that `normalize` picks among the particles.

    Raises:
        ParticleError: fewer than one particle.
    """
    _require_particles(particles)
    return Using(Importance(particles, estimator), proposal)


def smc(
    particles: int,
    proposal: Proposal = None,
    *,
    resample: str = "systematic",
    threshold: float | None = None,
    estimator: Any = None,
) -> Using:
    """Sequential Monte Carlo over the steps of the program's `jax.lax.scan`.

    The particles are resampled before each step by what the steps before observed. Its evidence is
    unbiased, so as an objective it is a lower bound (FIVO, VSMC, AESMC).

    Args:
        particles: how many, at least 1.
        proposal: as for `importance`; a program with scans of the same lengths, whose step t draws
            what step t has to draw. Without it the program's own steps are the proposal.
        resample: "systematic", "stratified" or "multinomial".
        threshold: resample only where the effective sample size is below this share of the
            particles; None resamples at every step.
        estimator: of the ancestors. By default the score function, which is unbiased;
            `Biased(StopGradient())` leaves their derivative out, as is common.

    Raises:
        ParticleError: fewer than one particle, an unknown scheme, a threshold outside 0 to 1.
        CapabilityError: the program does not draw inside a scan.
    """
    _require_particles(particles)
    if resample not in SCHEMES or not (threshold is None or 0 <= threshold <= 1):
        raise ParticleError(
            "This is no way to resample.",
            expected=f"one of {', '.join(SCHEMES)}; a threshold between 0 and 1, or None",
            got=f"resample={resample!r}, threshold={threshold!r}",
            where=user_line(),
        )
    return Using(SMC(particles, resample, threshold, estimator), proposal)


def marginal(m: Measure, keep: str | Iterable[str], using: Using) -> Measure:
    """The measure over some addresses of `m`, the others integrated out by an algorithm.

    Args:
        m: a measure that can be sampled.
        keep: the addresses that stay, `"x"` or `("x", "local/z")`; a nested model's name keeps all
            of its addresses.
        using: `vx.importance(...)` or `vx.smc(...)`.

    Returns:
        A measure whose value is the dict of the kept choices. `simulate` and `log_density`
        estimate its density in the two directions; right for every program and proposal whose
        support covers the latents'. It can be model, guide, nested in a model, and integrated out
        again.

    Raises:
        UnknownAddressError: an address that m does not have.
        ProposalMismatchError: the proposal has other addresses than those integrated out.
        CapabilityError: m is unnormalised, or samples in a while loop.
    """
    _require(m, using)
    name = f"marginal({m.name}, {_names(keep)})"
    line = user_line()

    def program() -> dict[str, Any]:
        entries = _entries(m, name, line)
        kept = _kept(entries, keep, name, line)
        latents = [a for a in entries if a not in kept]
        proposal = _proposal(using.proposal, latents, name, line, given=True)
        how = Marginal(using.algorithm)
        return nest(
            bind_nested(
                m.program, how, kept, entries, proposal=proposal, seen=kept, name=name, line=line
            )
        )

    return Measure(program, name)


def normalize(target: Measure, using: Using) -> Measure:
    """A measure over the addresses of an unnormalised one, drawn by an algorithm.

    Args:
        target: any measure, with observations or factors: its density is known up to a constant.
        using: `vx.importance(k, proposal)`: one of k draws of the proposal, picked by its weight;
            `vx.smc(k)`: a path of a particle filter. Without a proposal the target's own draws.

    Returns:
        The measure that the algorithm draws from, which approaches the target as k grows; its
        density is an estimate, as for `marginal`, of this measure's density, not of the target's.

    Raises:
        ProposalMismatchError: the proposal has not the target's addresses.
    """
    _require(target, using)
    name, line = f"normalize({target.name})", user_line()

    def program() -> dict[str, Any]:
        entries = layout(stage(target.program).jaxpr)
        kept = list(entries)
        proposal = _proposal(using.proposal, kept, name, line, given=False)
        how = Normalized(using.algorithm)
        return nest(
            bind_nested(target.program, how, kept, entries, proposal=proposal, name=name, line=line)
        )

    return Measure(program, name)


def _entries(m: Measure, name: str, line: str) -> dict[Address, Entry]:
    jaxpr = stage(m.program).jaxpr
    if weighed := layout(jaxpr, kinds=("observe", "factor")):
        raise CapabilityError(
            f"{name} needs a measure that can be sampled; this one is unnormalised.",
            address=next(iter(weighed)),
            expected="Sampleable",
            got="Unnormalised",
            where=line,
            fix="vx.normalize(target, using=...) makes a measure of it first",
        )
    return layout(jaxpr)


def _kept(
    entries: dict[Address, Entry], keep: str | Iterable[str], name: str, line: str
) -> list[Address]:
    asked = [tuple(a.split("/")) for a in ([keep] if isinstance(keep, str) else keep)]
    for address in asked:
        if not any(a[: len(address)] == address for a in entries):
            raise UnknownAddressError(
                f"{name}: there is no such address to keep.",
                address=address,
                expected=f"some of {', '.join(map(show_address, entries))}",
                where=line,
            )
    kept = [a for a in entries if any(a[: len(b)] == b for b in asked)]
    if not kept:
        raise UnknownAddressError(
            f"{name}: nothing is kept.",
            expected=f"some of {', '.join(map(show_address, entries))}",
            got="no address",
            where=line,
        )
    return kept


def _proposal(
    proposal: Proposal, latents: list[Address], name: str, line: str, *, given: bool
) -> Callable[[Flat], Callable[[], Any]] | None:
    """The proposal's program from the kept values, checked."""
    if proposal is None:
        return None

    def of(values: Flat) -> Callable[[], Any]:
        choices = nest(values) if given else {}
        made = proposal if isinstance(proposal, Measure) else proposal(choices)
        if not isinstance(made, Measure):
            raise CapabilityError(
                f"{name}: the proposal is not a measure.",
                expected="a measure, or a function from the kept choices to one",
                got=repr(made),
                where=line,
                fix="call the model: proposal=lambda kept: guide(phi, kept)",
            )
        jaxpr = stage(made.program).jaxpr
        found = layout(jaxpr)
        if layout(jaxpr, kinds=("observe", "factor")) or found.keys() != set(latents):
            _mismatch(made, found, latents, name, line)
        return made.program

    return of


def _mismatch(
    made: Measure, found: Any, latents: list[Address], name: str, line: str
) -> AddressMismatchError:
    missing = [a for a in latents if a not in found]
    extra = [a for a in found if a not in latents]
    says = [f"missing {', '.join(map(show_address, missing))}"] if missing else []
    says += [f"extra {', '.join(map(show_address, extra))}"] if extra else []
    raise ProposalMismatchError(
        f"{name}: the proposal {made.name} does not propose what has to be drawn"
        f"{': ' + ', '.join(says) if says else ', since it observes or weighs'}.",
        address=(missing or extra or [None])[0],
        expected=", ".join(map(show_address, latents)) or "no address",
        got=", ".join(map(show_address, found)) or "no address",
        where=line,
        fix="sample each of these addresses once in the proposal",
    )


def _require_particles(particles: Any) -> None:
    if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
        raise ParticleError(
            "An algorithm needs particles.",
            expected="a Python integer, at least 1",
            got=repr(particles),
            where=user_line(),
        )


def _require(m: Any, using: Any) -> None:
    if not isinstance(m, Measure):
        raise CapabilityError(
            "This is not a measure.",
            expected="a model called with its arguments",
            got=repr(m),
            where=user_line(),
            fix="call the model: vx.marginal(guide(phi), ...)",
        )
    if not isinstance(using, Using):
        raise CapabilityError(
            "This is not an algorithm.",
            expected="vx.importance(particles, proposal) or vx.smc(particles)",
            got=repr(using),
            where=user_line(),
        )


def _names(keep: str | Iterable[str]) -> str:
    return keep if isinstance(keep, str) else ", ".join(keep)
