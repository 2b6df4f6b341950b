"""Discrete chains: the cases that every implementation is checked on."""

import dataclasses

import jax
import numpy as np
from kernel_checks import Case

from varax.kernels.mp import hmm_viterbi
from varax.kernels.mp.chain_filter import filter_operation
from varax.kernels.mp.chain_smoother import smoother_operation


def chain(steps, states, *, varying=False, scale=3.0, batch=(), sparse=False, impossible=False):
    """Operands of a random chain; `batch` says which lengths go in front of which operand."""

    def arrays(rng):
        def front(i):
            return batch[i] if batch else ()

        initial = rng.dirichlet(np.ones(states), size=front(0))
        many = (max(steps - 1, 0),) if varying else ()
        transitions = rng.dirichlet(np.ones(states), size=(*front(1), *many, states))
        if sparse:  # half of the transitions, and a fifth of the likelihoods
            transitions[..., (np.add.outer(np.arange(states), np.arange(states)) % 2) == 1] = 0
            transitions /= transitions.sum(-1, keepdims=True)
        logs = scale * rng.standard_normal((*front(2), steps, states))
        if sparse:
            gone = rng.random(logs.shape) < 0.2
            gone[..., :2] = False
            logs[gone] = -np.inf
        if impossible:
            logs[steps // 2] = -np.inf
        return initial, transitions, logs

    return arrays


def excluding(steps, states):
    """Likelihoods that all but exclude what was predicted, by hundreds of nats."""

    def arrays(rng):
        initial = np.eye(states)[0]
        transitions = np.roll(np.eye(states), 1, axis=1)  # a cycle
        logs = 3 * rng.standard_normal((steps, states))
        logs[np.arange(steps), np.arange(steps) % states] -= 400
        return initial, transitions, logs

    return arrays


def left_to_right(steps, states, nats=30):
    """A chain that starts in the first state and never goes back, of data that the last explains.

    How much better the data would be explained, were it there from the start, is beyond float32.
    """

    def arrays(rng):
        stay = rng.uniform(0.5, 0.9, states)
        stay[-1] = 1
        transitions = np.diag(stay) + np.diag(1 - stay[:-1], 1)
        logs = 3 * rng.standard_normal((steps, states))
        logs[:, -1] += nats
        return np.eye(states)[0], transitions, logs

    return arrays


def filter_case(name, arrays, axes=None, draws=1):
    # The operation itself: under vmap and grad the public function adds checks alone.
    return Case(name, "hmm_filter", filter_operation, arrays, axes, draws)


def smoother_case(case):
    return dataclasses.replace(case, operation="hmm_smoother", function=smoother_operation)


SIZES = [(1, 1), (2, 1), (1, 3), (17, 2), (65, 4), (33, 7), (40, 16), (35, 17)]

CASES = [
    *(filter_case(f"{n}x{k}", chain(n, k)) for n, k in SIZES),
    filter_case("33x70", chain(33, 70)),
    *(filter_case(f"varying-{n}x{k}", chain(n, k, varying=True)) for n, k in [(1, 2), (40, 5)]),
    filter_case("varying-20x33", chain(20, 33, varying=True)),
    filter_case("empty", chain(0, 3)),
    filter_case("sparse", chain(60, 6, sparse=True), None, 8),
    filter_case("steep", chain(60, 5, scale=200.0)),
    filter_case("flat", lambda rng: (*(a := chain(60, 5, scale=1e-6)(rng))[:2], a[2] - 1)),
    filter_case("excluding", excluding(50, 5)),
    filter_case("left-to-right", left_to_right(40, 6)),
    filter_case(
        "vmap-left-to-right",
        lambda rng: [
            np.stack(x) for x in zip(*(left_to_right(20, 6)(rng) for _ in range(5)), strict=True)
        ],
        0,
    ),
    filter_case(
        "vmap-other-axes",
        lambda rng: tuple(np.moveaxis(a, 0, 1) for a in chain(7, 3, batch=((5,),) * 3)(rng)),
        1,
    ),
    filter_case("vmap-all", chain(20, 3, batch=((5,), (5,), (5,))), 0),
    filter_case("vmap-shared", chain(40, 4, batch=((), (), (19,))), (None, None, 0)),
    filter_case("vmap-transitions", chain(20, 5, batch=((), (6,), ())), (None, 0, None)),
    filter_case("vmap-varying", chain(9, 3, batch=((4,), (4,), (4,)), varying=True), 0),
    filter_case(
        "vmap-sparse", chain(40, 4, batch=((), (), (18,)), sparse=True), (None, None, 0), 8
    ),
    filter_case("vmap-wide", chain(20, 18, batch=((), (), (3,))), (None, None, 0)),
    filter_case("vmap-empty", chain(20, 3, batch=((), (), (0,))), (None, None, 0)),
]

# Programs that are parallel in time take long to compile, the longer the chain the longer.
IN_PARALLEL = [
    filter_case("varying-9x3", chain(9, 3, varying=True)),
    filter_case("excluding-9x4", excluding(9, 4)),
    filter_case("left-to-right-9x5", left_to_right(9, 5), None, 8),
    *(c for c in CASES if c.name in ("1x3", "excluding", "varying-40x5", "vmap-shared")),
]

# Second derivatives in what is all but excluded are beyond float64 in 50 steps, and where rare
# events decide, as rounding has them: the smoother's cases of that kind are milder.
SMOOTHER_CASES = [
    *(smoother_case(c) for c in CASES if c.name not in ("excluding", "sparse", "vmap-sparse")),
    smoother_case(filter_case("excluding-9x4", excluding(9, 4))),
    smoother_case(filter_case("sparse", chain(60, 6, sparse=True, scale=1.0), None, 8)),
    smoother_case(
        filter_case(
            "vmap-sparse",
            chain(40, 4, batch=((), (), (18,)), sparse=True, scale=1.0),
            (None, None, 0),
            8,
        )
    ),
]
# The parallel form's second derivatives lose a digit in the steep one.
SMOOTHER_IN_PARALLEL = [
    smoother_case(c)
    for c in [*IN_PARALLEL, filter_case("rising", left_to_right(9, 5, nats=5), None, 8)]
    if c.name not in ("excluding", "left-to-right-9x5")
]

VITERBI_CASES = [
    *(
        Case(f"{n}x{k}", "hmm_viterbi", hmm_viterbi, chain(n, k))
        for n, k in [(1, 1), (1, 3), (65, 4), (35, 17), (33, 70)]
    ),
    Case("varying", "hmm_viterbi", hmm_viterbi, chain(40, 5, varying=True)),
    Case("empty", "hmm_viterbi", hmm_viterbi, chain(0, 3)),
    Case("sparse", "hmm_viterbi", hmm_viterbi, chain(60, 6, sparse=True)),
    Case("ties", "hmm_viterbi", hmm_viterbi, chain(30, 4, scale=0.0)),
    Case(
        "vmap",
        "hmm_viterbi",
        jax.vmap(hmm_viterbi, (None, None, 0)),
        chain(9, 3, batch=((), (), (4,))),
    ),
]
