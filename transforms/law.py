"""The law of one site: the joint distribution of its draws over all lanes. What estimators see.

A draw consists of independent *elements*: the lanes of enclosing vmaps, then the entries of the
distribution's batch. How an estimator may treat them depends on what the program does with them.
Where the objective is a sum over an axis of elements, each element has its own share of it and can
be treated alone; along the other axes the elements are *coupled*.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from ._jax import is_traced
from .arrays import repeated
from .errors import CapabilityError
from .measures import (
    Masked,
    element_support,
    innermost,
    is_reparameterizable,
    log_prob,
    named,
    single,
)
from .noise import from_normal
from .pool import Pool, sample_from
from .site import Address, Site, as_one_equation, held_with, over_lanes, unpack

_SUPPORTS: dict[Any, np.ndarray] = {}  # that do not depend on a distribution's arrays


@dataclasses.dataclass
class Law:
    """Values have shape `elements + event`, with `elements = lanes + batch`.

    Args:
        site: the random choice.
        operands: its arrays, those of its estimator last.
        coupled: for each axis of elements, whether the program couples them along it.
        pool: noise that was drawn beforehand.
    """

    site: Site
    operands: list[Any]
    coupled: tuple[bool, ...] | None = None
    pool: Pool = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._held = (self.site, list(self.operands))
        self.site, self.operands = self.site.bare(self.operands)
        if self.coupled is None:
            self.coupled = (True,) * len(self.elements)

    # ---- what it is

    @property
    def address(self) -> Address:
        return self.site.address

    @property
    def template(self) -> Any:
        """The measure with placeholders for its arrays: for its type, never for its values."""
        return jax.tree.unflatten(self.site.tree, self.site.statics)[0]

    @property
    def distribution(self) -> type:
        """The class of the distribution of one element."""
        return type(named(self.template))

    @property
    def name(self) -> str:
        """The distribution's name."""
        return type(innermost(self.template)).__name__

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one element's value."""
        return tuple(getattr(single(self.template), "event_shape", ()))

    @property
    def elements(self) -> tuple[int, ...]:
        """Shape of the independent elements: lanes, then batch."""
        shape = self.site.shape
        return shape[: len(shape) - len(self.event_shape)]

    @property
    def element_count(self) -> int:
        """How many elements the joint value has."""
        return math.prod(self.elements)

    @property
    def coupled_count(self) -> int:
        """How many elements are coupled with each other."""
        coupled = self.coupled or ()
        return math.prod(n for n, c in zip(self.elements, coupled, strict=True) if c)

    @property
    def groups(self) -> tuple[int, ...]:
        """`elements` with size 1 along the coupled axes: the shape of an estimator's weights."""
        coupled = self.coupled or ()
        return tuple(1 if c else n for n, c in zip(self.elements, coupled, strict=True))

    @property
    def has_rsample(self) -> bool:
        return is_reparameterizable(self.template)

    @property
    def has_mask(self) -> bool:
        """Whether the site may be absent."""
        return _has_mask(self.template)

    # ---- draws and densities

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw, shape `site.shape`."""
        if (noise := self.pool.get(id(key))) is not None:
            return sample_from(self.site, self.operands, noise.value)
        try:
            return sample(self.site, self.operands, key)
        except NotImplementedError as error:
            raise CapabilityError(
                f"{self.name} has no sampler.",
                address=self.address,
                expected="Sampleable",
                got="Density",
                where=self.site.line,
                fix="score it with log_density, or guide it with a distribution that samples",
            ) from error

    def rsample(self, key: jax.Array) -> jax.Array:
        """A draw that is differentiable in the parameters."""
        if (noise := self.pool.get(id(key))) is not None:
            return sample_from(self.site, self.operands, noise.value)
        return rsample(self.site, self.operands, key)

    @staticmethod
    def of_noise(site: Site) -> Callable[[list[Any], jax.Array], jax.Array]:
        """`(operands, z) -> value`, what the site's law makes of standard normal noise."""

        def place(operands: list[Any], z: jax.Array) -> jax.Array:
            bare, operands = site.bare(operands)
            x = over_lanes(bare, lambda m, _, z: from_normal(m, z), operands, z)
            return x.astype(site.value.dtype)

        return place

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of each element, shape `elements`."""
        return log_probs(self.site, self.operands, value)

    def log_prob_each(self, values: np.ndarray | jax.Array) -> jax.Array:
        """`log_prob` of several values, shape `[J, *elements]`. The parameters are repeated for
        every value, so that a derivative sums over the values once.
        """
        several = [repeated(x[None], len(values), 0) for x in self.operands]
        return jax.vmap(lambda ops, v: log_probs(self.site, ops, v))(several, values)

    def couple(self, x: jax.Array) -> jax.Array:
        """Sum over the coupled axes of elements, which are the last: `[..., *groups]`."""
        coupled, n = self.coupled or (), len(self.elements)
        axes = tuple(x.ndim - n + i for i, c in enumerate(coupled) if c)
        return x.sum(axes, keepdims=True) if axes else x

    def spread(self, x: jax.Array) -> jax.Array:
        """`x [..., *elements]` with axes for an element's event, to multiply a value with."""
        return x.reshape((*x.shape, *(1,) * len(self.event_shape)))

    # ---- parameters

    def parameter(self, name: str, event_dim: int = 0) -> jax.Array:
        """A parameter of the distribution, shape `elements` and its own last `event_dim` axes."""
        batch = self.elements[len(self.site.lanes) :]

        def one(measure: Any, _: Any) -> jax.Array:
            x = jnp.asarray(getattr(named(measure), name), float)
            return jnp.broadcast_to(x, batch + x.shape[x.ndim - event_dim :])

        return over_lanes(self.site, one, self.operands)

    def estimator(self, held: Any) -> Any:
        """The estimator with its arrays, lanes in front where a vmap mapped them."""
        site, operands = self._held
        if not site.extras:
            return held
        mapped = [m[-site.extras :] for m in site.mapped]
        arrays = []
        for i, x in enumerate(operands[-site.extras :]):
            here = [m[i] for m in mapped]
            lanes = [n if h else 1 for n, h in zip(site.lanes, here, strict=True)]
            own = x.shape[sum(here) :]
            arrays.append(x.reshape((*lanes, *own)) if any(here) else x)
        return held_with(held, arrays)

    # ---- finite supports

    def element_support(self) -> np.ndarray | jax.Array | None:
        """All values of one element, shape `[K, *event]`, or None if they cannot be listed.

        Constants wherever they do not depend on traced parameters, so that XLA sees them.
        """
        known = self._form
        if (found := _SUPPORTS.get(known)) is not None:
            return found
        inner = [x[(0,) * n] for x, n in zip(self.operands, self._mapped_count(), strict=True)]
        measure = unpack(self.site, inner)[0]
        with jax.ensure_compile_time_eval():
            support = element_support(measure)
        if support is None or is_traced(support):
            return support
        support = np.asarray(support)
        if self.operands and all(map(is_traced, self.operands)):  # then it is known without them
            _SUPPORTS[known] = support
        return support

    @property
    def support_shape(self) -> tuple[int, ...] | None:
        """`[K, *event]` of `element_support`, also where the operands are only shapes."""
        if not is_finite(self.template):
            return None
        known = self._form
        if (values := _SUPPORTS.get(known)) is not None:
            return values.shape
        found = jax.eval_shape(lambda ops: Law(self.site, ops).element_support(), self.operands)
        return None if found is None else found.shape

    # ---- masks

    def present(self) -> jax.Array:
        """Where the site is present, bool, shape `lanes + batch`."""
        event = tuple(getattr(innermost(self.template), "event_shape", ()))
        batch = self.site.value.shape[: len(self.site.value.shape) - len(event)]
        return over_lanes(self.site, lambda m, _: jnp.broadcast_to(_mask(m), batch), self.operands)

    def present_elements(self) -> jax.Array:
        """Where each element is present, bool, shape `elements`."""
        here = self.present()
        more = len(self.elements) - here.ndim
        return jnp.broadcast_to(here.reshape(here.shape + (1,) * more), self.elements)

    @property
    def _form(self) -> Any:
        """What the support is known by, where it does not depend on the operands' values."""
        structs = tuple((jnp.shape(x), jnp.result_type(x)) for x in self.operands)
        return self.site.tree, self.site.statics, self.site.mapped, structs, _jax.x64_enabled()

    def _mapped_count(self) -> list[int]:
        """Per operand, how many lanes lead it."""
        return [sum(m) for m in zip(*self.site.mapped, strict=True)] or [0] * len(self.operands)


