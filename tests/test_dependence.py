"""The analysis of dependences is sound, and finds the axes that matter.

A case is `"ab,b->a", function`: the letters of its inputs and outputs, which give the shapes.
A letter on both sides says that an entry of the output needs the input's entries with the same
index alone; `t<` says the same index and earlier ones, `t>` and later ones; `.` and capitals are
axes that are mixed.

Sound: wherever changing in[j] changes out[i], the analysis allows it. The truth is found by
changing one entry at a time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dependence_cases import CASES, truth
from dependence_checks import (
    SIZES,
    allowed,
    analyse,
    check_precise,
    check_sound,
    in_float64,  # noqa: F401
    inputs,
)
from jax import lax

from varax.transforms import _jax, axis_rules
from varax.transforms.axis_rules import Along
from varax.transforms.dependence import NONE, Analysis

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
