"""Draws that are images of noise, with their densities by the forward pass.

    y = f(x), x ~ base:   log q(y) = log p(x) - log |det df/dx|

A measure says so by a method `forward(x) -> (y, log |det df/dx|)` beside its `base_dist`. Where a
program draws y and scores it, the random choice is then that of x, at the address of y, and both
are computed from x: nothing is inverted. A value that is given is scored by the inverse.

law:  a program with y in the place of x has the same value for the same key, and the same pathwise
      derivatives.

Other derivatives differ: a score function of x does not see that y moves with the parameters of f.
So `stage` is told at which addresses x is wanted: where y is pathwise (`planning.py`), or where
there is no derivative to estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .estimators import Reparam
from .measures import Masked, Scaled, batch_shape, innermost, is_reparameterizable
from .nested import stage_forward
from .site import ARRAY, Address, Site, as_one_equation, bind_site, draws, over_lanes
from .staging import Program, Staged


def serves(site: Site) -> bool:
    """Whether a site's draw is one event, and the image of noise with a differentiable sampler."""
    measure = innermost(jax.tree.unflatten(site.tree, site.statics)[0])
    if site.kind != "draw" or not hasattr(measure, "forward") or batch_shape(measure):
        return False
    return is_reparameterizable(measure.base_dist)


def stage_drawing(program: Program) -> Staged:
    """A program to be run forward alone, in which no draw is inverted for its density."""
    staged = stage_forward(program)
    forward = {site.address for site in draws(staged.jaxpr) if serves(site)}
    return stage_forward(program, forward) if forward else staged


def draw(site: Site, operands: list[Any], address: Address) -> tuple[jax.Array, jax.Array]:
    """A draw, whose random choice is that of its noise, and its log density: a scalar."""
    site, operands = site.bare(operands)
    noise, own = _noise(site, operands)
    x = bind_site(dataclasses.replace(noise, address=address), own)
    density = image_densities(site, operands, x)
    return images(site, operands, x), density.sum() if density.ndim else density


class _Operand(NamedTuple):
    number: int


def _noise(site: Site, operands: list[Any]) -> tuple[Site, list[Any]]:
    """The site of the base, and its operands."""
    numbers = iter(range(len(operands)))
    leaves = [_Operand(next(numbers)) if s is ARRAY else s for s in site.statics]
    base = innermost(jax.tree.unflatten(site.tree, leaves)[0]).base_dist
    leaves, tree = jax.tree.flatten((base, None), is_leaf=lambda x: isinstance(x, _Operand))
    own = [x.number for x in leaves if isinstance(x, _Operand)]
    changed = dataclasses.replace(
        site,
        tree=tree,
        statics=tuple(ARRAY if isinstance(x, _Operand) else x for x in leaves),
        mapped=tuple(tuple(m[i] for i in own) for m in site.mapped),
        estimator=Reparam(),
    )
    return changed, [operands[i] for i in own]


@as_one_equation
def images(site: Site, operands: list[Any], x: jax.Array) -> jax.Array:
    """y of every lane, shape `site.shape`."""

    def one(measure: Any, x: jax.Array) -> jax.Array:
        if isinstance(measure, Scaled):
            return one(measure.base, x)
        if isinstance(measure, Masked):
            return measure.fill(_shielded(measure, x, one))
        return measure.forward(x)[0]

    y = over_lanes(site, lambda measure, _, x: one(measure, x), operands, x)
    return jnp.asarray(y, site.value.dtype)


@as_one_equation
def image_densities(site: Site, operands: list[Any], x: jax.Array) -> jax.Array:
    """What each lane contributes to the program's log density, shape `lanes`."""

    def one(measure: Any, x: jax.Array) -> jax.Array:
        if isinstance(measure, Scaled):
            return measure.factor * one(measure.base, x)
        if isinstance(measure, Masked):
            return jnp.where(measure.mask, _shielded(measure, x, one), 0.0)
        return measure.base_dist.log_prob(x) - measure.forward(x)[1]

    return over_lanes(site, lambda measure, _, x: one(measure, x), operands, x)


def _shielded(measure: Masked, x: jax.Array, of: Callable[[Any, jax.Array], Any]) -> Any:
    """What is made of x where it is present; no derivative passes where it is absent."""
    return of(measure.shielded(), jnp.where(measure.mask, x, jax.lax.stop_gradient(x)))