@as_one_equation
def log_probs(site: Site, operands: list[Any], value: jax.Array) -> jax.Array:
    """Log density of each element of a value under the law."""
    return over_lanes(site, lambda m, _, v: log_prob(m, v), operands, value)


def density_jaxpr(site: Site, operands: list[Any]) -> Any:
    """`log_probs` of a site as a jaxpr of `(*operands, value)`, None where it has no density."""
    site, operands = site.bare(operands)
    value = jax.ShapeDtypeStruct(site.shape, site.value.dtype)
    try:
        return _density_jaxpr(site.form, tuple(operands), value)
    except NotImplementedError:
        return None


@functools.lru_cache(maxsize=1024)
def _density_jaxpr(form: Site, operands: tuple[Any, ...], value: Any) -> Any:
    return jax.make_jaxpr(lambda *ops: log_probs(form, list(ops[:-1]), ops[-1]))(*operands, value)


@as_one_equation
def sample(site: Site, operands: list[Any], key: jax.Array) -> jax.Array:
    """A draw of every lane."""
    return _draw(site, operands, key, lambda m, _, key: m.sample(key))


@as_one_equation
def rsample(site: Site, operands: list[Any], key: jax.Array) -> jax.Array:
    """A draw of every lane, differentiable in the parameters."""
    return _draw(site, operands, key, lambda m, _, key: m.rsample(key))


def _draw(site: Site, operands: list[Any], key: jax.Array, one: Any) -> jax.Array:
    keys = jax.random.split(key, site.lanes) if site.lanes else key
    return jnp.asarray(over_lanes(site, one, operands, keys), site.value.dtype)


def is_finite(measure: Any) -> bool:
    """Whether the distribution of one element lists its support."""
    return bool(getattr(single(measure), "has_enumerate_support", False))


def _has_mask(measure: Any) -> bool:
    if isinstance(measure, Masked):
        return True
    return _has_mask(measure.base) if hasattr(measure, "base") else False


def _mask(measure: Any) -> Any:
    if isinstance(measure, Masked):
        return jnp.asarray(measure.mask) & _mask(measure.base)
    return _mask(measure.base) if hasattr(measure, "base") else jnp.asarray(True)
