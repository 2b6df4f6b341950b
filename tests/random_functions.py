"""Random compositions of JAX functions, to look for cases that nobody thought of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def ints(x, n):
    return jnp.floor(jnp.abs(x) * 3).astype(int) % n


@jax.custom_jvp
def doubled(x, y):
    return 2 * x + y


doubled.defjvp(lambda p, t: (doubled(*p), 2 * t[0] + t[1]))


def fits(x):
    return x if x.size <= 60 else x.reshape(-1)[:24].reshape(2, 3, 4)


def pick(rng, x, least=1):
    return int(rng.integers(x.ndim)) if x.ndim >= least else None


def unary_step(rng, x, loops):
    """A random function of an array with an axis."""
    i = pick(rng, x)
    n = x.shape[i]
    j = int(rng.integers(x.ndim))
    order = [int(k) for k in rng.permutation(x.ndim)]
    key = int(rng.integers(1 << 30))
    moved = functools.partial(jnp.moveaxis, source=i, destination=0)
    options = [
        jnp.sin,
        lambda x: (x > 0) * 1.0,
        lambda x: jnp.floor(x),
        lambda x: x.sum(i),
        lambda x: x.max(i, keepdims=True) - x,
        lambda x: x.argmax(i) * 1.0,
        lambda x: jnp.cumsum(x, i),
        lambda x: lax.cumsum(x, i, reverse=True),
        lambda x: lax.cummax(x, i),
        lambda x: jnp.flip(x, i),
        lambda x: jnp.roll(x, 1, i),
        lambda x: jnp.sort(x, i),
        lambda x: jnp.transpose(x, order),
        lambda x: x.reshape(-1),
        lambda x: x.reshape(-1, x.shape[-1]),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.reshape(x.shape[::-1]),
        lambda x: jnp.expand_dims(x, j),
        lambda x: jnp.broadcast_to(x, (2, *x.shape)),
        lambda x: jnp.concatenate([x, x], i),
        lambda x: jnp.stack([x, -x], j),
        lambda x: jnp.take(x, np.random.default_rng(key).integers(n, size=n), i),
        lambda x: jnp.take(x, ints(x.reshape(-1)[:2], n), i),
        lambda x: jnp.take_along_axis(x, ints(x, n), i),
        lambda x: lax.slice_in_dim(x, 0, max(n - 1, 1), axis=i),
        lambda x: jnp.pad(x, [(1, 0) if k == i else (0, 0) for k in range(x.ndim)]),
        lambda x: jax.nn.softmax(x, i),
        lambda x: jax.nn.logsumexp(x, i),
        lambda x: lax.index_in_dim(x, n // 2, i, keepdims=False),
        lambda x: moved(x).at[0].set(0.5),
        lambda x: moved(x).at[ints(x.reshape(-1)[0], n)].set(1.5),
        lambda x: lax.scan(lambda c, x: (c + x, c * x), 0 * moved(x)[0], moved(x))[1],
        lambda x: lax.scan(lambda c, x: (c.sum() + x, c), 0 * moved(x)[0], moved(x), reverse=True)[
            1
        ],
        lambda x: lax.scan(lambda c, x: (jnp.flip(c) + x, None), moved(x)[0], moved(x))[0],
        lambda x: lax.map(lambda r: jnp.sort(r.reshape(-1)), moved(x)),
        lambda x: lax.map(jnp.sum, moved(x)),
        lambda x: lax.fori_loop(0, 2, lambda k, c: c + jnp.cumsum(c, i), x),
        lambda x: lax.cond(x.reshape(-1)[0] > 0, lambda x: x, lambda x: jnp.flip(x, i), x),
        jax.checkpoint(lambda x: jax.jit(jnp.tanh)(x).mean(i)),
        lambda x: jax.vmap(lambda r: r * r.sum(), in_axes=i, out_axes=j)(x),
        lambda x: jax.vmap(lambda r: lax.scan(lambda c, v: (c + v, c), 0.0, r.reshape(-1))[1], i)(
            x
        ),
        lambda x: jnp.tensordot(x, jnp.ones((n, 2)), (i, 0)),
    ]
    if loops:
        options.append(lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, x))
    return options[int(rng.integers(len(options)))]


def binary_step(rng, x, y):
    i, j = pick(rng, x), pick(rng, y)
    options = [
        lambda x, y: x.sum(i, keepdims=True) * y.sum(),
        lambda x, y: jnp.tensordot(jnp.sin(x), y, 0),
        lambda x, y: doubled(x, jnp.cos(x)) + y.mean(),
    ]
    if x.shape == y.shape:
        options += [jnp.add, jnp.multiply, lambda x, y: jnp.where(x > y, x, 2.0)] * 3
        options += [lambda x, y: jnp.concatenate([x, y], i), lambda x, y: jnp.stack([x, y], -1)]
    if x.shape[i] == y.shape[j]:
        options += [
            lambda x, y: jnp.tensordot(x, y, (i, j)),
            lambda x, y: jax.vmap(lambda a, b: a.sum() * b, (i, j))(x, y),
            lambda x, y: lax.scan(
                lambda c, v: (c + v[0].sum(), c * v[1]),
                0.0,
                (jnp.moveaxis(x, i, 0), jnp.moveaxis(y, j, 0)),
            )[1],
        ] * 2
    if (
        y.ndim <= x.ndim
        and np.broadcast_shapes(x.shape, y.shape[:0])
        and x.shape[-y.ndim :] == y.shape
    ):
        options += [jnp.add, jnp.multiply, jnp.maximum] * 3
    options += [lambda x, y: jnp.take(x, ints(y.reshape(-1)[:3], x.shape[i]), i)]
    return options[int(rng.integers(len(options)))]


def composition(rng, shapes, count, around=None):
    """A random function of arrays of these shapes, of `count` steps: the results of the last two.

    With `around` each step is followed by it, and can be differentiated in reverse.
    """
    pool = [jax.ShapeDtypeStruct(shape, float) for shape in shapes]
    steps = []
    for _ in range(count):
        at = [int(k) for k in rng.integers(max(len(pool) - 3, 0), len(pool), 2)]
        first, second = (pool[k] for k in at)
        if rng.random() < 0.6:
            step, at = unary_step(rng, first, loops=around is None), at[:1]
        else:
            step = binary_step(rng, first, second)
        full = functools.partial(_one_step, step, around or (lambda x: x))
        pool.append(jax.eval_shape(full, *(pool[k] for k in at)))
        steps.append((full, at))

    def run(*xs):
        values = list(xs)
        for step, at in steps:
            values.append(step(*(values[k] for k in at)))
        return values[-2:]

    return run


def _one_step(step, around, *xs):
    return padded(fits(around(jnp.asarray(step(*xs), float))))


def padded(x):
    """At least one axis, none of them empty."""
    return x.reshape(1) if x.ndim == 0 else x
