"""Discrete chains: filter, its gradient, smoother, most likely path; against a scan and dynamax."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels.mp import hmm_filter, hmm_sample, hmm_smoother, hmm_viterbi


def data(steps: int, states: int, batch: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
    """A chain with random transitions and unit-normal log likelihoods."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.dirichlet(np.ones(states)),
        rng.dirichlet(np.ones(states), size=states),
        rng.standard_normal((*batch, steps, states)),
    )
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def scan_filter(initial: Any, transitions: Any, logs: Any) -> Any:
    """The best scan we know: products as multiply + reduce, likelihoods exponentiated outside."""
    shift = logs.max(1)
    weights = jnp.exp(logs - shift[:, None])

    def step(predicted: Any, w: Any) -> Any:
        joint = predicted * w
        scale = joint.sum()
        filtered = joint / scale
        return (filtered[:, None] * transitions).sum(0), (scale, filtered)

    _, (scales, filtered) = jax.lax.scan(step, initial, weights)
    return jnp.log(scales).sum() + shift.sum(), filtered


FILTERS: dict[str, Callable[..., Any]] = {"varax": hmm_filter, "plain XLA": scan_filter}


def scan_viterbi(initial: Any, transitions: Any, logs: Any) -> Any:
    """The usual form: best predecessors remembered, then followed back."""
    a = jnp.log(transitions)

    def step(delta: Any, log: Any) -> Any:
        scores = delta[:, None] + a
        return scores.max(0) + log - scores.max(), scores.argmax(0)

    last, best = jax.lax.scan(step, jnp.log(initial) + logs[0], logs[1:])
    end = last.argmax()
    _, path = jax.lax.scan(lambda z, b: (b[z], b[z]), end, best, reverse=True)
    return jnp.append(path, end)


def scan_sample(uniforms: Any, initial: Any, transitions: Any, logs: Any) -> Any:
    """Filter forwards, then invert the distribution functions backwards."""
    _, filtered = scan_filter(initial, transitions, logs)

    def chosen(weights: Any, uniform: Any) -> Any:
        sums = jnp.cumsum(weights)
        return (sums > uniform * sums[-1]).argmax()

    def step(state: Any, now: Any) -> Any:
        p, uniform = now
        state = chosen(p * transitions[:, state], uniform)
        return state, state

    last = chosen(filtered[-1], uniforms[-1])
    _, path = jax.lax.scan(step, last, (filtered[:-1], uniforms[:-1]), reverse=True)
    return jnp.append(path, last)


def _bound(functions: dict[str, Callable[..., Any]], given: Any) -> dict[str, Callable[[], Any]]:
    return {name: _call(jax.jit(f), given) for name, f in functions.items()}


def _call(f: Callable[..., Any], given: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(f(*given))


def _with_gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda *a: f(*a)[0], (0, 1, 2))


