"""Transformations that rewrite sites: nest, scale, mask, condition, do.

Each evaluates a staged program inside the one that is being traced, so it composes with all others.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .choices import Given
from .interpreter import Handler, evaluate
from .measures import Masked, Scaled
from .site import ARRAY, Address, Site, bind_site, has_sites, rebind


class Edit(Handler):
    """A handler whose state is constant: regions see the same object. Leaves sites as they are."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        return bind_site(site, operands)

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        return region.again(jaxprs, values)

    def inside(self, entered: Any) -> Handler:
        return self

    def enter_while(self, eqn: _jax.JaxprEqn) -> Any:
        return ()

    def inside_while(self, carried: Any) -> Handler:
        return self

    def next_while(self, carried: Any, step: Handler) -> Any:
        return ()

    def leave_while(self, carried: Any) -> None:
        pass


@dataclasses.dataclass
class Nest(Edit):
    """Prefix every address."""

    prefix: Address

    def site(self, site: Site, operands: list[Any]) -> Any:
        return rebind(site, operands, address=self.prefix + site.address)

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        return region.again(jaxprs, values, prefix=self.prefix + region.prefix)


@dataclasses.dataclass
class Scale(Edit):
    """Raise the density of every site to a power."""

    factor: Any

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind == "record":
            return rebind(site, operands)
        if site.kind == "factor":
            return rebind(site, [x * self.factor for x in operands])
        return wrap(site, operands, Scaled, self.factor)

    nested = Handler.nested  # a power of an estimate is no estimate of the power


@dataclasses.dataclass
class Mask(Edit):
    """Make every site absent where a scalar mask is false."""

    mask: Any
    branch: tuple[tuple[int, int], ...] = ()  # the branch of a cond that the mask stands for

    def alive(self) -> Any:
        return self.mask

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind == "record":
            return rebind(site, operands)
        if site.kind == "factor":
            return rebind(site, [jnp.where(self.mask, x, 0.0) for x in operands])
        site = dataclasses.replace(site, branches=site.branches + self.branch)
        return wrap(site, operands, Masked, self.mask)

    nested = Handler.nested


class Condition(Given):
    """Turn the given addresses into observations, the others stay random."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind != "draw" or site.address not in self.given:
            return rebind(site, operands)
        observed, operands = observed_site(site, operands, self.value_of(site, operands))
        return rebind(observed, operands)

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        if region.observed or (given := region.given(self.given)) is None:
            return region.again(jaxprs, values)
        return region.observe(jaxprs, values, given)


class Do(Given):
    """Give addresses a value from outside: they are no longer random and have no density."""

    def site(self, site: Site, operands: list[Any]) -> Any:
        if site.kind == "draw" and site.address in self.given:
            return jnp.broadcast_to(self.given[site.address], site.shape).astype(site.value.dtype)
        return rebind(site, operands)

    def nested(self, region: Any, jaxprs: Any, values: list[Any]) -> list[Any]:
        if region.observed or (given := region.given(self.given)) is None:
            return region.again(jaxprs, values)
        return list(given.values())


def observed_site(site: Site, operands: list[Any], value: Any) -> tuple[Site, list[Any]]:
    """`site` as an observation of `value`, which has the site's lanes in front."""
    site, operands = site.bare(operands)
    measure, _ = jax.tree.unflatten(site.tree, site.statics)
    changed = dataclasses.replace(
        site,
        kind="observe",
        estimator=None,
        tree=jax.tree.structure((measure, ARRAY)),
        statics=(*site.statics, ARRAY),
        mapped=tuple((*m, True) for m in site.mapped),
        value=jax.ShapeDtypeStruct(site.value.shape, value.dtype),
    )
    return changed, [*operands, value]


def wrap(site: Site, operands: list[Any], wrapper: Any, extra: Any) -> jax.Array:
    """Leave `site` with its measure in `wrapper(measure, extra)`; all lanes share `extra`."""
    measure, value = jax.tree.unflatten(site.tree, site.statics)
    at = sum(s is ARRAY for s in jax.tree.leaves(measure))
    statics, tree = jax.tree.flatten((wrapper(measure, ARRAY), value))
    return rebind(
        site,
        [*operands[:at], jnp.asarray(extra), *operands[at:]],
        tree=tree,
        statics=tuple(statics),
        mapped=tuple((*m[:at], False, *m[at:]) for m in site.mapped),
    )


_conds = itertools.count()


def _mask_vmapped_cond(original: Any) -> Any:
    """vmap of a cond whose predicate is mapped runs every branch: a branch's sites are then
    present only in the lanes that chose it. (JAX alone would draw and score both everywhere.)
    """

    def rule(axis_data: Any, args: Any, dims: Any, *, branches: Any, **params: Any) -> Any:
        if dims[0] is None or not any(has_sites(b) for b in branches):
            return original(axis_data, args, dims, branches=branches, **params)

        this = next(_conds)

        def lane(index: jax.Array, *values: jax.Array) -> list[jax.Array]:
            outs = []
            for i, branch in enumerate(branches):
                chosen = index == i
                safe = [jnp.where(chosen, v, jax.lax.stop_gradient(v)) for v in values]
                jaxpr, consts = _jax.opened(branch)
                outs.append(evaluate(Mask(chosen, ((this, i),)), jaxpr, [*consts, *safe]))
            return [jax.lax.select_n(index, *xs) for xs in zip(*outs, strict=True)]

        axes = tuple(dims)
        outs = jax.vmap(lane, in_axes=axes, axis_size=axis_data.size)(*args)
        return outs, [0] * len(outs)

    return rule


_jax.override_batching(_jax.cond_p, _mask_vmapped_cond)
