"""Running Markov chains: compiled once, in calls short enough for a progress bar and for Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..progress import Progress
from .transitions import Transition

Array = jax.Array
CALLS = 20  # of the device, for all draws
SEQUENTIAL = 8  # most chains that a CPU runs one after the other


class Chains:
    """Several chains of a transition, after `run` ready to run again without compilation.

    Args:
        transition: of one chain.
        draws: of each chain, after its warmup.
        vectorized: all chains as one batch, else one after the other. In a batch every chain waits
            for the longest trajectory, and the program is larger; a GPU is idle without.
    """

    def __init__(self, transition: Transition, draws: int, *, vectorized: bool):
        self.transition, self.draws = transition, draws
        self.chunk = -(-draws // CALLS)
        self._over = jax.vmap if vectorized else _one_by_one
        self._start = jax.jit(lambda keys, u: self._over(transition.init)(keys, u))
        self._advance = jax.jit(self._steps)

    def run(
        self, key: Array, u: Array, *, progress: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray], bool]:
        """The draws after warmup from starting points [chains, D].

        Returns:
            draws [chains, draws, D], statistics [chains, draws], and whether the user stopped the
            run: then they are those up to then.
        """
        total, kept, interrupted = self.transition.warmup + self.draws, [], False
        with Progress(total, shown=progress) as bar:
            states = self._start(jax.random.split(key, len(u)), u)
            done = 0
            try:
                while done < total:
                    left = self.transition.warmup - done if done < self.transition.warmup else total
                    count = min(self.chunk, left, total - done)
                    states, found = self._advance(states, jnp.asarray(count))
                    found = jax.tree.map(lambda x, n=count: np.asarray(x)[:, :n], found)
                    if done >= self.transition.warmup:
                        kept.append(found)
                    done += count
                    bar.update(count, _shown(found[1], count))
            except KeyboardInterrupt:
                if not kept:
                    raise
                interrupted = True
        positions, stats = jax.tree.map(lambda *xs: np.concatenate(xs, 1), *kept)
        return positions, stats, interrupted

    def _steps(self, states: Any, count: Array) -> tuple[Any, Any]:
        """`count` steps of every chain, at the front of arrays [chains, chunk, ...]."""

        def one(state: Any) -> tuple[Any, Any]:
            _, *form = jax.eval_shape(self.transition.step, state)
            kept = jax.tree.map(lambda x: jnp.zeros((self.chunk, *x.shape), x.dtype), form)

            def body(i: Any, carry: Any) -> Any:
                state, kept = carry
                state, *now = self.transition.step(state)
                return state, jax.tree.map(lambda xs, x: xs.at[i].set(x), kept, now)

            return jax.lax.fori_loop(0, count, body, (state, kept))

        return self._over(one)(states)


def trajectory(transition: Transition, key: Array, u: Array, draws: int) -> tuple[Array, Any]:
    """One chain from u [D], traceable: draws [draws, D] and their statistics [draws]."""

    def step(state: Any, _: Any) -> tuple[Any, Any]:
        state, *found = transition.step(state)
        return state, found

    state = transition.init(key, u)
    state = jax.lax.fori_loop(0, transition.warmup, lambda _, s: transition.step(s)[0], state)
    _, (positions, stats) = jax.lax.scan(step, state, None, length=draws)
    return positions, stats


def best_layout(chains: int) -> bool:
    """Whether to batch the chains: on accelerators, and where there are many."""
    return jax.default_backend() != "cpu" or chains > SEQUENTIAL


def _one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jax.lax.map(lambda xs: f(*xs), args)


def _shown(stats: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """What the bar shows: means over the chains."""
    names = [name for name in ("acceptance_rate", "diverging") if name in stats]
    return {name: stats[name].mean(0, dtype=float)[:count] for name in names}
