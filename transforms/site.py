"""The sample primitive: one equation per random choice, observation, factor or recorded value.

`bind_site` leaves an equation that carries its address, its measure's tree, its lanes and its
estimator. It computes nothing: transformations give it a meaning, and anything else that meets it
(running it, compiling it, `jax.grad`) raises an error that names the address.

A `vmap` adds a *lane*. JAX calls the batching rule below for every vmap, also when no operand is
mapped and when the site sits in a nested jit, scan or cond, so two lanes never share a draw.
Lanes lead the value's shape, outermost first; the axes of scans that contain the site lead those.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from . import _jax, _numpyro  # noqa: F401  (_numpyro: operands in one order in every process)
from .errors import DifferentiationError, UnhandledSampleError

Kind = Literal["draw", "observe", "factor", "record"]
Address = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """What an equation says about a site; operands are the arrays of `(measure, value)`."""

    address: Address
    kind: Kind
    tree: Any  # of (measure, value), where value is None for a draw
    statics: tuple[Any, ...]  # its leaves, with ARRAY in the place of each operand
    value: jax.ShapeDtypeStruct  # of one lane
    lanes: tuple[int, ...] = ()  # outermost first
    mapped: tuple[tuple[bool, ...], ...] = ()  # per lane, per operand
    estimator: Any = None  # with ARRAY in the place of each of its arrays
    extras: int = 0  # how many: they are the last operands
    line: str = ""
    branches: tuple[tuple[int, int], ...] = ()  # (a vmapped cond, which of its branches)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value: lanes, then one lane's value."""
        return self.lanes + self.value.shape

    def excludes(self, other: Site) -> bool:
        """Whether the two are in different branches of one cond, so that one alone is present."""
        mine, theirs = dict(self.branches), dict(other.branches)
        return any(mine[c] != theirs[c] for c in mine.keys() & theirs.keys())

    @property
    def form(self) -> Site:
        """What the arithmetic depends on: equal for sites that differ in name and place alone."""
        return dataclasses.replace(
            self, address=(), kind="draw", estimator=None, line="", branches=()
        )

    def bare(self, operands: list[Any]) -> tuple[Site, list[Any]]:
        """The site and its operands without those of the estimator."""
        if not self.extras:
            return self, operands
        mapped = tuple(m[: -self.extras] for m in self.mapped)
        site = dataclasses.replace(self, estimator=None, extras=0, mapped=mapped)
        return site, list(operands[: -self.extras])


class _Array:
    def __repr__(self) -> str:
        return "ARRAY"


ARRAY = _Array()
_STATIC = (bool, int, float, str)  # leaves that stay Python values and keep their weak types


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A small NumPy array as a hashable constant: a `total_count` stays known while tracing."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(x: np.ndarray) -> Fixed:
        return Fixed(x.tobytes(), x.shape, x.dtype.str)

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


def _static(leaf: Any) -> Any:
    """A hashable constant for a leaf that is one, ARRAY for an operand."""
    if isinstance(leaf, np.ndarray) and leaf.size <= 64:
        return Fixed.of(leaf)
    return leaf if isinstance(leaf, _STATIC) else ARRAY


def _leaf(static: Any) -> Any:
    return static.array() if isinstance(static, Fixed) else static


site_p = _jax.Primitive("sample")


def make_site(
    address: Address, kind: Kind, measure: Any, value: Any = None, *, estimator: Any = None
) -> tuple[Site, list[jax.Array]]:
    """A site of one lane and its operands. A value that is given is data, so always an operand.

    The arrays of an estimator (a baseline, a temperature) are operands too, the last ones.
    """
    leaves, tree = jax.tree.flatten((measure, value))
    given = len(jax.tree.leaves(value))
    statics = [_static(x) for x in leaves[: len(leaves) - given]] + [ARRAY] * given
    operands = [jnp.asarray(x) for x, s in zip(leaves, statics, strict=True) if s is ARRAY]
    aval = value_shape(measure) if kind == "draw" else jax.typeof(operands[-1])
    dtype = float if getattr(estimator, "relaxes", False) else aval.dtype
    shape = jax.ShapeDtypeStruct(aval.shape, jnp.result_type(dtype))
    held, arrays = (None, []) if estimator is None else hold(estimator)
    site = Site(address, kind, tree, tuple(statics), shape, estimator=held, line=user_line())
    return dataclasses.replace(site, extras=len(arrays)), [*operands, *arrays]


