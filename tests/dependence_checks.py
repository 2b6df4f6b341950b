"""What the tests of dependences share: specifications, the truth, what the analysis allows.

A specification is `"ab,b->a"`: the letters of inputs and outputs, which give the shapes. A letter
on both sides says that an entry of the output needs the input's entries with the same index alone;
`t<` says the same index and earlier ones, `t>` and later ones; `.` and capitals are axes that are
mixed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from varax.transforms.axis_rules import Along
from varax.transforms.dependence import Analysis

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
