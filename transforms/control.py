"""Rules for the primitives that may hide a site, the same for every transformation.

Easy kinds first: regions that run once (jit, closed_call, checkpoint), then scan, cond, while,
and last the functions whose derivative the user wrote.
"""

from __future__ import annotations

from typing import Any

import jax

from . import _jax
from .arrays import where_leading
from .errors import DifferentiationError
from .interpreter import RULES, Handler, evaluate, refused
from .site import Site, first_site, has_sites


def inline(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """jit and closed_call: transparent, the outer program is compiled as a whole."""
    region = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    jaxpr, consts = _jax.opened(region)
    inner = handler.inside(handler.enter(eqn))
    outs = evaluate(inner, jaxpr, [*consts, *values])
    handler.leave(inner.effects())
    return outs


def checkpoint(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """checkpoint: what entered is an argument, so the replay draws the same values."""
    region = eqn.params["jaxpr"]

    def body(entered: Any, *values: Any) -> tuple[list[Any], Any]:
        inner = handler.inside(entered)
        jaxpr, consts = _jax.opened(region)
        return evaluate(inner, jaxpr, [*consts, *values]), inner.effects()

    again = jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    outs, effects = again(handler.enter(eqn), *values)
    handler.leave(effects)
    return outs


def scan(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """scan: what enters is scanned over, effects come out stacked."""
    region, length = eqn.params["jaxpr"], eqn.params["length"]
    jaxpr, inner_consts = _jax.opened(region)
    n_consts, n_carry = _jax.scan_counts(eqn)
    consts, carry = values[:n_consts], values[n_consts : n_consts + n_carry]
    xs = values[n_consts + n_carry :]

    def body(carry: list[Any], x: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        inner = handler.inside(x[1])
        outs = evaluate(inner, jaxpr, [*inner_consts, *consts, *carry, *x[0]])
        return outs[:n_carry], (outs[n_carry:], inner.effects())

    carry, (ys, effects) = jax.lax.scan(
        body,
        list(carry),
        (xs, handler.enter_scan(eqn, length)),
        length=length,
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    handler.leave_scan(effects, length)
    return [*carry, *ys]


def cond(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """cond and switch: each branch is traced once, then made to hand back the same effects."""
    index, *values = values
    entered = handler.enter(eqn)

    def traced(branch: Any) -> tuple[Any, Any]:
        def body(entered: Any, *values: Any) -> tuple[list[Any], Any]:
            jaxpr, consts = _jax.opened(branch)
            inner = handler.inside(entered)
            return evaluate(inner, jaxpr, [*consts, *values]), inner.effects()

        return jax.make_jaxpr(body, return_shape=True)(entered, *values)

    bodies = [traced(b) for b in eqn.params["branches"]]
    alike = handler.join([effects for _, (_, effects) in bodies])

    def again(i: int) -> Any:
        closed, shape = bodies[i]
        tree = jax.tree.structure(shape)

        def branch(*operands: Any) -> tuple[list[Any], Any]:
            outs, effects = jax.tree.unflatten(tree, _jax.jaxpr_as_fun(closed)(*operands))
            return outs, alike[i](effects)

        return branch

    operands = [*jax.tree.leaves(entered), *values]
    outs, effects = jax.lax.switch(index, [again(i) for i in range(len(bodies))], *operands)
    handler.leave(effects)
    return outs


def while_loop(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """while_loop: forward only, with the handler's state in the carry."""
    params = eqn.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    if has_sites(params["cond_jaxpr"]):
        raise refused(eqn, "its predicate samples, and a predicate runs once more than the body")
    in_cond, in_body = values[:n_cond], values[n_cond : n_cond + n_body]
    region = params["body_jaxpr"]

    def running(values: list[Any]) -> jax.Array:  # one bool, or one a lane where vmap mapped it
        return _jax.jaxpr_as_fun(params["cond_jaxpr"])(*in_cond, *values)[0] & handler.alive()

    def predicate(state: tuple[Any, list[Any]]) -> jax.Array:
        return running(state[1]).any()

    def body(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        carried, values = state
        jaxpr, consts = _jax.opened(region)
        step = handler.inside_while(carried)
        outs = evaluate(step, jaxpr, [*consts, *in_body, *values])
        going = running(values)  # a lane of a vmapped loop that has ended keeps its values
        outs = [where_leading(going, x, v) for x, v in zip(outs, values, strict=True)]

        return handler.next_while(carried, step), outs

    start = (handler.enter_while(eqn), list(values[n_cond + n_body :]))
    carried, outs = jax.lax.while_loop(predicate, body, start)
    handler.leave_while(carried)
    return outs


def custom_derivative(handler: Handler, eqn: _jax.JaxprEqn, values: list[Any]) -> list[Any]:
    """custom_jvp and custom_vjp: run forward; the user's derivative cannot know the draw."""
    region = eqn.params["call_jaxpr"]
    site = first_site(region)

    @jax.custom_jvp
    def forward(entered: Any, values: list[Any]) -> tuple[list[Any], Any]:
        jaxpr, consts = _jax.opened(region)
        inner = handler.inside(entered)
        return evaluate(inner, jaxpr, [*consts, *values]), inner.effects()

    @forward.defjvp
    def _refuse(primals: Any, tangents: Any) -> Any:
        raise derivative_unknown(eqn, site)

    outs, effects = forward(handler.enter(eqn), values)
    handler.leave(effects)
    return outs


def derivative_unknown(eqn: _jax.JaxprEqn, site: Site) -> DifferentiationError:
    """The error for differentiating a custom derivative around a draw."""
    return DifferentiationError(
        "A function with a custom derivative draws inside, and its derivative rule cannot know "
        "which value was drawn.",
        address=site.address,
        where=site.line,
        got=f"`{_jax.shown(eqn.primitive)}` at {_jax.source_line(eqn)}",
        fix="draw outside the function and pass the value to it",
    )


RULES.update(
    {
        _jax.jit_p: inline,
        _jax.closed_call_p: inline,
        _jax.remat_p: checkpoint,
        _jax.scan_p: scan,
        _jax.cond_p: cond,
        _jax.while_p: while_loop,
        _jax.custom_jvp_call_p: custom_derivative,
        _jax.custom_vjp_call_p: custom_derivative,
    }
)
