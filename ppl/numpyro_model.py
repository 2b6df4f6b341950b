"""`vx.from_numpyro`: a NumPyro model function as a varax `Model`.

law:  vx.from_numpyro(fn)(*args).log_density(choices)
      == numpyro.infer.util.log_density(fn, args, {}, choices)[0]

The function runs under a NumPyro messenger that gives each statement its meaning in varax:

    numpyro                                   varax
    sample, with plates, masks and scales     sample of the expanded, masked, scaled distribution
    sample with obs, condition, substitute    sample with obs, broadcast as NumPyro does
    factor                                    factor of the sum
    deterministic                             deterministic
    contrib.control_flow.scan, cond           jax.lax.scan, jax.lax.cond
    plate with subsample_size                 indices that are given, density scaled by N / B
    param, module                             values that are given
    prng_key, mutable                         refused
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as npd
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from ..kernels.source import user_line
from ..transforms.measures import Masked, Scaled
from .errors_posterior import ForeignModelError
from .language import deterministic, factor, sample
from .measure import Measure
from .model import Model


def from_numpyro(
    function: Callable[..., Any],
    *,
    params: Mapping[str, Any] | None = None,
    subsample: Mapping[str, Any] | None = None,
) -> Model:
    """A NumPyro model as a `Model`: its addresses are NumPyro's site names.

        posterior = vx.from_numpyro(model)(x, y=y)
        vx.nuts(posterior, key)

    A site in a `scan` has the scan's axis in front, as in NumPyro; a name with slashes, as
    `numpyro.handlers.scope` makes them, is nested (`"a/z"` is `choices["a"]["z"]`). A site under
    `numpyro.handlers.mask` is absent where the mask is false.

    Args:
        function: a function that calls `numpyro.sample`; handlers around it or in it are respected.
        params: the value of every `numpyro.param` (and `numpyro.module`, by `"name$params"`), in
            its constrained space. varax has no parameter store: pass what `vx.fit` trains.
        subsample: indices [B] of every plate with a `subsample_size`, by the plate's name. What
            the plate holds is scaled by N / B. To draw them anew at every step of a fit, let
            `vx.fit(..., data=jnp.arange(N), batch_size=B)` do it.

    Raises:
        ForeignModelError: when the model runs and needs a param, indices or a random key that were
            not given, or uses a statement without a meaning here.
    """
    if not callable(function) or isinstance(function, Model):
        raise ForeignModelError(
            "This is not a NumPyro model.",
            expected="a function that calls numpyro.sample",
            got=repr(function),
            where=user_line(),
            fix="pass the function itself, and its arguments to the result: "
            "vx.from_numpyro(fn)(*args)",
        )

    @functools.wraps(function)
    def program(*args: Any, **kwargs: Any) -> Any:
        with _Translate(params or {}, subsample or {}):
            return function(*args, **kwargs)

    return Model(program)


class _Translate(Messenger):
    """The outermost messenger: it meets every statement last, after plates, masks and scales."""

    def __init__(self, params: Mapping[str, Any], subsample: Mapping[str, Any]):
        super().__init__()
        self.params, self.subsample = params, subsample
        self.whole: set[str] = set()  # sites for which a handler around a scan has all values

    def process_message(self, msg: Any) -> None:
        """Give the message its value. Handlers further out, of another program, never see it."""
        kind = msg["type"]
        if kind == "sample":
            if msg["name"] in self.whole:
                raise _condition_around_control_flow(msg["name"])
            msg["value"] = _sample(msg)
        elif kind == "deterministic":
            at = msg["name"].split("/")
            msg["value"] = _nested(at[:-1], lambda: deterministic(at[-1], msg["value"]))
        elif kind == "control_flow":
            outer, self.whole = self.whole, self.whole | _substituted(msg)
            msg["value"] = _control_flow(msg)
            self.whole = outer
        elif kind == "param":
            msg["value"] = self._param(msg)
        elif kind == "plate" and msg["value"] is None:
            msg["value"] = self._indices(msg)
        elif kind not in ("plate", "inspect", "subsample"):
            raise _refused(
                f"`numpyro.{kind}` has no meaning in varax.",
                got=f"a statement of type {kind}",
                fix="draw with numpyro.sample; pass state and randomness in as arguments",
            )
        msg["stop"] = True

    def _param(self, msg: Any) -> Any:
        name = msg["name"]
        if msg["value"] is not None:  # numpyro.handlers.substitute
            return msg["value"]
        if name not in self.params:
            raise _refused(
                f"The model has the parameter {name}, and its value was not given.",
                address=name,
                expected=f"params={{{name!r}: value}}",
                got=f"params for {sorted(self.params)}",
                fix="parameters are arguments: vx.from_numpyro(fn, params=params), inside the "
                "objective if they are trained; for a posterior make it a numpyro.sample",
            )
        return jax.tree.map(jnp.asarray, self.params[name])

    def _indices(self, msg: Any) -> jax.Array:
        name, (size, subsample_size) = msg["name"], msg["args"]
        if name not in self.subsample:
            raise _refused(
                f"The plate {name} takes a subsample, and its indices were not given.",
                address=name,
                expected=f"subsample={{{name!r}: indices}}, shape ({subsample_size},)",
                got=f"indices for {sorted(self.subsample)}",
                fix="vx.from_numpyro(fn, subsample={...}), with vx.fit(..., data=jnp.arange(N), "
                "batch_size=B) drawing them; for MCMC leave subsample_size out",
            )
        indices = jnp.asarray(self.subsample[name])
        if indices.shape != (subsample_size,) or not jnp.issubdtype(indices.dtype, jnp.integer):
            raise _refused(
                f"These are not the indices of a subsample of plate {name}.",
                address=name,
                expected=f"{subsample_size} integers from 0 to {size - 1}",
                got=f"{indices.dtype}{list(indices.shape)}",
                fix="give as many as the plate's subsample_size",
            )
        return indices


def _refused(headline: str, **rows: Any) -> ForeignModelError:
    return ForeignModelError(headline, where=user_line(), **rows)


# ---- sample


def _sample(msg: Any) -> Any:
    fn, value, scale = msg["fn"], msg["value"], msg["scale"]
    at = msg["name"].split("/")
    sample_shape = msg["kwargs"].get("sample_shape", ())
    if sample_shape:
        fn = fn.expand((*sample_shape, *fn.batch_shape))
    if value is not None:
        value = jnp.asarray(value)
        shape = value.shape[: max(0, value.ndim - len(fn.event_shape))]
        fn = _expanded(msg["name"], fn, shape)
        value = jnp.broadcast_to(value, fn.batch_shape + fn.event_shape)
    if _is_factor(fn):
        log_weight = fn.log_prob(value)
        total = jnp.sum(log_weight if scale is None else scale * log_weight)
        _nested(at[:-1], lambda: factor(at[-1], total))
        return value
    measure = _measure(fn, scale)
    return _nested(at[:-1], lambda: sample(at[-1], measure, obs=value))


def _expanded(name: str, fn: Any, shape: tuple[int, ...]) -> Any:
    """The distribution repeated over the axes that an observation has in addition."""
    try:
        batch = jnp.broadcast_shapes(shape, fn.batch_shape)
    except ValueError as error:
        raise _refused(
            "A value does not fit its distribution.",
            address=name,
            expected=f"a shape that broadcasts with the batch shape {fn.batch_shape}",
            got=f"batch shape {shape}",
        ) from error
    return fn if batch == fn.batch_shape else fn.expand(batch)


def _nested(outer: list[str], statement: Callable[[], Any]) -> Any:
    """Run a statement with the names of `outer` in front of its address."""
    if not outer:
        return statement()
    return sample(outer[0], Measure(lambda: _nested(outer[1:], statement), outer[0]))


def _is_factor(fn: Any) -> bool:
    """Whether this is the distribution that `numpyro.factor` makes."""
    while isinstance(fn, (npd.MaskedDistribution, npd.ExpandedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, npd.Unit)


def _measure(fn: Any, scale: Any) -> Any:
    """varax's measure of a distribution under masks and a scale."""
    inside = len(fn.batch_shape)
    fn, mask = _unmasked(fn)
    measure = fn if mask is None else Masked(fn, mask)
    if scale is None:
        return measure
    scale = jnp.asarray(scale)
    if scale.ndim:  # axes that were one event of the masked distribution are a batch now
        scale = scale.reshape(scale.shape + (1,) * (len(fn.batch_shape) - inside))
    return Scaled(measure, scale)