def _over_series(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(f, (None, None, 0))


def _dynamax() -> Any:
    if importlib.util.find_spec("dynamax") is None:
        return None
    from dynamax.hidden_markov_model import inference

    return inference


def filter_entry(steps: int, states: int) -> Entry:
    """Evidence and filtered probabilities."""

    def make() -> dict[str, Callable[[], Any]]:
        found = dict(FILTERS)
        if (peer := _dynamax()) is not None:

            def of_dynamax(*given: Any) -> Any:
                found = peer.hmm_filter(*given)
                return found.marginal_loglik, found.filtered_probs

            found["dynamax"] = of_dynamax
        return _bound(found, data(steps, states))

    size = f"N={steps:.0e} K={states}"
    moved = 2 * 4 * steps * states
    flops = steps * (2 * states**2 + 12 * states)
    return Entry("hmm_filter", "value", size, make, bytes=moved, flops=flops)


def gradient_entry(steps: int, states: int) -> Entry:
    """Evidence and its gradient in all three operands."""

    def make() -> dict[str, Callable[[], Any]]:
        found = {name: _with_gradient(f) for name, f in FILTERS.items()}
        if (peer := _dynamax()) is not None:
            found["dynamax"] = jax.value_and_grad(
                lambda *a: peer.hmm_filter(*a).marginal_loglik, (0, 1, 2)
            )
        return _bound(found, data(steps, states))

    size = f"N={steps:.0e} K={states}"
    moved = 5 * 4 * steps * states
    flops = steps * (6 * states**2 + 30 * states)
    return Entry("hmm_filter", "value and gradient", size, make, bytes=moved, flops=flops)


def batch_entry(series: int, steps: int, states: int, smoother: bool = False) -> Entry:
    """Many short chains by vmap."""

    def make() -> dict[str, Callable[[], Any]]:
        if smoother:
            forms = {"varax": _of_squares(hmm_smoother), "plain XLA": _of_squares(_by_gradient)}
        else:
            forms = {name: _with_gradient(f) for name, f in FILTERS.items()}
        found = {name: _over_series(f) for name, f in forms.items()}
        return _bound(found, data(steps, states, (series,)))

    size = f"B={series} N={steps} K={states}"
    moved = (9 if smoother else 5) * 4 * series * steps * states
    flops = series * steps * (6 * states**2 + 30 * states) * (3 if smoother else 1)
    name = "hmm_smoother" if smoother else "hmm_filter"
    return Entry(name, "value and gradient, vmap", size, make, bytes=moved, flops=flops)


def smoother_entry(steps: int, states: int, gradient: bool = False) -> Entry:
    """Smoothed probabilities and expected transitions; or the gradient of their squares' sum."""

    def make() -> dict[str, Callable[[], Any]]:
        found: dict[str, Any] = {"varax": hmm_smoother, "plain XLA": _by_gradient}
        if (peer := _dynamax()) is not None:

            def of_dynamax(initial: Any, transitions: Any, logs: Any) -> Any:
                found = peer.hmm_two_filter_smoother(initial, transitions, logs)
                counts = peer.compute_transition_probs(transitions, found)
                return found.marginal_loglik, found.smoothed_probs, counts

            found["dynamax"] = of_dynamax
        if gradient:
            found = {name: _of_squares(f) for name, f in found.items()}
        return _bound(found, data(steps, states))

    what = "value and gradient" if gradient else "value"
    moved = 3 * 4 * steps * states * (3 if gradient else 1)
    flops = steps * (6 * states**2 + 30 * states) * (3 if gradient else 1)
    size = f"N={steps:.0e} K={states}"
    return Entry("hmm_smoother", what, size, make, bytes=moved, flops=flops)


def _by_gradient(*given: Any) -> Any:
    """The smoother as the slope of the filter's evidence."""
    value, (_, transitions_bar, smoothed) = _with_gradient(scan_filter)(*given)
    return value, smoothed, given[1] * transitions_bar


def _of_squares(f: Callable[..., Any]) -> Callable[..., Any]:
    def total(*given: Any) -> Any:
        value, smoothed, counts = f(*given)
        return value + (smoothed**2).sum() + (counts**2).sum()

    return jax.value_and_grad(total, (0, 1, 2))


def sample_entry(steps: int, states: int) -> Entry:
    """A path from the posterior. dynamax draws by other numbers, so that it cannot be compared."""

    def make() -> dict[str, Callable[[], Any]]:
        key = jax.random.key(0)

        def plain(*given: Any) -> Any:
            return scan_sample(jax.random.uniform(key, (1, steps))[0], *given)

        found = {"varax": lambda *given: hmm_sample(key, *given), "plain XLA": plain}
        return _bound(found, data(steps, states))

    flops = steps * (2 * states**2 + 12 * states + 4 * states)
    size = f"N={steps:.0e} K={states}"
    # Where a uniform number falls on a boundary, rounding may choose.
    return Entry(
        "hmm_sample", "value", size, make, bytes=8 * steps * states, flops=flops, tolerance=0.05
    )


def viterbi_entry(steps: int, states: int) -> Entry:
    """The most likely path."""

    def make() -> dict[str, Callable[[], Any]]:
        found: dict[str, Any] = {"varax": lambda *a: hmm_viterbi(*a)[0], "plain XLA": scan_viterbi}
        if (peer := _dynamax()) is not None:
            found["dynamax"] = peer.hmm_posterior_mode
        return _bound(found, data(steps, states))

    # Of paths that are as likely but for rounding, candidates may take different ones.
    size = f"N={steps:.0e} K={states}"
    moved, flops = 4 * steps * (states + 1), steps * (2 * states**2 + 2 * states)
    return Entry("hmm_viterbi", "value", size, make, bytes=moved, flops=flops, tolerance=0.05)


def entries(quick: bool) -> list[Entry]:
    """All of them, or short ones."""
    long = 10_000 if quick else 1_000_000
    return [
        filter_entry(long, 4),
        *(filter_entry(10_000, states) for states in (16, 64)),
        *(gradient_entry(10_000, states) for states in (4, 16, 64)),
        batch_entry(64 if quick else 512, 200, 4),
        smoother_entry(10_000, 16),
        smoother_entry(10_000, 16, gradient=True),
        batch_entry(64 if quick else 512, 200, 4, smoother=True),
        sample_entry(10_000, 16),
        viterbi_entry(10_000, 4),
        viterbi_entry(10_000, 32),
    ]
