"""Find where a program stops being finite: run it equation by equation on concrete values.

Used after a failure, so it may be slow. The run uses the failing step's key and draws what
`expect` drew. Densities are equations of their own here (`density.watch`), so that a site can be
told from arithmetic; for each the local gradient is looked at too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _jax, density
from .arrays import where_leading
from .bounds import estimate_p, has_estimates
from .direct import Expect
from .errors import show_address
from .estimators import Branching, Estimator
from .interpreter import read
from .law import Law
from .measures import innermost
from .nested import stage_forward
from .plan import Plan
from .site import Address, Site, eqn_has_sites, over_lanes, site_p

TRIES = 64  # other draws to look at where the program enumerates, since any path may be the culprit


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first thing that is not finite.

    Attributes:
        what: "value", "density", "gradient" (of a site), "estimated density" (of a nested measure)
            or "arithmetic" (of no site).
        address: the site's, None for arithmetic.
        line: the user's line.
        detail: numbers.
    """

    what: str
    address: str | None
    line: str
    detail: str


class _Found(Exception):
    def __init__(self, finding: Finding):
        self.finding = finding


def find(
    program: Callable[[], Any],
    key: jax.Array,
    estimators: Mapping[Address, Estimator] | None = None,
) -> Finding | None:
    """The first site whose value, density or gradient is not finite when `expect(program)(key)`
    runs, else the first such arithmetic, else None.
    """
    with density.watch():
        staged = stage_forward(program)
    plan = Plan(staged.jaxpr, estimators=estimators)
    runs = [key] if plan.runs() == 1 else jax.random.split(key, plan.runs())
    keys = [*runs, *jax.random.split(key, TRIES)] if plan.branches(staged.jaxpr) else runs
    for attempt in keys:
        look = _Look(plan, attempt)
        look.estimates = has_estimates(staged.jaxpr)
        try:
            look.region(staged.jaxpr, staged.consts)
        except _Found as found:
            return found.finding
        if look.arithmetic is not None:
            return look.arithmetic
    return None


