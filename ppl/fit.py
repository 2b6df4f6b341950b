"""`vx.fit`: the common training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..transforms import finite
from ..transforms.derivatives import join, split_floats, value_and_grad
from ..transforms.errors import NonFiniteError, ShapeError, VaraxError
from ..transforms.expect import Estimators, by_path
from ..transforms.staging import stage
from ..transforms.strategies import Strategy
from .batches import Batches
from .progress import Progress

BUFFER = 1024  # most steps of one call to the device
SECONDS = 0.25  # how long such a call should take, for the progress bar


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `vx.fit` leaves behind.

    Attributes:
        params: the parameters after the last step, of the tree that was given.
        history: the objective's estimate at every step, shape [steps].
        seconds: wall time, compilation included.
        interrupted: True where the user stopped the run (Ctrl-C); everything up to then is here.
    """

    params: Any
    history: np.ndarray
    seconds: float
    interrupted: bool = False

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.history)

    def plot(self, ax: Any = None, window: int = 100) -> Any:
        """The objective by step with its running mean, on matplotlib axes (made if not given)."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.5))
        window = max(1, min(window, self.steps // 4))
        mean = np.convolve(self.history, np.ones(window) / window, "valid")
        ax.plot(self.history, lw=0.4, alpha=0.5, color="C0")
        ax.plot(np.arange(window - 1, self.steps), mean, color="C0", label=f"mean of {window}")
        low, high = np.quantile(self.history[self.steps // 20 :], [0.005, 0.995])
        ax.set(xlabel="step", ylabel="objective", ylim=(low, high) if low < high else None)
        ax.legend()
        return ax

    def __repr__(self) -> str:
        last = self.history[-min(100, self.steps) :].mean() if self.steps else float("nan")
        return f"FitResult(steps={self.steps}, objective={last:.5g}, seconds={self.seconds:.1f})"


def fit(
    objective: Callable[..., Any],
    params: Any,
    optimizer: Any,
    steps: int,
    key: jax.Array,
    *,
    data: Any = None,
    batch_size: int | None = None,
    maximize: bool = True,
    progress: bool = True,
    using: Strategy | None = None,
    estimators: Estimators | None = None,
    strict: bool = False,
) -> FitResult:
    """Optimise the expectation of a program by stochastic gradients.

    Args:
        objective: `objective(params)`, or `objective(params, batch)` with data; a program with a
            scalar value. A bound such as the ELBO is maximised.
        params: any pytree. Floating-point leaves are trained; the others (an Equinox module's
            functions) stay as they are.
        optimizer: an optax gradient transformation.
        steps: how many.
        key: all randomness. A step's draws depend on the key and the step's number alone.
        data: array or pytree of arrays whose leading axis are the data points.
        batch_size: data points a step, drawn without replacement from a permutation that is
            renewed on the device every epoch; all of them where it is None.
        maximize: False minimises.
        progress: whether to show the bar (on standard error).
        using: how the expectation is taken, as in `vx.expect`.
        estimators: by address, in the place of those that the objective asks for, such as those
            of `vx.tune_estimators`.
        strict: refuse estimators that are biased on purpose.

    Returns:
        `FitResult`. One compilation serves the whole run.

    Raises:
        NonFiniteError: the objective or a parameter stopped being finite: names the step and the
            first site whose value, density or gradient is not finite.
        ShapeError: the objective is not a scalar, or the data's leading axes differ.
    """
    began = time.perf_counter()
    floats, rest = split_floats(params)
    floats = jax.tree.map(jnp.asarray, floats)
    batches = Batches(data, batch_size)
    loop = _Loop(objective, rest, optimizer, key, batches, 1.0 if maximize else -1.0)
    loop.asked = {"using": using, "estimators": estimators, "strict": strict}
    loop.check_scalar(floats)
    state = _State(floats, optimizer.init(floats), batches.start())
    history: list[np.ndarray] = []
    done, count, interrupted = 0, 1, False
    with Progress(steps, shown=progress) as bar:
        try:
            while done < steps:
                before, clock = state, time.perf_counter()
                count = min(count, steps - done, BUFFER)
                state, values, sound = loop.advance(state, done, count, batches.data)
                values = np.asarray(values)[:count]
                if not (sound and np.isfinite(values).all()):
                    raise loop.failure(before, done, values, batches.data)
                history.append(values)
                done += count
                bar.update(count, values)
                took = time.perf_counter() - clock
                count = 8 if done == 1 else max(1, int(count * min(2.0, SECONDS / took)))
        except KeyboardInterrupt:
            interrupted = True
    values = np.concatenate(history) if history else np.zeros(0)
    return FitResult(join(state.floats, rest), values, time.perf_counter() - began, interrupted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    floats: Any
    optimizer: Any
    order: Any  # the data's permutation


class _Loop:
    """Many steps in one call to the device, and the inquiry when one fails."""

    def __init__(
        self,
        objective: Callable[..., Any],
        rest: Any,
        optimizer: Any,
        key: jax.Array,
        batches: Batches,
        sign: float,
    ):
        self.objective, self.rest, self.optimizer = objective, rest, optimizer
        self.key, self.batches, self.sign = key, batches, sign
        self.asked: dict[str, Any] = {}  # of value_and_grad
        self._advance = jax.jit(self._steps)

    def program(self, floats: Any, *batch: Any) -> Any:
        return self.objective(join(floats, self.rest), *batch)

    def check_scalar(self, floats: Any) -> None:
        shape = jax.eval_shape(lambda: _outline(lambda: self.program(floats, *self._example())))
        leaves = jax.tree.leaves(shape)
        if len(leaves) != 1 or leaves[0].shape != ():
            raise ShapeError(
                "An objective is one number.",
                expected="a scalar",
                got=", ".join(str(x.shape) for x in leaves) or "nothing",
                where=getattr(self.objective, "__name__", None),
                fix="return the mean over data points, for example",
            )

    def _example(self) -> tuple[Any, ...]:
        return self.batches.take(self.batches.data, self.batches.start(), 0)[1]

    def step(self, state: _State, number: Any, data: Any) -> tuple[_State, Any, Any]:
        """One step: the next state, the objective's value and its gradient."""
        order, batch = self.batches.take(data, state.order, number, self._key(1, number))
        both = value_and_grad(self.program, **self.asked)
        value, grads = both(self._key(0, number), state.floats, *batch)
        downhill = jax.tree.map(lambda g: -self.sign * g, grads)
        updates, optimizer = self.optimizer.update(downhill, state.optimizer, state.floats)
        floats = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), state.floats, updates)
        return _State(floats, optimizer, order), value, grads

    def _key(self, purpose: int, number: Any) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(self.key, purpose), number)

    def _steps(self, state: _State, start: Any, count: Any, data: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, values = carry
            state, value, _ = self.step(state, start + i, data)
            return state, values.at[i].set(value.astype(values.dtype))

        values = jnp.zeros(BUFFER)
        state, values = jax.lax.fori_loop(0, count, body, (state, values))
        return state, values, _all_finite(state.floats)

    def advance(self, state: _State, start: int, count: int, data: Any) -> Any:
        return self._advance(state, jnp.asarray(start), jnp.asarray(count), data)

    def failure(self, state: _State, start: int, values: np.ndarray, data: Any) -> NonFiniteError:
        """Go through a failed call's steps again one by one, and say where it went wrong."""
        step = jax.jit(self.step)
        for number in range(start, start + len(values)):
            after, value, grads = step(state, jnp.asarray(number), data)
            if not (np.isfinite(value) and _all_finite(grads) and _all_finite(after.floats)):
                break
            state = after
        else:
            number -= 1
        _, batch = self.batches.take(data, state.order, number, self._key(1, number))
        finding = self._inquire(state.floats, batch, number)
        what = "the objective" if not np.isfinite(value) else "the gradient or the update"
        headline = f"At step {number} {what} is not finite."
        hint = (
            "check the data and the initial values, bound scales away from zero "
            "(jax.nn.softplus(x) + 1e-4), lower the learning rate or clip gradients "
            "(optax.clip_by_global_norm); the exception's `params` are those before this step"
        )
        error = NonFiniteError(
            headline,
            address=finding.address if finding else None,
            got=f"{finding.what}: {finding.detail}"
            if finding
            else f"{value}, with every site's value, density and gradient finite at this draw: "
            f"gradient not finite in {_bad_leaves(grads)}",
            where=finding.line if finding else None,
            fix=hint,
        )
        error.step, error.params = number, join(state.floats, self.rest)
        return error

    def _inquire(self, floats: Any, batch: Any, number: int) -> finite.Finding | None:
        try:
            return finite.find(
                lambda: self.program(floats, *batch),
                self._key(0, number),
                by_path(self.asked.get("estimators")),
            )
        except VaraxError as error:  # an error that only concrete values show, such as a support
            return finite.Finding(
                type(error).__name__, error.address, error.where or "", str(error)
            )


def _outline(program: Callable[[], Any]) -> Any:
    """A program's outputs with its random choices replaced by zeros: for shapes alone."""
    staged = stage(program)
    return staged.rebuild([jnp.zeros(v.aval.shape, v.aval.dtype) for v in staged.jaxpr.outvars])


def _all_finite(tree: Any) -> Any:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.asarray(True)


def _bad_leaves(tree: Any) -> str:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    bad = [jax.tree_util.keystr(p) or "the parameters" for p, x in paths if not _all_finite(x)]
    return ", ".join(bad) or "no parameter"
