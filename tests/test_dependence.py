"""The analysis of dependences is sound, and finds the axes that matter.

A case is `"ab,b->a", function`: the letters of its inputs and outputs, which give the shapes.
A letter on both sides says that an entry of the output needs the input's entries with the same
index alone; `t<` says the same index and earlier ones, `t>` and later ones; `.` and capitals are
axes that are mixed.

Sound: wherever changing in[j] changes out[i], the analysis allows it. The truth is found by
changing one entry at a time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_functions import composition, doubled, ints

import varax as vx
from varax import dist as d
from varax.transforms import _jax, axis_rules
from varax.transforms.axis_rules import Along
from varax.transforms.dependence import NONE, Analysis
from varax.transforms.law import Law

SIZES = {"a": 3, "b": 4, "c": 2, "d": 4, "k": 5, "t": 3, "u": 2, "z": 2}
QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


# ---- specifications


def parsed(spec):
    """Of each input: `[(letter, order)]`; the letters of the output."""
    ins, out = spec.split("->")
    orders = {"<": 1, ">": -1}
    found = []
    for term in ins.split(","):
        axes = []
        for char in term:
            if char in orders:
                axes[-1] = (axes[-1][0], orders[char])
            else:
                axes.append((char, 0))
        found.append(axes)
    return found, out


def inputs(spec, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[SIZES[a.lower()] for a, _ in axes]) for axes in parsed(spec)[0]]


def expected(spec):
    """Of each input: what its axes become."""
    ins, out = parsed(spec)
    return [tuple(Along(out.index(a), o) if a in out else None for a, o in x) for x in ins]


# ---- the analysis, and what it allows


def analyse(function, *args):
    """Footprint of each output on each input; the outputs' shapes."""
    closed = jax.make_jaxpr(function)(*args)
    found = Analysis(lambda site: None).footprint(closed)
    first = found.inputs - len(args)
    outs = [
        [(d.whole >> n & 1, d.aligned.get(n)) for n in range(first, found.inputs)]
        for d in found.outs
    ]
    return outs, [v.aval.shape for v in closed.jaxpr.outvars]


def allowed(entry, shape_in, shape_out):
    """Which entries of the input an entry of the output may depend on, [*out, *in]."""
    whole, axes = entry
    if whole or axes is None:
        return np.full(shape_out + shape_in, bool(whole))
    may = np.ones(shape_out + shape_in, bool)
    grids = np.indices(shape_out + shape_in, sparse=True)
    for i, at in enumerate(axes):
        if at is not None:
            assert shape_in[i] == shape_out[at.axis]
            ours, theirs = grids[len(shape_out) + i], grids[at.axis]
            may &= [theirs == ours, theirs >= ours, theirs <= ours][at.order]
    return may


def dependences(made, seeds=(0, 1)):
    """For each `(function, args)`, of each output on each input, [*out, *in]: what changes if one
    entry of one input changes. The functions are compiled together, to save time.
    """
    made = [(function, [np.asarray(x, float) for x in args]) for function, args in made]
    points = [np.concatenate([_around(args, seed) for seed in seeds]) for _, args in made]

    def run(*points):
        outs = []
        for (function, args), rows in zip(made, points, strict=True):
            outs.append(lax.map(functools.partial(_at, function, args), rows))
        return outs

    outs = jax.jit(run, compiler_options=QUICKLY)(*points)
    pairs = zip(made, outs, strict=True)
    return [[_moved(np.asarray(x), args, len(seeds)) for x in out] for (_, args), out in pairs]


CHANGES = (0.4, -7.3, 9.1)


def _around(args, seed):
    """A point, and what is one change of one entry away from it."""
    base = np.concatenate([x.ravel() for x in args])
    if seed:
        base = np.random.default_rng(seed).normal(size=base.shape)
    return np.concatenate([base[None], *(base + change * np.eye(len(base)) for change in CHANGES)])


def _at(function, args, point):
    parts = jnp.split(point, np.cumsum([x.size for x in args])[:-1])
    outs = function(*(p.reshape(x.shape) for p, x in zip(parts, args, strict=True)))
    return [jnp.asarray(x) for x in jax.tree.leaves(outs)]