class _Look(Expect):
    """Expect's draws, with a check after every equation."""

    arithmetic: Finding | None = None  # the first of no site
    place: tuple[str, ...] = ()  # "step 3 of a scan", outermost first
    estimates = False  # whether the program estimates densities

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind != "draw":
            return super().site(site, operands)
        bad = [x for x in operands if not _finite(x)]
        if bad:
            self.fail("value", site, f"a parameter of {Law(site, operands).name} is {_first(bad)}")
        if isinstance(self.plan.estimator(site), Branching):
            return Law(site, operands).sample(next(self.keys))
        value = super().site(site, operands)
        if not _finite(value):
            self.fail("value", site, f"the draw is {_first([value])}")
        return value

    def fail(self, what: str, site: Site, detail: str) -> None:
        where = "".join(f" ({p})" for p in self.place)
        first = self.arithmetic
        cause = f"; first non-finite arithmetic: {first.detail} at {first.line}" if first else ""
        raise _Found(
            Finding(
                what,
                show_address(site.address),
                site.line,
                detail + where + cause,
            )
        )

    def region(self, jaxpr: Any, operands: list[Any]) -> list[Any]:
        env = dict(zip(_jax.input_vars(jaxpr), operands, strict=True))
        self.begin(jaxpr)
        for eqn in jaxpr.eqns:
            values = [read(env, v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self.equation(eqn, values), strict=True))
        return [read(env, v) for v in jaxpr.outvars]

    def equation(self, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
        if eqn.primitive is site_p:
            return [self.site(eqn.params["site"], values)]
        if eqn.primitive is density.density_p:
            return [self.density(values, **eqn.params)]
        if eqn.primitive is estimate_p:
            return [self.estimate(values[0], **eqn.params)]
        if not _interesting(eqn):
            return self.plain(eqn, values)
        rule = _REGIONS.get(eqn.primitive, _once)
        entered = iter(_entries(self, eqn))

        def enter(jaxpr: Any, values: list[Any], place: str | None = None) -> list[Any]:
            inner = _Look(self.plan, next(entered))
            inner.arithmetic = self.arithmetic
            inner.place = (*self.place, place) if place else self.place
            inner.estimates = self.estimates
            jaxpr, consts = _jax.opened(jaxpr)
            outs = inner.region(jaxpr, [*consts, *values])
            self.arithmetic = inner.arithmetic
            return outs

        return rule(enter, eqn, values)

    def density(self, values: list[Any], *, site: Site, kept: int) -> Any:
        _check_support(self, site, values)
        out, pull = jax.vjp(lambda vs: density.total(*vs, site=site, kept=kept), values)
        if self.estimates and _zero_at_most(out):  # a particle may have a weight of zero
            return out
        if not _finite(out):
            name = Law(site, values).name
            self.fail("density", site, f"the log density of {name} is {_first([out])}")
        grads = jax.tree.leaves(pull(jnp.ones_like(out))[0])
        if not all(_finite(g) for g in grads):
            self.fail("gradient", site, f"the gradient of its log density is {_first(grads)}")
        return out

    def estimate(self, log_w: Any, *, of: str, name: str, line: str) -> Any:
        """An estimated density: zero where all weights are, NaN where one is no number."""
        if not _finite(log_w):
            why = (
                "the weights of all particles are zero"
                if _zero_at_most(log_w)
                else "the weight of a particle is not finite"
            )
            where = "".join(f" ({p})" for p in self.place)
            detail = f"log w of {name} is {_first([log_w])}: {why}{where}"
            raise _Found(Finding("estimated density", name, line, detail))
        return log_w

    def plain(self, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
        outs = _jax.bind_again(eqn, values)
        if self.arithmetic is None and all(_finite(v) for v in values):
            if not all(_finite(x) for x in outs):
                self.note(eqn, f"`{eqn.primitive.name}` gives {_first(outs)}")
            elif (grad := _bad_gradient(eqn, values)) is not None:
                self.note(eqn, f"the gradient of `{eqn.primitive.name}` is {grad}")
        return outs

    def note(self, eqn: _jax.JaxprEqn, detail: str) -> None:
        self.arithmetic = Finding("arithmetic", None, _jax.source_line(eqn), detail)


def _zero_at_most(log_w: Any) -> bool:
    """Whether what is not finite is minus infinity."""
    x = np.asarray(log_w)
    return bool((np.isneginf(x) | np.isfinite(x)).all() and np.isneginf(x).any())


def _check_support(look: _Look, site: Site, values: list[Any]) -> None:
    def inside(measure: Any, value: Any) -> Any:
        support = getattr(innermost(measure), "support", None)
        if support is None or innermost(measure) is not measure:
            return jnp.asarray(True)
        return jnp.all(support(value))

    if not look.estimates and not bool(jnp.all(over_lanes(site, inside, values))):
        name = Law(site, values).name
        look.fail(
            "density", site, f"the value {_first(values[-1:], 3)} is outside {name}'s support"
        )


# ---- regions, on concrete values


def _interesting(eqn: _jax.JaxprEqn) -> bool:
    return eqn_has_sites(eqn) or any(
        inner.primitive in (density.density_p, estimate_p) or _interesting(inner)
        for sub in _jax.subjaxprs(eqn)
        for inner in _jax.opened(sub)[0].eqns
    )


def _entries(look: _Look, eqn: _jax.JaxprEqn) -> Any:
    """The key of every entry into a region, as `expect` gives them."""
    if not eqn_has_sites(eqn):
        while True:
            yield look.key
    if eqn.primitive is _jax.scan_p:
        yield from look.enter_scan(eqn, eqn.params["length"])
    elif eqn.primitive is _jax.while_p:
        key = next(look.keys)
        while True:
            step, key = jax.random.split(key)
            yield step
    else:
        yield look.enter(eqn)


def _once(enter: Any, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    return enter(next(_jax.subjaxprs(eqn)), values)


def _cond(enter: Any, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    index, *values = values
    return enter(
        eqn.params["branches"][int(np.clip(index, 0, len(eqn.params["branches"]) - 1))], values
    )


def _scan(enter: Any, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    n_consts, n_carry = _jax.scan_counts(eqn)
    consts, carry = values[:n_consts], values[n_consts : n_consts + n_carry]
    xs, length = values[n_consts + n_carry :], eqn.params["length"]
    order = range(length)[::-1] if eqn.params["reverse"] else range(length)
    ys: dict[int, list[Any]] = {}
    for t in order:
        outs = enter(eqn.params["jaxpr"], [*consts, *carry, *(x[t] for x in xs)], f"scan step {t}")
        carry, ys[t] = outs[:n_carry], outs[n_carry:]
    columns = zip(*(ys[t] for t in range(length)), strict=True)
    return [*carry, *(jnp.stack(column) for column in columns)]


def _while(enter: Any, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    params = eqn.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    in_cond, in_body = values[:n_cond], values[n_cond : n_cond + n_body]
    state, count = values[n_cond + n_body :], 0
    predicate = _jax.jaxpr_as_fun(params["cond_jaxpr"])
    while (running := predicate(*in_cond, *state)[0]).any():
        new = enter(params["body_jaxpr"], [*in_body, *state], f"loop step {count}")
        state = [where_leading(running, x, old) for x, old in zip(new, state, strict=True)]
        count += 1
    return state


_REGIONS = {_jax.cond_p: _cond, _jax.scan_p: _scan, _jax.while_p: _while}


# ---- finiteness


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _finite(x: Any) -> bool:
    return not _is_float(x) or bool(np.isfinite(np.asarray(x)).all())


def _first(xs: list[Any], count: int = 1) -> str:
    """The first numbers that are not finite, or the first numbers."""
    flat = np.concatenate([np.asarray(x, float).ravel() for x in xs if jnp.size(x)])
    bad = flat[~np.isfinite(flat)]
    shown = (bad if bad.size else flat)[:count]
    return ", ".join(f"{x:g}" for x in shown)


def _bad_gradient(eqn: _jax.JaxprEqn, values: list[Any]) -> str | None:
    floats = [i for i, v in enumerate(values) if _is_float(v)]
    if not floats:
        return None

    def function(*chosen: Any) -> list[Any]:
        full = list(values)
        for i, x in zip(floats, chosen, strict=True):
            full[i] = x
        return [x for x in _jax.bind_again(eqn, full) if _is_float(x)]

    try:
        outs, pull = jax.vjp(function, *(values[i] for i in floats))
        grads = pull([jnp.ones_like(x) for x in outs])
    except (NotImplementedError, TypeError, ValueError):  # a primitive without a derivative
        return None
    return None if all(_finite(g) for g in grads) else _first(list(grads))
