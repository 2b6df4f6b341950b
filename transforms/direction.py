"""On which side of its exact value an objective lies, when densities in it are estimates.

The exact objective has the exact densities in the place of the estimates. What is known of a value
in a program is one of

    exact      it depends on no estimate
    linear     its mean is exact: w, and what is linear in it
    log        its exponential is linear: log w, log (w_1 + w_2), log w_1 - log w_2'
    below      its mean is at most the exact value: log w by Jensen, and positive multiples, sums
    above      at least
    unknown    anything else

where w estimates p, and 1 / w' estimates 1 / p'. A value that is a log with the sign reversed is
`-log`. Estimates of different equations and lanes are independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import _jax
from .axis_rules import ELEMENTWISE
from .bounds import estimate_p, has_estimates
from .errors import BoundDirectionError
from .site import site_p
from .staging import Staged

MOVES = frozenset(
    """broadcast_in_dim reshape squeeze transpose slice dynamic_slice gather concatenate pad rev
    convert_element_type copy copy_p expand_dims stop_gradient reduce_precision select_n sort
    assume_smooth declare_biased split name device_put sharding_constraint optimization_barrier
    dynamic_update_slice""".split()
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated density in a program."""

    name: str
    of: str
    line: str


@dataclasses.dataclass(frozen=True)
class Side:
    """What is known of a value; `below` and `above` are the estimates that make it so."""

    form: str = "exact"
    below: frozenset[Estimate] = frozenset()
    above: frozenset[Estimate] = frozenset()

    @property
    def direction(self) -> str:
        """One of "exact", "unbiased", "lower bound", "upper bound" and "unknown"."""
        if self.form in ("exact", "unknown"):
            return self.form
        if self.form == "linear":
            return "unbiased"
        if self.below and self.above:
            return "unknown"
        return "lower bound" if self.below else "upper bound"


EXACT = Side()
_OPPOSITE = {"log": "-log", "-log": "log", "below": "above", "above": "below"}


def direction(staged: Staged) -> Side:
    """Of a program's first output."""
    outs = _region(staged.jaxpr, [EXACT] * len(_jax.input_vars(staged.jaxpr)))
    return outs[0] if outs else EXACT


def require_bound(staged: Staged, wanted: str, line: str) -> None:
    """Raise where an objective is known not to be a bound in the wanted direction.

    Args:
        wanted: "lower", to be maximised, or "upper", to be minimised.
        line: the objective's, for messages.

    Raises:
        BoundDirectionError: names an estimate that enters with the wrong sign.
    """
    side = direction(staged)
    wrong = side.above if wanted == "lower" else side.below
    if not wrong:
        return
    one = min(wrong, key=lambda e: e.line)
    verb, kind = ("maximise", "a lower") if wanted == "lower" else ("minimise", "an upper")
    unbiased = "E[w] = p" if one.of == "p" else "E[1 / w] = 1 / p"
    sign = "subtracted" if (one.of == "p") == (wanted == "lower") else "added"
    raise BoundDirectionError(
        f"To {verb} an objective it has to be {kind} bound, and the estimated density of "
        f"{one.name} enters it on the other side.",
        expected=f"{kind} bound of the objective with exact densities",
        got=f"log w of an estimate with {unbiased}, {sign}",
        where=one.line or line,
        fix="simulate() gives the density to subtract (a guide's), log_density(choices) the one to "
        "add (a model's)",
    )