def _moved(out, args, seeds):
    """Of one output: whether an entry of each argument moves it."""
    sizes = [x.size for x in args]
    by_seed = out.reshape(seeds, -1, *out.shape[1:])
    base, changed = by_seed[:, :1], by_seed[:, 1:]
    moved = differs(changed, base).reshape(seeds, len(CHANGES), sum(sizes), *out.shape[1:])
    parts = np.split(np.moveaxis(moved.any((0, 1)), 0, -1), np.cumsum(sizes)[:-1], axis=-1)
    return [p.reshape(p.shape[:-1] + x.shape) for p, x in zip(parts, args, strict=True)]


def differs(x, y):
    if np.issubdtype(x.dtype, np.inexact):
        return ~np.isclose(x, y, rtol=1e-9, atol=1e-11, equal_nan=True)
    return x != y


def check_sound(function, args, truth):
    found, shapes = analyse(function, *args)
    for entries, shape, true in zip(found, shapes, truth, strict=True):
        for entry, arg, needed in zip(entries, args, true, strict=True):
            may = allowed(entry, np.shape(arg), shape)
            assert not (needed & ~may).any(), f"{entry} misses {np.argwhere(needed & ~may)[:5]}"


def check_precise(function, args, spec):
    """At least as precise as the specification."""
    found, _ = analyse(function, *args)
    for entries in found:
        for entry, axes in zip(entries, expected(spec), strict=True):
            whole, known = entry
            if known is None:
                assert not whole or not any(axes), f"{spec}: {entry}"
            else:
                for at, wanted in zip(known, axes, strict=True):
                    assert wanted is None or at in (wanted, Along(wanted.axis)), f"{spec}: {entry}"


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


ALL = pytest.mark.parametrize("at", range(len(CASES)), ids=lambda i: f"{i}: {CASES[i][0]}")


@ALL
def test_case(at):
    spec, function, *_ = CASES[at]
    check_sound(function, inputs(spec), truth(at))
    check_precise(function, inputs(spec), spec)


def lane_by_lane(spec, mapped):
    """The specification of a case with one more axis in front of some inputs and the outputs."""
    ins, out = spec.split("->")
    terms = ["z" + x if m else x for x, m in zip(ins.split(","), mapped, strict=True)]
    return f"{','.join(terms)}->z{out}"


def masks(n):
    every = [(True,) * n]
    return every + [tuple(i == j for j in range(n)) for i in range(n) if n > 1]


def over(function, mapped, by):
    """A function of every lane."""

    def lanes(*args):
        if by == "vmap":
            return jax.vmap(function, in_axes=[0 if m else None for m in mapped])(*args)

        def one(rows):
            left = iter(rows)
            return function(*(next(left) if m else x for x, m in zip(args, mapped, strict=True)))

        return lax.map(one, [x for x, m in zip(args, mapped, strict=True) if m])

    return lanes


@ALL
@pytest.mark.parametrize("by", ["vmap", "scan"])
def test_lanes(at, by):
    """Of a vmapped or scanned function each lane is what the function is."""
    spec, function, *loses = CASES[at]
    count = len(inputs(spec))
    if "cholesky_update" in primitives(function, inputs(spec)) and by == "vmap":
        pytest.skip("JAX has no batching rule")
    for mapped in masks(count):
        lanes, full = over(function, mapped, by), lane_by_lane(spec, mapped)
        args = inputs(full)
        if by == "scan" or not loses:
            check_precise(lanes, args, full)
        found, shapes = analyse(lanes, *args)
        for entries, shape, true in zip(found, shapes, truth(at), strict=True):
            for entry, arg, needed, m in zip(entries, args, true, mapped, strict=True):
                may = allowed(entry, arg.shape, shape)
                rank = len(shape)
                for lane in range(SIZES["z"]):
                    here = may[lane]
                    here = np.take(here, lane, rank - 1) if m else here
                    assert not (needed & ~here).any(), f"{full}: {entry}"


# ---- every rule has a case


def primitives(function, args):
    found = set()

    def walk(jaxpr):
        for eqn in _jax.opened(jaxpr)[0].eqns:
            found.add(eqn.primitive.name)
            for sub in _jax.subjaxprs(eqn):
                walk(sub)

    walk(jax.make_jaxpr(function)(*args))
    return found


def test_every_rule_has_a_case():
    seen = set().union(*(primitives(f, inputs(spec)) for spec, f, *_ in CASES))
    sets = (axis_rules.ELEMENTWISE, axis_rules.REDUCTIONS, axis_rules.SCANS, axis_rules.MATRICES)
    known = set(axis_rules.RULES).union(*sets)
    seldom = {
        "copy_p",
        "copy",
        "name",
        "sharding_constraint",
        "add_any",
        "conj",
        "geqrf",
        "random_gamma_grad",
    }
    elsewhere = {"learning_signals", "declare_biased", "density_estimate"}  # varax's own
    assert known - seen <= seldom | elsewhere


