"""Sequential Monte Carlo over the steps of a program's `jax.lax.scan`.

N particles go through the program side by side. Before each step of a scan that draws, they are
resampled by their weights; what the program computed before follows its particle.

    Z^ = prod_t 1/N sum_i w_t^i

A proposal is a program with the same scans, whose step t draws what the model's step t has to draw.
The conditional form has a given path among the particles, which begins at a place chosen at random
and is never lost (Andrieu, Doucet and Holenstein 2010).

Gordon, Salmond and Smith 1993; Naesseth et al. 2018, Maddison et al. 2017, Le et al. 2018 (as
objectives: VSMC, FIVO, AESMC).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd

from .. import _jax
from ..errors import CapabilityError
from ..estimators import Score
from ..interpreter import step
from ..layout import layout_of
from ..measures import Masked
from ..nested import Flat, first_nested
from ..site import bind_site, eqn_has_sites, make_site
from .base import Algorithm, Particle, Target
from .lockstep import Lockstep, Loop, Retaining, inside, lineage, shared
from .resampling import Ancestors, RetainedAncestors


@dataclasses.dataclass(frozen=True)
class SMC(Algorithm):
    """N particles.

    Args:
        particles: N >= 1.
        scheme: how they are resampled (`resampling.py`).
        threshold: resample only where the effective sample size is below this share of N; None
            resamples at every step. A decision by the weights jumps with the particles, so they
            are then not pathwise by default.
        estimator: of the ancestors (default: the score function with a leave-one-out baseline);
            `Biased(StopGradient())` leaves their derivative out, as is common.
    """

    particles: int
    scheme: str = "systematic"
    threshold: float | None = None
    estimator: Any = None
    name = "smc"

    def evidence(self, target: Target) -> jax.Array:
        return Filter(self, target).run().log_z()

    def conditional(self, target: Target, retained: Particle) -> jax.Array:
        _require_exact(target)
        return Filter(self, target, retained.latents).run().log_z()

    def draw(self, target: Target) -> tuple[Particle, jax.Array]:
        _require_exact(target)
        done = Filter(self, target).run()
        index = 0
        if self.particles > 1:
            weights = npd.Categorical(logits=done.log_w, validate_args=False)
            site = make_site((*target.prefix, "index"), "draw", weights, estimator=self.estimator)
            index = bind_site(*site)
        latents = {a: x[index] for a, x in done.choices.items()}
        return target.score(latents), done.log_z()


class Filter:
    """One run of N particles."""

    def __init__(self, smc: SMC, target: Target, retained: Flat | None = None):
        self.smc, self.target, self.n = smc, target, smc.particles
        self.retained = retained or {}
        self.slot = None if retained is None else self._first_slot()
        self.total, self.log_w = jnp.zeros(()), jnp.zeros(self.n)
        self.choices: Flat = {}  # latents [N, ...]
        problem = target.problem
        self.model = Lockstep.of(problem.program)
        self.guide = Lockstep.of(problem.proposal(target.values)) if problem.proposal else None
        self._require_scans()

    def _first_slot(self) -> Any:
        uniform = npd.Categorical(logits=jnp.zeros(self.n), validate_args=False)
        address = (*self.target.prefix, "slot")
        return bind_site(*make_site(address, "draw", uniform, estimator=Score()))

    def _flags(self, slot: Any) -> Any:
        """By particle, whether it is the one that is retained; None where none is."""
        return None if slot is None else jnp.arange(self.n) == slot

    def log_z(self) -> jax.Array:
        return self.total + _log_mean(self.log_w)

    def run(self) -> Filter:
        """All blocks and scans."""
        while True:
            block, scan = self.model.split()
            other, other_scan = self.guide.split() if self.guide else ([], None)
            self._block(block, other)
            if scan is None:
                return self
            self._scan(scan, other_scan)

    # ---- what one particle does

    def _handler(self, given: Flat, values: Flat, flag: Any, what: str) -> Retaining:
        handler = Retaining(
            given, what=what, weighed=frozenset(self.target.values), prefix=self.target.prefix
        )
        handler.flag, handler.values = flag, values
        return handler

    def _both(
        self,
        propose: Callable[[Any], Any] | None,
        score: Callable[[Any], Any],
        given: Flat,
        values: Flat,
        flag: Any,
    ) -> tuple[Any, Any, Flat, jax.Array]:
        """Run the proposal's part, then the model's: results, latents, the weight's increment."""
        drawn, log_q, theirs = {}, 0.0, None
        if propose is not None:
            guide = self._handler({}, values, flag, "simulate")
            theirs = propose(guide)
            drawn, log_q = guide.record.choices, guide.record.log_density
        model = self._handler(given | drawn, values, flag, "generate")
        mine = score(model)
        record = model.record
        if propose is None:
            latents = {a: x for a, x in record.choices.items() if a not in self.target.values}
            return mine, theirs, latents, record.weight
        return mine, theirs, drawn, record.log_density - log_q

    # ---- blocks

    def _block(self, eqns: list[_jax.JaxprEqn], guides: list[_jax.JaxprEqn]) -> None:
        """Equations between scans."""
        model, mine = shared(self.model, eqns)
        guide, theirs = shared(self.guide, guides) if self.guide else (None, [])
        here = {a for e in (*mine, *theirs) if eqn_has_sites(e) for a in layout_of(e)}
        given = {a: x for a, x in self.target.values.items() if a in here}
        kept = {a: x for a, x in self.retained.items() if a in here}

        def run(own: Any, flag: Any) -> Any:
            envs = [dict(env) for env in own]

            def through(program: Lockstep, eqns: list[Any], env: dict[Any, Any]) -> Any:
                def go(handler: Retaining) -> list[Any]:
                    found = []
                    for eqn in eqns:
                        ins = [env[v] if inside(v, env) else program.read(v) for v in eqn.invars]
                        outs = step(handler, eqn, ins)
                        env.update(zip(eqn.outvars, outs, strict=True))
                        found += outs
                    return found

                return go

            propose = through(guide, theirs, envs[1]) if guide is not None else None
            return self._both(propose, through(model, mine, envs[0]), given, kept, flag)

        own = [model.own, guide.own if guide is not None else {}]
        outs, others, latents, log_w = self._vmapped(run, own, self._flags(self.slot))
        model.own.update(zip((v for e in mine for v in e.outvars), outs, strict=True))
        if guide is not None:
            guide.own.update(zip((v for e in theirs for v in e.outvars), others, strict=True))
        self.choices |= latents
        self.log_w = self.log_w + log_w

    def _vmapped(self, run: Any, own: Any, flags: Any) -> Any:
        """Over particles; variables are no pytree keys, so environments travel as lists."""
        names = [list(env) for env in own]
        arrays = [list(env.values()) for env in own]

        def one(_: Any, arrays: Any, flag: Any) -> Any:
            envs = [dict(zip(n, a, strict=True)) for n, a in zip(names, arrays, strict=True)]
            return run(envs, flag)

        axes = (0, 0, None if flags is None else 0)
        return jax.vmap(one, in_axes=axes)(jnp.arange(self.n), arrays, flags)

    # ---- scans

    def _scan(self, scan: _jax.JaxprEqn, other: _jax.JaxprEqn | None) -> None:
        """Resample, then one step, for every step."""
        length = scan.params["length"]
        model = Loop(self.model, scan, self.n)
        guide = Loop(self.guide, other, self.n) if self.guide and other is not None else None
        here = layout_of(scan)
        given = {a: x for a, x in self.target.values.items() if a in here}
        kept = {a: x for a, x in self.retained.items() if a in here}

        def body(state: Any, x: Any) -> Any:
            carries, consts, log_w, total, slot = state
            xs, given, kept = x
            ancestors, slot, total, log_w = self._resample(log_w, total, slot)
            flags = self._flags(slot)
            carries, consts = jax.tree.map(lambda a: a[ancestors], (carries, consts))

            def one(_: Any, carries: Any, consts: Any, xs: Any, flag: Any) -> Any:
                def run(loop: Loop, i: int) -> Any:
                    return lambda handler: loop.step(
                        handler, carries[i], consts[i], xs[i][0], xs[i][1]
                    )

                propose = run(guide, 1) if guide is not None else None
                return self._both(propose, run(model, 0), given, kept, flag)

            axes = (0, 0, 0, [(None, 0)] * len(xs), None if flags is None else 0)
            outs = jax.vmap(one, in_axes=axes)(jnp.arange(self.n), carries, consts, xs, flags)
            mine, theirs, latents, increment = outs
            found = [mine] if guide is None else [mine, theirs]
            state = ([f[0] for f in found], consts, log_w + increment, total, slot)
            return state, (ancestors, [f[1] for f in found], latents)

        loops = [model] if guide is None else [model, guide]
        carries, consts = [lp.carry for lp in loops], [lp.own_consts for lp in loops]
        start = (carries, consts, self.log_w, self.total, self.slot)
        xs = [(lp.shared_xs, lp.own_xs) for lp in loops]
        state, (ancestors, ys, latents) = jax.lax.scan(
            body,
            start,
            (xs, given, kept),
            length=length,
            reverse=scan.params["reverse"],
        )
        carries, _, self.log_w, self.total, self.slot = state
        origin, (ys, latents) = lineage(ancestors, (ys, latents), scan.params["reverse"])
        for program in (self.model, self.guide):
            if program is not None:
                program.own = {v: x[origin] for v, x in program.own.items()}
        self.choices = {a: x[origin] for a, x in self.choices.items()} | latents
        for loop, carry, y in zip(loops, carries, ys, strict=True):
            loop.program.own.update(zip(loop.eqn.outvars, [*carry, *y], strict=True))

    def _resample(
        self, log_w: jax.Array, total: jax.Array, slot: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
        """Ancestors, the place of the retained one, log Z^ so far, the log weights left."""
        n, smc = self.n, self.smc
        stay = jnp.arange(n, dtype=jnp.result_type(int))
        if n == 1:
            return stay, slot, total, log_w
        law: Any = Ancestors(log_w, n, smc.scheme)
        if slot is not None:
            law = RetainedAncestors(log_w, slot, smc.scheme)
        enough = None
        if smc.threshold is not None:
            enough = effective_size(log_w) >= smc.threshold * n
            law = Masked(law, ~enough)
        address = (*self.target.prefix, "ancestors")
        drawn = bind_site(*make_site(address, "draw", law, estimator=smc.estimator))
        ancestors: Any = drawn if slot is None else drawn[:-1]
        place: Any = None if slot is None else drawn[-1]
        again, nothing = total + _log_mean(log_w), jnp.zeros_like(log_w)
        if enough is None:
            return ancestors, place, again, nothing
        ancestors = jnp.where(enough, stay, ancestors)
        place = None if slot is None else jnp.where(enough, slot, place)
        return ancestors, place, jnp.where(enough, total, again), jnp.where(enough, log_w, nothing)

    def _require_scans(self) -> None:
        mine = [e.params["length"] for e in self.model.scans()]
        theirs = [e.params["length"] for e in self.guide.scans()] if self.guide else mine
        if mine and mine == theirs:
            return
        raise CapabilityError(
            "Sequential Monte Carlo resamples between the steps of a scan."
            if not mine
            else "The proposal's scans are not those of the program.",
            address=self.target.problem.prefix or None,
            expected="a program that draws inside jax.lax.scan"
            if not mine
            else f"scans that draw of lengths {mine}",
            got="no scan that draws" if not mine else f"lengths {theirs}",
            fix="use vx.importance(particles), or write the steps as a scan"
            if not mine
            else "draw at step t of the proposal's scan what step t of the program has to draw",
        )


def _require_exact(target: Target) -> None:
    """A path that is handed on needs the densities that it was weighed with."""
    if (region := first_nested(target.problem.program.jaxpr)) is not None:
        raise region.inexact(
            f"A path of smc is weighed by exact densities; that of {region.name} is an estimate.",
            "its evidence, log_density(observations) of a vx.marginal, can be estimated",
        )


def _log_mean(log_w: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(log_w) - jnp.log(len(log_w))


def effective_size(log_w: jax.Array) -> jax.Array:
    """(sum w)^2 / sum w^2."""
    return jnp.exp(2 * jax.nn.logsumexp(log_w) - jax.nn.logsumexp(2 * log_w))