def _region(jaxpr: Any, operands: Sequence[Side]) -> list[Side]:
    jaxpr, consts = _jax.opened(jaxpr)
    inputs = _jax.input_vars(jaxpr)
    known: dict[Any, Side] = dict(zip(inputs[len(inputs) - len(operands) :], operands, strict=True))
    values: dict[Any, Any] = dict(zip(inputs, consts, strict=False))

    def side(v: Any) -> Side:
        return EXACT if isinstance(v, _jax.Literal) else known.get(v, EXACT)

    def constant(v: Any) -> Any:
        return v.val if isinstance(v, _jax.Literal) else values.get(v)

    for eqn in jaxpr.eqns:
        ins = [side(v) for v in eqn.invars]
        if all(x.form == "exact" for x in ins) and not _estimates(eqn):
            if eqn.primitive.name == "broadcast_in_dim" and constant(eqn.invars[0]) is not None:
                values[eqn.outvars[0]] = constant(eqn.invars[0])
            continue
        outs = _equation(eqn, ins, [constant(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, outs, strict=True))
    return [side(v) for v in jaxpr.outvars]


def _estimates(eqn: _jax.JaxprEqn) -> bool:
    return eqn.primitive is estimate_p or any(map(has_estimates, _jax.subjaxprs(eqn)))


def _equation(eqn: _jax.JaxprEqn, ins: list[Side], constants: list[Any]) -> list[Side]:
    name = eqn.primitive.name
    if eqn.primitive is estimate_p:
        one = Estimate(eqn.params["name"], eqn.params["of"], eqn.params["line"])
        one_set = frozenset((one,))
        return [Side("log", below=one_set) if one.of == "p" else Side("-log", above=one_set)]
    if eqn.primitive in (_jax.jit_p, _jax.closed_call_p, _jax.remat_p):
        return _region(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"], ins)
    if eqn.primitive is _jax.scan_p:
        return _scan(eqn, ins)
    if eqn.primitive is _jax.cond_p and ins[0].form == "exact":
        branches = [_region(b, ins[1:]) for b in eqn.params["branches"]]
        return [_join(list(outs)) for outs in zip(*branches, strict=True)]
    if eqn.primitive is _jax.custom_jvp_call_p and _calls(eqn) == "logaddexp":
        return [_log_sum(ins)]
    if eqn.primitive is site_p or len(eqn.outvars) != 1:
        return [_unknown(ins)] * len(eqn.outvars)
    return [_arithmetic(eqn, name, ins, constants)]


def _arithmetic(eqn: Any, name: str, ins: list[Side], constants: list[Any]) -> Side:
    if name in ("reduce_max", "max", "stop_gradient") and _is_library(eqn, "logsumexp"):
        return EXACT  # what is taken out of the exponentials is put back afterwards
    if name == "abs" and _is_library(eqn, "logsumexp"):
        return ins[0]  # of a sum of exponentials
    if name in ("add", "add_any"):
        return _sum(ins)
    if name == "sub":
        return _sum([ins[0], _negative(ins[1])])
    if name == "neg":
        return _negative(ins[0])
    if name == "exp":
        return Side("linear", ins[0].below, ins[0].above) if ins[0].form == "log" else _unknown(ins)
    if name == "log":
        return Side("log", below=_all(ins)) if ins[0].form == "linear" else _unknown(ins)
    if name in ("mul", "div", "dot_general"):
        return _product(name, ins, constants)
    if name in ("reduce_sum", "cumsum"):
        return ins[0] if name == "reduce_sum" else _sum([ins[0], ins[0]])
    if name in MOVES and not (name == "select_n" and ins[0].form != "exact"):
        return _join(ins[1:] if name == "select_n" else ins)
    if name in ELEMENTWISE and not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
        return _unknown(ins)
    return _unknown(ins)


def _sum(ins: list[Side]) -> Side:
    """Sums of independent values."""
    forms = {x.form for x in ins} - {"exact"}
    if len(forms) == 1 and (form := forms.pop()) in ("log", "-log", "linear"):
        return _with(form, ins)
    if "unknown" in {x.form for x in ins} or "linear" in {x.form for x in ins}:
        return _unknown(ins)
    return _with("below" if any(x.below for x in ins) else "above", ins)


def _negative(x: Side) -> Side:
    return Side(_OPPOSITE.get(x.form, x.form), x.above, x.below)


def _product(name: str, ins: list[Side], constants: list[Any]) -> Side:
    a, b = ins
    if a.form == "exact" and name != "div":
        (a, b), constants = (b, a), constants[::-1]
    if b.form != "exact":
        return _unknown(ins)
    if a.form == "linear":
        return a
    factor = constants[1]
    if factor is None or _jax.is_traced(factor) or a.form == "unknown":
        return _unknown(ins)
    factor = np.asarray(factor)
    if (factor >= 0).all():
        return Side("below" if a.below else "above", a.below, a.above)
    if (factor <= 0).all():
        return Side("above" if a.below else "below", a.above, a.below)
    return _unknown(ins)


def _log_sum(ins: list[Side]) -> Side:
    return _with("log", ins) if all(x.form in ("exact", "log") for x in ins) else _unknown(ins)


def _join(ins: list[Side]) -> Side:
    """One of several values."""
    forms = {x.form for x in ins} - {"exact"}
    if len(forms) <= 1:
        return _with(forms.pop(), ins) if forms else EXACT
    if forms & {"unknown", "linear"}:
        return _unknown(ins)
    return _with("below" if any(x.below for x in ins) else "above", ins)


def _scan(eqn: _jax.JaxprEqn, ins: list[Side]) -> list[Side]:
    n_consts, n_carry = _jax.scan_counts(eqn)
    carry = ins[n_consts : n_consts + n_carry]
    while True:
        outs = _region(eqn.params["jaxpr"], [*ins[:n_consts], *carry, *ins[n_consts + n_carry :]])
        new = [_join([a, b]) for a, b in zip(carry, outs, strict=False)]
        if new == carry:
            return [*carry, *outs[n_carry:]]
        carry = new


def _with(form: str, ins: list[Side]) -> Side:
    below = frozenset().union(*(x.below for x in ins))
    above = frozenset().union(*(x.above for x in ins))
    return Side(form, below, above)


def _all(ins: list[Side]) -> frozenset[Estimate]:
    return frozenset().union(*(x.below | x.above for x in ins))


def _unknown(ins: list[Side]) -> Side:
    return Side("unknown")


def _calls(eqn: _jax.JaxprEqn) -> str:
    """The name of JAX's function with a derivative of its own."""
    name, file = _jax.traced_from(eqn.params["call_jaxpr"])
    return name if "jax" in file else ""


def _is_library(eqn: _jax.JaxprEqn, function: str) -> bool:
    """Whether a call of JAX's function of that name made an equation."""
    return any(name == function and "jax" in file for file, name, _ in _jax.frames(eqn))
