"""Functions of one pathwise choice x that jump, for tests/test_soundness.py.

Where one is written over several lines, `# here` marks the operation that jumps.
"""

import jax
import jax.numpy as jnp
from jax import lax
from sound_programs import KNOTS, THREE, exp, sigmoid, spread


def elu(x):  # a user's own function that happens to be called like a trusted one
    return jnp.where(x > 0, x, jnp.exp(x))  # here


def scanned_carry(x):
    def body(carry, _):
        return carry + jnp.where(carry > 0.5, 1.0, 0.0), carry  # here

    return lax.scan(body, x, None, length=3)[0]


def scanned_later(x):
    def body(carry, _):  # the value gets from a to b, and from b to the comparison
        a, b, total = carry
        total = total + (b > 0.3)  # here
        return (a, a, total), None

    return lax.scan(body, (x, 0.0, 0.0), None, length=3)[0][2]


def scanned_inputs(x):
    def body(total, value):
        return total + jnp.floor(value), None  # here

    return lax.scan(body, 0.0, spread(x))[0]


def scanned_constant(x):
    def body(total, knot):
        return total + jnp.where(knot > x, knot, 0.0), None  # here

    return lax.scan(body, 0.0, KNOTS)[0]


def looped(x):
    def body(i, total):
        return total + i * jnp.sign(x - 1.0)  # here

    return lax.fori_loop(0, 3, body, 0.0)


def while_predicate(x):
    def going(state):
        return state[0] < x  # here

    return lax.while_loop(going, lambda s: (s[0] + 1.0, s[1] + 0.5), (-3.0, 0.0))[1]


def mapped(x):
    def one(weight):
        return jnp.round(weight * x)  # here

    return jax.vmap(one)(THREE).sum()


def branched(x):
    return lax.cond(
        x > 0.2,  # here
        lambda y: y + 1.0,
        lambda y: y - 1.0,
        x,
    )


def branched_inside(x):
    def left(y):
        return y * (y > 0.1)  # here

    return lax.cond(KNOTS[0] < 0.0, left, lambda y: y, x - 1.0)


def switched(x):
    i = jnp.clip(jnp.array(x, int), 0, 2)  # here
    return lax.switch(i, [lambda y: y, lambda y: y + 2.0, lambda y: -y], x)


def cond_on_float(x):
    return lax.cond(
        (2 * x).astype(jnp.int32),  # here
        lambda y: y + 1.0,
        lambda y: y - 1.0,
        x,
    )


def jitted(x):
    @jax.jit
    def inner(y):
        return jnp.where(y >= 1.0, y, 0.0)  # here

    return inner(x) + inner(x + 0.5)


def jitted_twice(x):
    @jax.jit
    def inner(y, z):
        return jnp.sum(z[jnp.argmax(y)])  # here

    return jax.jit(lambda y: inner(y, THREE))(spread(x))


def checkpointed(x):
    @jax.checkpoint
    def inner(y):
        return jnp.ceil(y) * y  # here

    return inner(x)


def stages(x):
    """How often a library's loop runs depends on x."""
    from equinox.internal import while_loop

    done, _ = while_loop(
        lambda at: at[1] < 3.0,  # here
        lambda at: (at[0] + 1, at[1] + 1.0),
        (jnp.asarray(0), x),
        kind="checkpointed",
        max_steps=30,
    )
    return 1.0 * done


@jax.custom_vjp
def straight(x):
    return jnp.where(x > 0, 1.0, 0.0)  # here


straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))


def in_another_function(x):
    def helper(y):
        scale = jnp.where(y < 1.0, 3.0, 1.0)  # here
        return scale * y

    return helper(x * 2.0) + x


def mask_made_early(x):
    inside = (x > -1.0) & (x < 1.0)  # here
    other = jnp.cos(x)
    return (inside * other).sum()


def sorted_by(x):
    return lax.sort_key_val(spread(x), THREE)[1][0]  # here


def through_a_mask(x):
    density = jnp.where(x > 0, -x, -jnp.inf)  # here
    return jnp.where(jnp.isfinite(density), 1.0, 0.0) + x


def gradient_inside(x):
    return jax.grad(jax.nn.relu)(x)  # here


def reversed_entries(x):
    y = spread(x)
    return jnp.where(y > 0, y[::-1], 0.0) @ KNOTS[:3]  # here


def rounded_index(x):
    i = jnp.round(x).astype(jnp.int32)  # here
    return KNOTS[jnp.clip(i, 0, 6)]


