"""The soundness of pathwise derivatives: refuse those whose value reaches a jump.

    grad E[k(g(theta, eps))] = E[grad k(g(theta, eps))]    where k is continuous

If k jumps, what the jump contributes is missing from the right-hand side: the gradient is biased
and nothing shows it. `violations` follows every pathwise value through the program (`taint.py`),
from operation to operation (`jumps.py`), with the library functions of `trusted.py` taken as
continuous, and reports the operation at which a float among the program's outputs stops being
continuous, or a parameter of a choice that is not pathwise, whose weight would jump with it.

law:  a program that is accepted has continuous outputs, up to null sets and what was declared;
      dead code does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from . import _jax
from .errors import UnsoundEstimatorError
from .jumps import RULES, is_float
from .site import Site
from .taint import Origin, Region, Taint
from .trusted import library_function, user_line


@dataclasses.dataclass(frozen=True)
class Violation:
    """Where a program stops being continuous in a pathwise choice."""

    operation: str  # as users know it
    line: str  # of the user's code
    inside: str | None = None  # the library function that has the operation inside

    def __str__(self) -> str:
        inside = f" inside {self.inside}" if self.inside else ""
        return f"{self.operation}{inside} at {self.line}"


def violations(
    jaxpr: Any, pathwise: Callable[[Site], bool], *, direct: bool = False
) -> dict[int, Violation]:
    """`{id(site): first violation}` of the draws for which `pathwise(site)`.

    Args:
        jaxpr: a staged program, open or closed.
        pathwise: whether a derivative passes through a site's value.
        direct: leave out those that reach a jump only through another pathwise choice, whose
            parameters they are. Once the others are no longer pathwise, these are sound.
    """
    found = _analyse(jaxpr, pathwise, direct)
    return _analyse(_jax.without_dead_code(jaxpr), pathwise, direct) if found else found


def _analyse(jaxpr: Any, pathwise: Callable[[Site], bool], direct: bool) -> dict[int, Violation]:
    taint = Taint(RULES, pathwise, direct=direct)
    region = Region(taint, jaxpr)
    outs = region.run([])
    reached = region.matters
    for v, out in zip(region.jaxpr.outvars, outs, strict=True):
        if is_float(v):
            reached |= out.jump
    found: dict[int, Violation] = {}
    for _, origin in taint.of(reached):
        assert isinstance(origin, Origin)
        new = [site for _, site in taint.of(origin.sites) if id(site) not in found]
        found.update(dict.fromkeys(map(id, new), _violation(origin)) if new else {})
    return found


def _violation(origin: Origin) -> Violation:
    operation = _operation(origin.eqns[0])
    inside = library_function(origin.eqns)
    if inside in _JUMPING:
        operation, inside = inside, None
    elif inside == _jax.operation(origin.eqns[0]):
        inside = None
    return Violation(operation, user_line(origin.eqns), inside)


def _operation(eqn: _jax.JaxprEqn) -> str:
    """An operation as users know it."""
    name = _jax.operation(eqn)
    if name in _COMPARISONS:
        return f"comparison `{_COMPARISONS[name]}`"
    if name in ("convert_element_type", "bitcast_convert_type"):
        return f"conversion to {eqn.params['new_dtype']}"
    if name == "sort":
        return "argsort" if len(eqn.invars) == 2 and _is_index(eqn) else "sort by other values"
    return _NAMES.get(name, name)


def _is_index(eqn: _jax.JaxprEqn) -> bool:
    return not is_float(eqn.outvars[1])


_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_COMPARISONS |= {"lt_to": "<", "le_to": "<=", "eq_to": "=="}
_NAMES = {"rem": "remainder `%`", "top_k": "top_k indices"}
_JUMPING = {  # library functions that are shown in the place of the operation inside them
    "searchsorted",
    "digitize",
    "trunc",
    "heaviside",
    "copysign",
    "isclose",
    "interp",
    "quantile",
}


def unsound(site: Site, violation: Violation, sound: Sequence[str]) -> UnsoundEstimatorError:
    """The error for a pathwise estimator that would be biased.

    Args:
        site: the random choice.
        violation: what its value reaches.
        sound: the estimators that would be unbiased, as a user writes them.
    """
    others = " or ".join(f"estimator={name}" for name in sound)
    return UnsoundEstimatorError(
        "A pathwise derivative does not see the jump that the objective has: it would be biased.",
        address=site.address,
        expected="a program that is continuous in the value",
        got=str(violation),
        where=site.line,
        fix=(f"{others}; or " if others else "")
        + "declare with vx.assume_smooth(x) a value that is continuous all the same",
    )