def hold(estimator: Any) -> tuple[Any, list[jax.Array]]:
    """An estimator with ARRAY in the place of its arrays, and those."""
    leaves, tree = jax.tree.flatten(estimator)
    held = [ARRAY if _is_array(x) else x for x in leaves]
    return tree.unflatten(held), [jnp.asarray(x) for x in leaves if _is_array(x)]


def held_with(estimator: Any, arrays: list[Any]) -> Any:
    """The inverse of `hold`."""
    leaves, tree = jax.tree.flatten(estimator)
    left = iter(arrays)
    return tree.unflatten([next(left) if x is ARRAY else x for x in leaves])


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def bind_site(site: Site, operands: list[Any]) -> jax.Array:
    """Leave a site in the program that is being traced; its value."""
    return site_p.bind(*operands, site=site)


def rebind(site: Site, operands: list[Any], **changes: Any) -> jax.Array:
    """Leave the same site, lanes included, in the program that is being traced now."""
    return site_p.bind(*operands, site=dataclasses.replace(site, **changes))


def unpack(site: Site, operands: Any) -> tuple[Any, Any]:
    """The `(measure, value)` of one lane."""
    left = iter(operands)
    leaves = [next(left) if s is ARRAY else _leaf(s) for s in site.statics]
    return jax.tree.unflatten(site.tree, leaves)


def over_lanes(site: Site, function: Any, operands: list[Any], *lane_args: Any) -> Any:
    """`function(measure, value, *args)` of every lane; `lane_args` have the lanes in front."""

    def one(ops: list[Any], args: tuple[Any, ...]) -> Any:
        return function(*unpack(site, ops), *args)

    for size, mapped in zip(reversed(site.lanes), reversed(site.mapped), strict=True):
        axes = ([0 if m else None for m in mapped], 0)
        one = jax.vmap(one, in_axes=axes, axis_size=size)
    return one(operands, lane_args)


def with_lanes(site: Site, operands: list[Any]) -> jax.Array:
    """An observed or recorded value with every lane in front, also lanes that share it."""
    value = operands[-1]
    for axis, mapped in enumerate(site.mapped):
        value = value if mapped[-1] else jnp.expand_dims(value, axis)
    return jnp.broadcast_to(value, site.shape)


ONE_EQUATION: set[str] = set()  # the names of what follows


