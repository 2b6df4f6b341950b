"""A program for an expectation: staged, with its plan, its pathwise images drawn forward."""

from __future__ import annotations

from typing import Any

from .errors import UnsoundEstimatorError
from .estimators import Reparam
from .nested import stage_forward
from .plan import Plan
from .pushforward import serves
from .site import Address
from .staging import Program, Staged


def planned(program: Program, **options: Any) -> tuple[Staged, Plan]:
    """Stage a program and decide its estimators; `options` are those of `Plan`.

    What decides is the program in which every choice is drawn as it is. Those that come out as
    `Reparam`, and that can, are then computed from their noise. If the forward pass has jumps that
    the check of the pathwise derivative refuses, the program stays as it was.
    """
    staged = stage_forward(program)
    plan = Plan(staged.jaxpr, **options)
    if not (forward := _forward(plan)):
        return staged, plan
    pushed = stage_forward(program, forward)
    try:
        return pushed, Plan(pushed.jaxpr, **options)
    except UnsoundEstimatorError:
        return staged, plan


def _forward(plan: Plan) -> set[Address]:
    """The addresses where every draw that is an image is pathwise."""
    images = [site for site in plan.sites if serves(site)]
    others = {s.address for s in images if type(plan.estimator(s)) is not Reparam}
    return {site.address for site in images} - others