# name: (operation, function); one line each, the line of the operation
UNSOUND = {
    "where": ("comparison `>`", lambda x: jnp.where(x > 0, 1.0, 0.0)),
    "where_less": ("comparison `<`", lambda x: jnp.where(x < 0.5, x, 0.0)),
    "where_at_least": ("comparison `>=`", lambda x: jnp.where(x >= 0.5, 2 * x, x)),
    "where_at_most": ("comparison `<=`", lambda x: jnp.where(x <= 0.1, jnp.sin(x), 1.0)),
    "where_slopes": ("comparison `>`", lambda x: jnp.where(x > 0.1, x, 2.0 * x)),
    "where_parameter": ("comparison `>`", lambda x: jnp.where(x > 0, x, THREE[0] + x)),
    "where_abs": ("comparison `<`", lambda x: jnp.where(jnp.abs(x) < 1, x, 1.0)),
    "where_other": ("comparison `>`", lambda x: jnp.where(x > 0, 2.0 * x + jnp.cos(x), x)),
    "where_entries": ("comparison `>`", reversed_entries),
    "select": ("comparison `>`", lambda x: lax.select(x > 0, x + 1.0, x)),
    "select_many": ("comparison `<`", lambda x: jnp.select([x < 0, x < 1], [x, x**2 + 1], 0.0)),
    "bool_times": ("comparison `>`", lambda x: (x > 0) * jnp.cos(x)),
    "large_negative": ("comparison `>`", lambda x: jnp.where(x > 0, x, -1e3)),
    "indicator": ("comparison `>`", lambda x: exp(jnp.where(x > 0, 0.0, -jnp.inf))),
    "masked_softmax": (
        "comparison `>`",
        lambda x: jnp.log1p(exp(jnp.where(x > THREE, THREE, -jnp.inf)).sum()),
    ),
    "any": ("comparison `>`", lambda x: jnp.where((spread(x) > 1.0).any(), 1.0, 0.0)),
    "equal_after_clip": (
        "comparison `==`",
        lambda x: jnp.where(jnp.maximum(x, 0.0) == 0.0, 1.0, 0.0),
    ),
    "astype_int": ("conversion to int32", lambda x: x.astype(jnp.int32) * 1.0),
    "astype_bool": ("conversion to bool", lambda x: jnp.maximum(x, 0.0).astype(bool) * 1.0),
    "floor": ("floor", lambda x: jnp.floor(x)),
    "ceil": ("ceil", lambda x: jnp.ceil(x) * x),
    "round": ("round", lambda x: jnp.round(x)),
    "rint": ("round", lambda x: jnp.rint(2 * x)),
    "trunc": ("trunc", lambda x: jnp.trunc(x)),
    "sign": ("sign", lambda x: jnp.sign(x)),
    "heaviside": ("heaviside", lambda x: jnp.heaviside(x, 0.5)),
    "mod": ("remainder `%`", lambda x: x % 1.0),
    "fmod": ("remainder `%`", lambda x: jnp.fmod(x, 1.0)),
    "floor_divide": ("remainder `%`", lambda x: x // 0.7),
    "unwrapped_angle": ("atan2", lambda x: jnp.arctan2(x, -1.0)),
    "copysign": ("copysign", lambda x: jnp.copysign(2.0, x)),
    "argmax": ("argmax", lambda x: THREE[jnp.argmax(spread(x))]),
    "argmin": ("argmin", lambda x: jnp.argmin(spread(x)) * 1.0),
    "argsort": ("argsort", lambda x: THREE[jnp.argsort(spread(x))][0]),
    "top_k": ("top_k indices", lambda x: THREE[lax.top_k(spread(x), 2)[1]][0]),
    "one_hot": ("argmax", lambda x: jax.nn.one_hot(jnp.argmax(spread(x)), 3) @ THREE),
    "searchsorted": ("searchsorted", lambda x: jnp.searchsorted(KNOTS, x) * 1.0),
    "digitize": ("digitize", lambda x: THREE[jnp.clip(jnp.digitize(x, KNOTS), 0, 2)]),
    "interp_left": ("interp", lambda x: jnp.interp(x, THREE[::2], THREE[::2], left=9.0)),
    "nearest_quantile": ("quantile", lambda x: jnp.quantile(THREE, sigmoid(x), method="nearest")),
    "one_over_guard": ("comparison `<`", lambda x: 1.0 / jnp.where(x < 0, -1.0, jnp.inf)),
    "gather": ("conversion to int32", lambda x: KNOTS[jnp.clip(x.astype(jnp.int32), 0, 6)]),
    "slice": ("floor", lambda x: lax.dynamic_slice(KNOTS, [jnp.floor(x).astype(int) % 7], [1])[0]),
    "scatter": ("conversion to int32", lambda x: THREE.at[jnp.int32(x) % 3].set(5.0)[0]),
    "permuted": ("sort by other values", lambda x: lax.sort((spread(x), THREE), num_keys=1)[1][0]),
    "bernoulli_draw": (
        "comparison `<`",
        lambda x: jax.random.bernoulli(jax.random.key(0), sigmoid(x)) * 1.0,
    ),
    "user_elu": ("comparison `>`", elu),
    "scan_carry": ("comparison `>`", scanned_carry),
    "scan_later": ("comparison `>`", scanned_later),
    "scan_inputs": ("floor", scanned_inputs),
    "scan_constant": ("comparison `>`", scanned_constant),
    "fori_loop": ("sign", looped),
    "while_predicate": ("comparison `<`", while_predicate),
    "vmap": ("round", mapped),
    "cond": ("comparison `>`", branched),
    "cond_inside": ("comparison `>`", branched_inside),
    "cond_on_float": ("conversion to int32", cond_on_float),
    "switch": ("conversion to int32", switched),
    "jit": ("comparison `>=`", jitted),
    "jit_in_jit": ("argmax", jitted_twice),
    "checkpoint": ("ceil", checkpointed),
    "library_loop": ("comparison `<`", stages),
    "custom_vjp": ("comparison `>`", straight),
    "other_function": ("comparison `<`", in_another_function),
    "mask_made_early": ("comparison `>`", mask_made_early),
    "sort_key_val": ("sort by other values", sorted_by),
    "isfinite": ("comparison `>`", through_a_mask),
    "gradient_of_relu": ("comparison `>`", gradient_inside),
    "rounded_index": ("round", rounded_index),
}