def as_one_equation(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(form, operands, *args)` as one jit equation, traced once for all sites of a form.

    Programs with many sites trace and lower in less time, the equation carries the function's name,
    and a derivative goes through it as a whole.
    """
    ONE_EQUATION.add(function.__name__)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.wraps(function)
    def staged(form: Site, operands: list[Any], *args: Any) -> Any:
        return function(form, operands, *args)

    def call(site: Site, operands: list[Any], *args: Any) -> Any:
        return staged(site.form, operands, *args)

    return call


def value_shape(measure: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one draw, without drawing."""
    leaves, tree = jax.tree.flatten(measure)
    statics = [_static(x) for x in leaves]
    avals = tuple(
        (ARRAY, jnp.shape(x), jnp.result_type(x)) if s is ARRAY else (type(s), s)
        for x, s in zip(leaves, statics, strict=True)
    )
    return _value_shape(tree, avals, _jax.x64_enabled())


@functools.lru_cache(maxsize=4096)
def _value_shape(tree: Any, avals: tuple[Any, ...], x64: bool) -> jax.ShapeDtypeStruct:
    arrays = [jax.ShapeDtypeStruct(*a[1:]) for a in avals if a[0] is ARRAY]

    def draw(key: jax.Array, arrays: list[jax.Array]) -> jax.Array:
        left = iter(arrays)
        leaves = [next(left) if a[0] is ARRAY else _leaf(a[1]) for a in avals]
        return jax.tree.unflatten(tree, leaves).sample(key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        return jax.eval_shape(draw, key, arrays)
    except NotImplementedError:  # a density without a sampler
        left = iter(arrays)
        measure = jax.tree.unflatten(
            tree, [next(left) if a[0] is ARRAY else _leaf(a[1]) for a in avals]
        )
        return jax.ShapeDtypeStruct(measure.shape(), jnp.result_type(float))


_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def has_sites(jaxpr: Any) -> bool:
    """True where a site is in the jaxpr or in one of its sub-jaxprs."""
    jaxpr, _ = _jax.opened(jaxpr)
    if (known := _known.get(jaxpr)) is None:
        known = _known[jaxpr] = any(eqn_has_sites(eqn) for eqn in jaxpr.eqns)
    return known


def eqn_has_sites(eqn: _jax.JaxprEqn) -> bool:
    """True where an equation is a site or hides one."""
    return eqn.primitive is site_p or any(has_sites(sub) for sub in _jax.subjaxprs(eqn))


def first_site(jaxpr: Any) -> Site:
    """The first site of a jaxpr that has one."""
    jaxpr, _ = _jax.opened(jaxpr)
    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            return eqn.params["site"]
        for sub in _jax.subjaxprs(eqn):
            if has_sites(sub):
                return first_site(sub)
    raise LookupError("no site in this jaxpr")


def draws(region: Any) -> Iterator[Site]:
    """The random choices of a region, in program order."""
    for eqn in _jax.opened(region)[0].eqns:
        if eqn.primitive is site_p:
            if eqn.params["site"].kind == "draw":
                yield eqn.params["site"]
        elif eqn_has_sites(eqn):
            for sub in filter(has_sites, _jax.subjaxprs(eqn)):
                yield from draws(sub)


# ---- the primitive's own rules


def _abstract(*_: Any, site: Site) -> Any:
    return _jax.shaped_array(site.shape, site.value.dtype)


def _batch(size: int, operands: Any, dims: Any, *, site: Site) -> tuple[jax.Array, int]:
    operands = [_jax.to_front(x, d) for x, d in zip(operands, dims, strict=True)]
    mapped = tuple(d is not None for d in dims)
    site = dataclasses.replace(site, lanes=(size, *site.lanes), mapped=(mapped, *site.mapped))
    return site_p.bind(*operands, site=site), 0


def _unhandled(*_: Any, site: Site) -> NoReturn:
    raise UnhandledSampleError(
        "A random choice ran outside any transformation, so nothing says how to draw it.",
        address=site.address,
        where=site.line,
        fix="give randomness with vx.seed(program)(key, ...), or use a measure's "
        "simulate(key), log_density(choices, key), vx.expect or vx.value_and_grad",
    )


def _lower(ctx: Any, *_: Any, site: Site) -> NoReturn:
    _unhandled(site=site)


def _jvp(primals: Any, tangents: Any, *, site: Site) -> NoReturn:
    raise DifferentiationError(
        "JAX's derivative met a random choice: differentiating through a draw needs an estimator.",
        address=site.address,
        where=site.line,
        fix="use vx.grad or vx.value_and_grad in the place of jax.grad, or draw first and "
        "differentiate a density at the value that was drawn",
    )


def _refuse_region(primitive: _jax.Primitive, params: dict[str, Any]) -> None:
    """JAX's partial evaluation would drop, hoist or repeat a site without effects in a region."""
    for jaxpr in _jax.jaxprs_among(params):
        if has_sites(jaxpr):
            site = first_site(jaxpr)
            raise DifferentiationError(
                f"JAX's derivative met a random choice inside `{_jax.shown(primitive)}`, where it "
                "may drop or repeat the draw.",
                address=site.address,
                where=site.line,
                fix="use vx.grad or vx.value_and_grad in the place of jax.grad, or draw outside "
                "the function that is differentiated and pass the value in",
            )


_jax.guard_derivatives(_refuse_region)
_jax.set_rules(site_p, impl=_unhandled, abstract=_abstract, batch=_batch, jvp=_jvp, lower=_lower)
