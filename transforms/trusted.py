"""Where an equation comes from: the user's line, the library function around it, and its trust.

A library function may branch and still be continuous: `elu` compares its argument with 0, and both
branches are 0 there. Such functions are listed by name, and each has a test that its limits from
the left and from the right agree. An equation is trusted where one of the calls that made it, from
the innermost outwards and up to the first of the user's, is a listed function in a file of JAX or
NumPyro. So a user's own `elu` is not trusted, nor a user's callback that a trusted function calls,
nor a jaxpr of `searchsorted` that JAX cached while it traced `interp`: JAX cuts the calls of an
equation at the function that its jaxpr was traced from, and the equation that holds the jaxpr is
asked next.

What differentiation made of a function that is only continuous has jumps (`leaky_relu`), so the
functions are listed by whether all their derivatives are continuous too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpyro

from ..kernels.source import is_user_file
from . import _jax

CONTINUOUS = {
    "jax": "elu selu leaky_relu hard_tanh sparse_plus _interp fmax fmin hypot ldexp xlogy "
    "rel_entr kl_div",
    "numpyro": "AsymmetricLaplace.log_prob AsymmetricLaplaceQuantile.log_prob Laplace.cdf "
    "Laplace.icdf TransformedDistribution.cdf TransformedDistribution.icdf "
    "LeftTruncatedDistribution.cdf LeftTruncatedDistribution.icdf "
    "TwoSidedTruncatedDistribution.cdf TwoSidedTruncatedDistribution.icdf",
}
SMOOTH = {  # in exact arithmetic: the branches are one analytic function, written in several ways
    "jax": "gamma ndtr ndtri betaln logsumexp sinc spence solve det slogdet inv lu_solve expm",
    "numpyro": "Distribution._validate_sample _to_logits_multinom Beta.log_prob VonMises.log_prob "
    "GeometricProbs.log_prob LeftTruncatedDistribution.log_prob StudentT.cdf clamp_probs "
    "AffineTransform.log_abs_det_jacobian PowerTransform.log_abs_det_jacobian",
}
_MOST_INPUTS = {"_interp": 3}  # with more of them it has values of its own outside the knots
_PACKAGES = {f"{Path(module.__file__ or '').parent}/": module.__name__ for module in (jax, numpyro)}
_LISTED = {
    (package, name): smooth
    for smooth, table in ((False, CONTINUOUS), (True, SMOOTH))
    for package, names in table.items()
    for name in names.split()
}


def trusted(eqn: _jax.JaxprEqn, *, derivative: bool, inputs: int) -> bool:
    """Whether a listed function made the equation; of a derivative, one that is smooth.

    Args:
        eqn: the equation.
        derivative: whether it belongs to a derivative of the function.
        inputs: how many inputs its jaxpr has.
    """
    for package, function, _ in _library_calls(eqn):
        name = function.partition(".<locals>")[0]
        smooth = _LISTED.get((package, name))
        if smooth or (smooth is not None and not derivative):
            return inputs <= _MOST_INPUTS.get(name, inputs)
    return False


def is_library(jaxpr: object) -> bool:
    """Whether a jaxpr was traced from a function that is not the user's."""
    return _package(_jax.traced_from(jaxpr)[1]) != ""


def user_line(eqns: tuple[_jax.JaxprEqn, ...]) -> str:
    """`file:line (function)` of the user's code behind an equation and those around it."""
    for eqn in eqns:
        for file, function, line in _jax.frames(eqn):
            if not _package(file):
                return f"{file}:{line} ({function.rpartition('.')[2]})"
    return _jax.source_line(eqns[-1])


def library_function(eqns: tuple[_jax.JaxprEqn, ...]) -> str | None:
    """The function of JAX or NumPyro that the user called and that has the equation inside."""
    found = None
    for eqn in eqns:
        for package, function, _ in _library_calls(eqn):
            if package in _LISTABLE and not _PLUMBING.search(function):
                found = function
        if any(not _package(file) for file, _, _ in _jax.frames(eqn)):
            break
    return found


def _library_calls(eqn: _jax.JaxprEqn) -> Iterator[tuple[str, str, int]]:
    """`(package, function, line)` of the calls between an equation and the user's code."""
    for file, function, line in _jax.frames(eqn):
        if not (package := _package(file)):
            return
        yield package, function, line


@functools.lru_cache(maxsize=4096)
def _package(file: str) -> str:
    """The library that a file belongs to; empty for the user's."""
    for folder, name in _PACKAGES.items():
        if file.startswith(folder):
            return name
    installed = "/site-packages/" in file or "/dist-packages/" in file
    return "installed" if installed or not is_user_file(file) else ""


_LISTABLE = set(_PACKAGES.values())
_PLUMBING = re.compile(r"<|^_|\._|bind|Trace\.|ufunc|^(where|astype|current|vjp|jvp|linearize)$")
