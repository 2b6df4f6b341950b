"""Functions whose dependences are known, each below its specification (`dependence_checks`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from dependence_checks import dependences, inputs
from jax import lax
from random_functions import doubled, ints

import varax as vx

# ---- cases


def plain(x):
    """Between 0.1 and 0.9."""
    return 0.1 + 0.8 * jax.nn.sigmoid(x)


def spd(x):
    """Positive definite matrices [..., n, n]."""
    return x @ jnp.swapaxes(x, -1, -2) + 3 * jnp.eye(x.shape[-1])


def lower(x):
    return jnp.tril(x) + 3 * jnp.eye(x.shape[-1])


def scanned(step, init, reverse=False):
    return lambda *xs: lax.scan(step, init, xs, reverse=reverse)[1]


UNARY = """abs acosh asin asinh atan atanh acos bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf
    erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg round rsqrt sign sin
    sinh sqrt square stop_gradient tan tanh""".split()
BINARY = """add atan2 div eq ge gt igamma igamma_grad_a igammac le lt max min mul ne nextafter pow
    rem sub zeta polygamma""".split()
BITS = "and or xor shift_left shift_right_arithmetic shift_right_logical".split()
BITS_NAMES = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
tripled = jax.custom_vjp(lambda x, y: 3 * x * y)
tripled.defvjp(lambda x, y: (3 * x * y, (x, y)), lambda r, g: (3 * g * r[1], 3 * g * r[0]))
MERGES = "a vmap merges the lanes with an axis"
WHILE = "a vmapped while loop goes on while any lane does"
CASES = [
    # elementwise, also to integers and booleans
    ("ab->ab", lambda x: [getattr(lax, name)(plain(x)) for name in UNARY]),
    (
        "ab->ab",
        lambda x: [x.astype(int), x.astype("float32"), x > 0, lax.reduce_precision(x, 8, 9)],
    ),
    ("ab->ab", lambda x: [lax.integer_pow(x, 3), vx.assume_smooth(x), jnp.isnan(x), jnp.rint(x)]),
    ("ab->ab", lambda x: [x.conj() * 1j, (x + 1j).real, (1j * x).imag, jnp.abs(x + 1j)]),
    ("ab->ab", lambda x: [~(x > 0), ~ints(x, 9), lax.population_count(ints(x, 9)), jnp.copy(x)]),
    ("ab->ab", lambda x: [lax.clz(ints(x, 9)), jax.device_put(x), x.astype(bool) + 1]),
    ("ab,ab->ab", lambda x, y: [getattr(lax, name)(plain(x), plain(y)) for name in BINARY]),
    ("ab,ab->ab", lambda x, y: [lax.complex(x, y), lax.betainc(x, y, plain(x))]),
    (
        "ab,ab->ab",
        lambda x, y: [
            getattr(lax, BITS_NAMES.get(name, name))(ints(x, 9), ints(y, 9)) for name in BITS
        ],
    ),
    ("ab,ab,ab->ab", lambda x, y, z: [jnp.where(x > 0, y, z), lax.clamp(x, y, z)]),
    (",ab,ab->ab", lambda x, y, z: lax.select(x > 0, y, z)),
    (",ab,->ab", lambda x, y, z: lax.clamp(x, y, z)),
    # broadcasting and shapes
    ("ab,b->ab", lambda x, y: x + y),
    ("ab,a->ab", lambda x, y: x * y[:, None]),
    ("a,b->ab", lambda x, y: jnp.sin(x)[:, None] * y),
    ("a->ab", lambda x: jnp.broadcast_to(x[:, None], (3, 4))),
    ("a->.a", lambda x: jnp.tile(x, (2, 1))),
    ("a->.", lambda x: jnp.tile(x, 2)),
    ("a->.", lambda x: jnp.repeat(x, 2)),
    ("a,a->.a", lambda x, y: jnp.stack([x, y])),
    ("a,a->a.", lambda x, y: jnp.stack([x, y], 1)),
    ("ab->a", lambda x: jnp.unstack(x, axis=1)),
    ("ab->.", lambda x: x.reshape(-1)),
    ("abc->ab.", lambda x: x.reshape(3, 4, 2, 1)),
    ("abc->a.", lambda x: x.reshape(3, 8)),
    ("abc->.c", lambda x: x.reshape(12, 2)),
    ("abc->a.c", lambda x: x.reshape(3, 2, 2, 2)[:, :, 0]),
    ("ab->.", lambda x: x.reshape(4, 3)),
    ("cd->..", lambda x: x.reshape(4, 2)),
    ("ab->..", lambda x: x.reshape(2, 6)),
    ("ab->.ab.", lambda x: jnp.expand_dims(x, (0, 3))),
    ("ab->ab", lambda x: jnp.squeeze(x[:, None, :, None])),
    ("ab->ba", jnp.transpose),
    ("abc->cab", lambda x: jnp.moveaxis(x, 2, 0)),
    ("abc->acb", lambda x: jnp.swapaxes(x, 1, 2)),
    ("ab->ab", lambda x: x + jnp.swapaxes(x.T, 0, 1)),
    ("bd->..", lambda x: x + x.T),  # entry (i, j) of both (i, j) and (j, i)
    # matrix products
    ("ab,bc->ac", lambda x, y: x @ y),
    ("abc,acd->abd", lambda x, y: x @ y),
    ("ab,ab->a", lambda x, y: jnp.einsum("ab,ab->a", x, y)),
    ("ab,cb->ac", lambda x, y: jnp.einsum("ab,cb->ac", x, y)),
    ("abc,bk->abck", lambda x, y: jnp.einsum("abc,bk->abck", x, y)),
    ("ab,b->a", lambda x, y: jax.vmap(lambda row: row @ y)(x)),
    ("ab,bc,c->a", lambda x, y, z: jnp.einsum("ab,bc,c->a", x, y, z)),
    ("bd->", lambda x: jnp.einsum("ii->", x)),
    ("bd->.", lambda x: jnp.diagonal(x)),
    ("a,b->ab", jnp.outer),
    # reductions
    ("ab->a", lambda x: [x.sum(1), x.mean(1), x.max(1), x.min(-1), x.prod(1), x.var(1)]),
    ("ab->b", lambda x: [(x > 0).any(0), (x > 0).all(0), jnp.bitwise_xor.reduce(ints(x, 9), 0)]),
    ("abc->b", lambda x: [x.argmax(0)[:, 0] * 1, x.sum((0, 2)), jnp.median(x, 2).sum(0)]),
    ("ab->a", lambda x: [jnp.argmax(x, 1), jnp.argmin(x, 1), jnp.linalg.norm(x, axis=1)]),
    ("ab->a", lambda x: [jax.nn.logsumexp(x, 1), lax.reduce(x, 0.0, lambda a, b: a * b + a, (1,))]),
    ("ab->ab", lambda x: [jnp.exp(x - x)]),
    ("ab->a.", lambda x: [jax.nn.softmax(x, -1), jax.nn.log_softmax(x, 1), x / x.sum(1)[:, None]]),
    ("ab->.b", lambda x: (x - x.mean(0)) / x.std(0)),
    ("ab->", lambda x: x.sum()),
    # along an axis
    ("t<b->tb", lambda x: [jnp.cumsum(x, 0), jnp.cumprod(x, 0), lax.cummax(x, 0)]),
    ("t>b->tb", lambda x: [lax.cumsum(x, 0, reverse=True), lax.cummin(x, 0, reverse=True)]),
    ("at<->at", lambda x: [lax.cumlogsumexp(x, 1), jnp.cumsum(jnp.cumsum(x, 1), 1)]),
    ("at->a.", lambda x: jnp.cumsum(x, 1) + lax.cumsum(x, 1, reverse=True)),
    ("at->a.", lambda x: lax.cumsum(jnp.cumsum(x, 1), 1, reverse=True)),
    ("tu<->tu", lambda x: jnp.sin(jnp.cumsum(x, 1)) + x),
    ("ab->.b", lambda x: [x[::-1], jnp.roll(x, 1, 0), x[jnp.array([2, 0, 1])], jnp.flip(x, 0)]),
    (
        "ab->.b",
        lambda x: [jnp.sort(x, 0), jnp.argsort(x, 0), lax.rev(x, (0,)), jnp.diff(x, axis=0)],
    ),
    ("ab,ab->a.", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1)),
    ("ab->a.", lambda x: lax.top_k(x, 2)),
    ("ab->.b", lambda x: [lax.top_k(x.T, 2)[0].T, x[1:], x[::2], x[0][None]]),
    ("ab->b", lambda x: [x[0], x[-1], x[1] - x[0]]),
    ("ab,ab->.b", lambda x, y: jnp.concatenate([x, y])),
    ("ab,ac->a.", lambda x, y: jnp.concatenate([x, y], 1)),
    ("ab->.b", lambda x: jnp.split(x, 3)),
    ("ab->a.", lambda x: jnp.split(x, 2, 1)),
    ("ab->.b", lambda x: [jnp.pad(x, ((1, 0), (0, 0))), lax.pad(x, 0.0, ((-1, 1, 0), (0, 0, 0)))]),
    ("ab,->ab", lambda x, y: lax.pad(x, y, ((0, 0, 0), (0, 0, 0)))),
    ("ab,->.b", lambda x, y: lax.pad(x, y, ((0, 0, 1), (0, 0, 0)))),
    ("ab->a.", lambda x: jnp.fft.fft(x, axis=1)),
    ("ab->.b", lambda x: jnp.abs(jnp.fft.fft(x, axis=0))),
    ("ab->a.", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID")),
    ("ab->a.", lambda x: lax.reduce_window(x, 2.0, jnp.hypot, (1, 2), (1, 1), "VALID")),
    ("ab->.b", lambda x: lax.reduce_window(x, -np.inf, lax.max, (2, 1), (2, 1), "SAME")),
    ("ab->a.", lambda x: lax.reduce_window(x, np.inf, lax.min, (1, 2), (1, 2), "VALID")),
    # reading and writing at an index
    ("ab,c->cb", lambda x, i: x[ints(i, 3)]),
    ("ab,c->ac", lambda x, i: x[:, ints(i, 4)]),
    ("AB,a->a", lambda x, i: x[jnp.arange(3), ints(i, 4)]),
    ("ab,a->a", lambda x, i: jnp.take_along_axis(x, ints(i, 4)[:, None], 1)[:, 0]),
    ("ab,ab->a.", lambda x, i: jnp.take_along_axis(x, ints(i, 4), 1)),
    ("aB,ab->ab", lambda x, i: x.sum(1)[:, None] * ints(i, 4)),
    ("ab,->b", lambda x, i: x[ints(i, 3)]),
    ("ab,->.b", lambda x, i: lax.dynamic_slice_in_dim(x, ints(i, 2), 2)),
    ("ab,c->c", lambda x, i: x[ints(i, 3), ints(i, 4)]),
    ("ab,c->ca", lambda x, i: x.T.at[ints(i, 9)].get(mode="fill", fill_value=-1.0)),
    ("ab,a->a", lambda x, i: jax.vmap(lambda row, j: row[j])(x, ints(i, 4))),
    ("ab,,b->.b", lambda x, i, y: x.at[ints(i, 3)].set(y)),
    ("ab,,a->a.", lambda x, i, y: x.at[:, ints(i, 4)].add(y)),
    ("ab,c,cb->.b", lambda x, i, y: x.at[ints(i, 3)].multiply(y)),
    ("ab,c,cb->.b", lambda x, i, y: [x.at[ints(i, 3)].min(y), x.at[ints(i, 3)].max(y)]),
    ("ab,c,cb->.b", lambda x, i, y: x.at[ints(i, 3)].subtract(y)),
    ("ab->ab", lambda x: [x.at[1].set(0.0), x.at[:, 1:].multiply(2.0), x.at[0, 0].add(1.0)]),
    ("ab,a,a->a.", lambda x, i, y: jax.vmap(lambda r, j, v: r.at[j].set(v))(x, ints(i, 4), y)),
    ("ab,A,A->ab", lambda x, i, y: x.at[jnp.arange(3), ints(i, 4)].set(y)),
    ("ab,,b->.b", lambda x, i, y: lax.dynamic_update_index_in_dim(x, y, ints(i, 3), 0)),
    ("ab,,->ab", lambda x, i, y: x.at[ints(i, 3)].set(y)),
    ("a,a->.", lambda x, i: jax.ops.segment_sum(x, ints(i, 2), 2)),
    ("ab,a->.b", lambda x, i: jax.ops.segment_sum(x, ints(i, 2), 2)),
    # linear algebra
    (
        "abd->a..",
        lambda x: [jnp.linalg.cholesky(spd(x)), jnp.linalg.inv(spd(x)), *jnp.linalg.qr(x)],
    ),
    ("abd->a", lambda x: [jnp.linalg.det(spd(x)), jnp.linalg.slogdet(spd(x))[1]]),
    ("abd->a.", lambda x: [jnp.linalg.eigh(spd(x))[0], jnp.linalg.svd(x, compute_uv=False)]),
    ("abd->a..", lambda x: [jnp.linalg.eigh(spd(x))[1], *jax.vmap(jax.scipy.linalg.lu)(x)]),
    ("abd,ab->a.", lambda x, y: jnp.linalg.solve(spd(x), y[..., None])[..., 0]),
    ("bd,ab->a.", lambda x, y: jax.vmap(lambda y: jnp.linalg.solve(spd(x), y))(y), MERGES),
    ("abd,abc->a.c", lambda x, y: lax.linalg.triangular_solve(lower(x), y, left_side=True), MERGES),
    ("ab,ab->a.", lambda x, y: jax.vmap(lambda x, y: thomas(x, y))(x, y)),
    (
        "abd,ab->a.",
        jax.vmap(lambda x, y: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(spd(x)), True), y)),
    ),
    ("abd->a..", lambda x: jax.vmap(lambda x: jnp.linalg.eig(x)[1])(x)),
    ("bd->..", lambda x: lax.linalg.schur(x)[0]),
    ("abd->a.", lambda x: lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(x)[1], 4)),
    ("bd,b->", lambda x, y: lax.linalg.cholesky_update(lower(x).T, y)),
    ("abd->a..", lambda x: lax.linalg.householder_product(x, x[:, 0])),
    ("ab->ab", lambda x: lax.custom_linear_solve(lambda v: 2 * v, x, lambda f, b: b / 2)),
    (
        "ab,ab->ab",
        lambda x, y: lax.custom_linear_solve(lambda v: v * plain(x), y, lambda f, b: b / plain(x)),
    ),
    (
        "bd,b->.",
        lambda x, y: lax.custom_linear_solve(
            lambda v: spd(x) @ v, y, lambda f, b: jnp.linalg.inv(spd(x)) @ b
        ),
    ),
    ("abck->a...", lambda x: lax.conv(x, jnp.ones((2, 4, 2, 2)), (1, 1), "SAME"), MERGES),
    (
        "bck,b->...",
        lambda x, y: lax.conv(y[None, :, None, None] * x, jnp.ones((2, 4, 1, 1)), (1, 1), "SAME")[
            0
        ],
    ),
    ("bcdk->....", lambda x: grouped(x), MERGES),
    # control flow
    ("ab,b->ab", jax.jit(lambda x, y: jnp.sin(x) + y)),
    ("ab,b->ab", jax.checkpoint(lambda x, y: jnp.sin(x) + y)),
    ("ab,b->ab", lambda x, y: doubled(x, jnp.broadcast_to(y, x.shape))),
    ("ab,ab->ab", tripled),
    ("ab,a->ab", jax.vmap(tripled)),
    (",ab,ab->ab", lambda p, x, y: lax.cond(p > 0, lambda x, y: x, lambda x, y: y + x, x, y)),
    (
        ",ab,->b",
        lambda p, x, y: lax.switch(ints(p, 3), [lambda: x[0], lambda: x[1] + y, lambda: x[2]]),
    ),
    ("a,a->a", jax.vmap(lambda p, x: lax.cond(p > 0, jnp.sin, lambda x: 1.0, x))),
    ("tb->tb", lambda x: lax.map(jnp.sin, x)),
    ("tb->t", lambda x: lax.map(jnp.sum, x)),
    ("tb,->t", lambda x, y: lax.map(lambda r: (r * y).max(), x)),
    ("tb,tb->t.", lambda x, y: lax.map(lambda rows: jnp.sort(rows[0]) * rows[1].sum(), (x, y))),
    ("t<b->tb", scanned(lambda c, x: (c + x[0], c + x[0]), np.zeros(4))),
    ("t>b->tb", scanned(lambda c, x: (c * x[0], c * x[0] + 1), np.ones(4), reverse=True)),
    ("t<b->t.", scanned(lambda c, x: (jnp.flip(c) + x[0], c + x[0]), np.zeros(4))),
    ("t<b->t.", scanned(lambda c, x: (jnp.ones((4, 4)) @ c + x[0], c * x[0]), np.zeros(4))),
    ("t<b->t", scanned(lambda c, x: (c * 0.5 + jnp.sort(x[0])[0], c), 0.0)),
    ("t>b->t", scanned(lambda c, x: (c + x[0].sum(), c), 0.0, reverse=True)),
    ("tb,t->t.", scanned(lambda c, x: (c, (jnp.roll(x[0], 1), jnp.sort(x[0]) * x[1])), 0.0)),
    ("t<b,b->tb", lambda x, c: lax.scan(lambda c, x: (c * x, c * x), c, x)[1]),
    ("tb,b->b", lambda x, c: lax.scan(lambda c, x: (c * x, None), c, x)[0]),
    ("tb,b->.", lambda x, c: lax.scan(lambda c, x: (jnp.roll(c, 1) * x, None), c, x)[0]),
    ("a,a->a", lambda x, y: lax.fori_loop(0, 3, lambda i, c: c * x + y, x)),
    ("a,a->.", lambda x, y: lax.fori_loop(0, 3, lambda i, c: jnp.roll(c, 1) + y, x)),
    ("a,a->", lambda x, y: lax.fori_loop(0, 3, lambda i, c: (c[1], c[0] + 1), (x, y))),
    (
        "ab->.b",
        lambda x: lax.fori_loop(0, 3, lambda i, c: c.at[i].set(x[2 - i]), jnp.zeros((3, 4))),
    ),
    (
        "ab->",
        lambda x: lax.while_loop(lambda c: c[0].sum() < 20, lambda c: (c[0] + 9, c[1] + 1), (x, 0)),
        WHILE,
    ),
    ("a->", lambda x: lax.while_loop(lambda c: (c < 9).any(), lambda c: c + 1, x), WHILE),
    ("t<u<->tu", lambda x: two_loops(x)),
    ("t<u->t.", lambda x: carried_in_both(x)),
    ("tau->ta", lambda x: lax.map(jax.vmap(lambda r: lax.scan(add_sin, 0.0, r)[0]), x)),
    (
        "t<au->ta",
        lambda x: lax.scan(lambda c, x: (c + jax.vmap(jnp.sum)(x),) * 2, jnp.zeros(3), x)[1],
    ),
    ("at<->at", jax.vmap(lambda x: lax.scan(add_sin, 0.0, x)[1])),
    ("t<a->at", jax.vmap(lambda x: lax.scan(add_sin, 0.0, x)[1], in_axes=1)),
    ("T->t", lambda x: lax.associative_scan(jnp.add, x)),
    ("t<,t>->t", lambda x, y: jnp.cumsum(x) * lax.cumsum(y, reverse=True)),
    ("t->.", lambda x: scanned(add_both, 0.0)(lax.cumsum(x, reverse=True))),
    ("t<->t", lambda x: scanned(add_both, 0.0)(jnp.cumsum(x))),
    ("t<->t", jax.jit(jax.checkpoint(lambda x: jax.jit(scanned(add_both, 0.0))(x)))),
    ("t<->t", lambda x: lax.scan(lambda c, x: (x, c), 0.0, x)[1]),  # strictly earlier
    ("t<,t->t", lambda x, y: lax.scan(swap, (0.0, 1.0), (x, y))[1]),
]


def add_sin(c, x):
    return c + jnp.sin(x), c * x


def add_both(c, x):
    return c + x[0] if isinstance(x, tuple) else c + x, c


def swap(carry, xs):
    """What enters one carry is read a step later, from the other."""
    (p, q), (x, y) = carry, xs
    return (q, x), p * y


def two_loops(x):
    """Cumulative sums along both axes, by a scan in a scan."""

    def outer(above, row):
        def inner(left, at):
            a, v = at
            return left + v, a + left + v

        _, out = lax.scan(inner, 0.0, (above, row))
        return out, out

    return lax.scan(outer, jnp.zeros(x.shape[1]), x)[1]


def carried_in_both(x):
    def outer(c, row):
        return lax.scan(lambda c, v: (c * 0.5 + v, c), c, row)

    return lax.scan(outer, 0.0, x)[1]


def thomas(x, y):
    return lax.linalg.tridiagonal_solve(x, x + 9, x, y[:, None])[:, 0]


def grouped(x):
    """Batch entries of different groups meet in one entry of the result."""
    return lax.conv_general_dilated(x, jnp.ones((2, 2, 1, 1)), (1, 1), "VALID", batch_group_count=2)


def name(case):
    return case[0] if isinstance(case, tuple) else None


TOGETHER = 20


@functools.cache
def truths(start):
    with jax.enable_x64(True):
        return dependences([(f, inputs(spec)) for spec, f, *_ in CASES[start : start + TOGETHER]])


def truth(at):
    return truths(at - at % TOGETHER)[at % TOGETHER]