def test_what_has_no_rule_is_taken_as_a_whole():
    def call(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.flip(x), shape, x)

    check_sound(call, [np.ones(3)], [[np.eye(3, dtype=bool)[::-1]]])
    ((entry,),), _ = analyse(call, np.ones(3))
    assert entry == (1, None)


def test_what_is_random_nowhere_depends_on_nothing():
    found = Analysis(lambda site: None).footprint(jax.make_jaxpr(lambda x: jnp.ones(3))(1.0))
    assert found.outs == [NONE]


def test_an_equation_without_results():
    def printing(x):
        jax.debug.callback(lambda x: None, x)
        return 2 * x

    check_precise(printing, [np.ones(3)], "a->a")


def test_a_region_that_is_not_a_call_is_taken_as_a_whole():
    """A shard's axes are not those of the array: one shard's result, for all, is not aligned."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    function = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    ((entry,),), _ = analyse(function, np.ones(3))
    assert entry == (1, None)


def test_many_sources():
    """More sources than are followed: the oldest are taken as a whole."""
    xs = [np.full(3, float(i)) for i in range(80)]
    function = lambda *xs: sum(xs[1:], start=xs[0])  # noqa: E731
    ((*entries,),), _ = analyse(function, *xs)
    assert all(whole or axes == (Along(0),) for whole, axes in entries)
    assert sum(axes == (Along(0),) for _, axes in entries) == 64


# ---- random compositions


SHAPES = [(3, 4), (4,), (4, 3), (3,), (2, 3, 2), (3, 3), (2, 2)]


def random_function(seed):
    """A function of two arrays, and its arguments."""
    rng = np.random.default_rng(seed)
    args = [rng.normal(size=SHAPES[rng.integers(len(SHAPES))]) for _ in range(2)]
    return composition(rng, [x.shape for x in args], int(rng.integers(3, 8))), args


@pytest.mark.parametrize("first", range(0, 200, TOGETHER))
def test_random_compositions(first):
    made = [random_function(seed) for seed in range(first, first + TOGETHER)]
    for (function, args), true in zip(made, dependences(made), strict=True):
        check_sound(function, args, true)


# ---- random choices: parameters -> elements


def lanes_of(make):
    """A distribution made under vmap over all its parameters."""
    return lambda *params: jax.vmap(make)(*params)


def draw(law):
    return vx.sample("x", law)


def positive(x):
    return 0.2 + jnp.exp(x / 3)


LAWS = [
    ("a,a->a", lambda m, s: draw(d.Normal(m, positive(s)))),
    ("ab,b->ab", lambda m, s: draw(d.Normal(m, positive(s)))),
    (",a->a", lambda m, s: draw(d.Normal(m, positive(s)))),
    (",->", lambda m, s: draw(d.Normal(m, positive(s)))),
    ("bk->b", lambda x: draw(d.Categorical(logits=x))),
    ("bk->b", lambda x: draw(d.Categorical(probs=jax.nn.softmax(x)))),
    ("bk->b.", lambda x: draw(d.Multinomial(3, probs=jax.nn.softmax(x)))),
    ("bk->b.", lambda x: draw(d.Dirichlet(positive(x)))),
    ("ab->a.", lambda m: draw(d.MultivariateNormal(m, jnp.eye(4)))),
    ("ab,abd->a.", lambda m, s: draw(d.MultivariateNormal(m, spd(s)))),
    ("b,abd->a.", lambda m, s: draw(d.MultivariateNormal(m, scale_tril=lower(s)))),
    ("ab->ab", lambda m: draw(d.Normal(m, 1.0).to_event(1))),
    ("ab,b->ab", lambda m, s: draw(d.Normal(m, positive(s)).to_event(2))),
    ("b->ab", lambda m: draw(d.Normal(m, 1.0).expand([3, 4]))),
    ("b->ab", lambda m: draw(d.Normal(m, 1.0).expand([3, 4]).to_event(1))),
    ("a,a->a", lambda m, w: draw(vx.masked(d.Normal(m, 1.0), w > 0))),
    ("ab,a->ab", lambda m, w: draw(vx.masked(d.Normal(m, 1.0).to_event(1), w > 0))),
    ("ab->ab", lambda m: draw(d.Normal(m, 1.0).mask(np.arange(4) > 1))),
    ("a,->a", lambda m, w: draw(vx.scaled(d.Normal(m, 1.0), positive(w)))),
    ("ab,ab->ab", lambda x, y: draw(d.Beta(positive(x), positive(y)))),
    ("ab->ab", lambda x: [draw(d.Bernoulli(logits=x)), draw(d.Poisson(positive(x)))]),
    ("ab->ab", lambda x: [draw(d.LogNormal(x, 1.0)), draw(d.Gamma(positive(x), 1.0))]),
    ("a,a->a", lambda x, y: draw(d.Uniform(x, x + positive(y)))),
    ("a,a->a", lambda x, y: draw(d.TruncatedNormal(x, positive(y), low=-1.0))),
    ("a,a,a->a", lambda x, y, z: draw(d.StudentT(positive(x), y, positive(z)))),
    ("ak,ak->a", lambda x, y: draw(mixture(x, y))),
    (
        "a,b->ab",
        lambda x, y: jax.vmap(lambda x: jax.vmap(lambda y: draw(d.Normal(x, positive(y))))(y))(x),
    ),
    ("a,->a", lambda x, y: jax.vmap(lambda x: draw(d.Normal(x, positive(y))))(x)),
    ("ab,b->ab", lambda x, y: jax.vmap(lambda x: draw(d.Normal(x, positive(y))))(x)),
    ("ab->ab", lambda x: jax.vmap(lambda x: draw(d.Normal(x, 1.0)), 1, 1)(x)),
    ("ab->ba", lambda x: jax.vmap(lambda x: draw(d.Normal(x, 1.0)), 1)(x)),
    ("abk->ab", lambda x: jax.vmap(lambda x: draw(d.Categorical(logits=x)))(x)),
    ("ab,abd->a.", lambda m, s: jax.vmap(lambda m, s: draw(d.MultivariateNormal(m, spd(s))))(m, s)),
    ("ab,bd->a.", lambda m, s: jax.vmap(lambda m: draw(d.MultivariateNormal(m, spd(s))))(m)),
    ("ab->a", lambda x: jax.vmap(lambda x: draw(d.Normal(x.sum(), 1.0)))(x)),
    ("ta->ta", lambda x: lax.map(lambda x: draw(d.Normal(x, 1.0)), x)),
    (
        "t<a->ta",
        lambda x: lax.scan(lambda c, x: (draw(d.Normal(c + x, 1.0)),) * 2, jnp.zeros(3), x)[1],
    ),
    ("t<a->ta", lambda x: lax.scan(chain_of_lanes, jnp.zeros(3), x)[1]),
    ("a,a->a", lambda x, y: jax.vmap(branching)(x, y)),
    (",a->a", lambda x, y: lax.cond(x > 0, lambda: draw(d.Normal(y, 1.0)), lambda: y)),
]


def chain_of_lanes(c, x):
    c = jax.vmap(lambda c, x: draw(d.Normal(jnp.sin(c) + x, 1.0)))(c, x)
    return c, c


def branching(x, y):
    return lax.cond(x > 0, lambda: vx.sample("p", d.Normal(y, 1.0)), lambda: 2 * y)


def mixture(x, y):
    return d.MixtureSameFamily(d.Categorical(logits=x), d.Normal(y, 1.0))


@pytest.mark.parametrize("spec, program", LAWS, ids=name)
def test_law(spec, program):
    """With the same key an element of a draw changes with its own parameters alone."""
    args = inputs(spec)
    seeded = vx.seed(program)
    key = jax.random.key(0)
    check_precise(program, args, spec)
    (true,) = dependences([(lambda *xs: seeded(key, *xs), args)], seeds=(0,))
    check_sound(program, args, true)


def test_the_elements_of_a_draw_are_sources():
    def program(m):
        x = jax.vmap(lambda m: draw(d.Normal(m, 1.0).expand([4])))(m)
        return x, x.sum(1), x[::-1]

    jaxpr = jax.make_jaxpr(program)(np.ones(3))
    found = Analysis(lambda site: Law(site, []).elements).footprint(jaxpr)
    assert found.shapes == [(3, 4)] and found.choices == [(0,)]
    axes = [dep.aligned for dep in found.outs]
    assert axes[0][1] == (Along(0), Along(1)) and axes[0][0] == (Along(0),)
    assert axes[1][1] == (Along(0), None)
    assert axes[2] == {1: (None, Along(1))} and found.outs[2].whole == 1
