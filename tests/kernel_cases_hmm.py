"""Discrete chains: the cases that every implementation is checked on."""

import jax
import numpy as np
from kernel_checks import Case

from varax.kernels.mp import hmm_smoother, hmm_viterbi
from varax.kernels.mp.chain_filter import filter_operation


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


def filter_case(name, arrays, axes=None):
    # The operation itself: under vmap and grad the public function adds checks alone.
    return Case(name, "hmm_filter", filter_operation, arrays, axes)


SIZES = [(1, 1), (2, 1), (1, 3), (17, 2), (65, 4), (33, 7), (40, 16), (35, 17)]

CASES = [
    *(filter_case(f"{n}x{k}", chain(n, k)) for n, k in SIZES),
    filter_case("33x70", chain(33, 70)),
    *(filter_case(f"varying-{n}x{k}", chain(n, k, varying=True)) for n, k in [(1, 2), (40, 5)]),
    filter_case("varying-20x33", chain(20, 33, varying=True)),
    filter_case("empty", chain(0, 3)),
    filter_case("sparse", chain(60, 6, sparse=True)),
    filter_case("steep", chain(60, 5, scale=200.0)),
    filter_case("flat", lambda rng: (*(a := chain(60, 5, scale=1e-6)(rng))[:2], a[2] - 1)),
    filter_case("excluding", excluding(50, 5)),
    filter_case(
        "vmap-other-axes",
        lambda rng: tuple(np.moveaxis(a, 0, 1) for a in chain(7, 3, batch=((5,),) * 3)(rng)),
        1,
    ),
    filter_case("vmap-all", chain(20, 3, batch=((5,), (5,), (5,))), 0),
    filter_case("vmap-shared", chain(40, 4, batch=((), (), (19,))), (None, None, 0)),
    filter_case("vmap-transitions", chain(20, 5, batch=((), (6,), ())), (None, 0, None)),
    filter_case("vmap-varying", chain(9, 3, batch=((4,), (4,), (4,)), varying=True), 0),
    filter_case("vmap-sparse", chain(40, 4, batch=((), (), (18,)), sparse=True), (None, None, 0)),
    filter_case("vmap-wide", chain(20, 18, batch=((), (), (3,))), (None, None, 0)),
    filter_case("vmap-empty", chain(20, 3, batch=((), (), (0,))), (None, None, 0)),
]

# Programs that are parallel in time take long to compile, the longer the chain the longer.
IN_PARALLEL = [
    filter_case("varying-9x3", chain(9, 3, varying=True)),
    filter_case("excluding-9x4", excluding(9, 4)),
    *(c for c in CASES if c.name in ("1x3", "excluding", "varying-40x5", "vmap-shared")),
]

SMOOTHER_CASES = [
    Case(f"smoother-{n}x{k}", "hmm_filter", hmm_smoother, chain(n, k, varying=v))
    for n, k, v in [(12, 4, False)]
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