def _unmasked(fn: Any) -> tuple[Any, Any]:
    """A distribution without `MaskedDistribution`, and the mask over its batch (None: no mask).

    The mask comes out of expansions and `to_event`, which then is left out: a density summed over
    the same elements.
    """
    if isinstance(fn, npd.MaskedDistribution):
        base, inner = _unmasked(fn.base_dist)
        mask = _and(_shaped(fn._mask, fn, base), inner)
        return base, mask
    if not isinstance(fn, (npd.ExpandedDistribution, npd.Independent)):
        return fn, None
    base, mask = _unmasked(fn.base_dist)
    if mask is None:
        return fn, None
    if isinstance(fn, npd.Independent):
        return base, mask
    extra = len(base.batch_shape) - len(fn.base_dist.batch_shape)  # from a to_event further in
    batch = fn.batch_shape + base.batch_shape[len(base.batch_shape) - extra :]
    return base.expand(batch), jnp.broadcast_to(mask, batch)


def _shaped(mask: Any, fn: Any, base: Any) -> jax.Array:
    """A mask over the batch of `fn`, over that of `base`, which may have axes in addition."""
    mask = jnp.broadcast_to(jnp.asarray(mask, bool), fn.batch_shape)
    extra = len(base.batch_shape) - len(fn.batch_shape)
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * extra), base.batch_shape)


def _and(mask: jax.Array, inner: Any) -> jax.Array:
    return mask if inner is None else mask & inner


# ---- control flow


def _control_flow(msg: Any) -> Any:
    """`scan` and `cond` with JAX's own; the value has the form that NumPyro's wrappers return."""
    nothing = PytreeTrace({})  # the sites are in the varax program already
    wrapper = msg["fn"].__name__
    if wrapper == "scan_wrapper":
        f, init, xs, length, reverse = msg["args"]
        carry, ys = jax.lax.scan(f, init, xs, length=length, reverse=reverse)
        return (length, None, carry), (nothing, ys)
    if wrapper == "cond_wrapper":
        predicate, true, false, operand = msg["args"]
        return jax.lax.cond(predicate, true, false, operand), nothing
    raise _refused(f"The control flow `{wrapper}` has no meaning in varax.", fix="use jax.lax")


def _substituted(msg: Any) -> set[str]:
    """The sites whose values NumPyro's handlers around a control flow would put into it."""
    names: set[str] = set()
    for _, given in msg["kwargs"].get("substitute_stack", ()):
        if not isinstance(given, Mapping):
            raise _condition_around_control_flow()
        names |= given.keys()
    return names


def _condition_around_control_flow(name: str | None = None) -> ForeignModelError:
    return _refused(
        "NumPyro's condition, substitute and replay do not reach into a scan or cond here.",
        address=name,
        fix="condition the measure: vx.from_numpyro(fn)(*args).condition({name: values})",
    )
