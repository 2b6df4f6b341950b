"""The training loop on the host: calls to the device, and what happens between them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..transforms.derivatives import join
from ..transforms.errors import NonFiniteError
from .batches import Batches
from .errors_runs import CheckpointError, DataExhaustedWarning
from .progress import Progress
from .result import FitResult
from .runs.arrays import to_device, to_host
from .runs.calls import INIT, Calls, ordered, purpose_key
from .runs.feed import Feed
from .runs.fingerprint import fingerprint
from .runs.keeper import Keeper
from .runs.run import History, Run, Watcher, name_of
from .steps import InferenceStep, on_device, split_arrays

SECONDS = 0.25  # how long a call to the device should take, for the progress bar


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run is; replaced as a whole, so that an interrupt finds no half of it."""

    now: Any  # the step's arrays, the permutation
    done: int  # steps
    source: str | None = None  # where an iterator of batches is, in its own words


class Loop:
    """One fit.

    Args:
        step: the inference step.
        params: where it begins.
        key: all randomness.
        source: of the batches.
        maximize: whether the objective is maximised, for the callbacks.
        about: what the result knows besides: its model and guide.
    """

    def __init__(
        self,
        step: InferenceStep,
        params: Any,
        key: jax.Array,
        source: Batches | Feed,
        maximize: bool = True,
        about: Mapping[str, Any] | None = None,
    ):
        self.about = dict(about or {})
        self.placement, self.source, self.maximize = source.placement, source, maximize
        state = on_device(step.init(purpose_key(key, INIT, 0), params))
        arrays, self.rest = split_arrays(state)
        self.key = self.placement.everywhere(key)
        start = self.placement.everywhere((arrays, source.start()))
        self.at = Position(start, 0)
        self.calls = Calls(step, self.rest, source, source.most)
        self.earlier = 0.0  # seconds of the runs that this one continues

    def run(
        self,
        steps: int,
        *,
        progress: bool,
        watchers: Sequence[Watcher] = (),
        keeper: Keeper | None = None,
        resume: bool = True,
    ) -> FitResult:
        """All steps, in calls of a length that keeps the progress bar alive."""
        self.began, self.steps, self.history = time.perf_counter(), steps, History(steps)
        self.keeper, interrupted, stopped = keeper, False, None
        with self._opened(resume) as resumed:
            bar = Progress(steps, shown=progress and self.placement.leads, done=self.at.done)
            try:
                with bar:
                    stopped = self._stopped_by([w for w in watchers if resumed and _is_rule(w)])
                    for values in () if stopped else self._chunks(watchers):
                        bar.update(len(next(iter(values.values()))), values)
                        self._save(due=True)
                        if stopped := self._stopped_by(watchers):
                            break
            except KeyboardInterrupt:
                interrupted = True
            except Exception as error:
                if not isinstance(error, NonFiniteError):
                    self._save()
                with contextlib.suppress(AttributeError):
                    error.result = self._result()  # type: ignore[attr-defined]
                raise
            self._save()
        if not stopped and not interrupted and self.at.done < steps:
            stopped = f"the data ended after {self.at.done} of {steps} steps"
            warnings.warn(
                f"{stopped}; a generator function or an iterable in the place of an iterator "
                "begins anew",
                DataExhaustedWarning,
                stacklevel=3,
            )
        return self._result(interrupted, stopped)

    # ---- calls to the device

    def _chunks(self, watchers: Sequence[Watcher]) -> Iterator[dict[str, np.ndarray]]:
        """The measurements of call after call; `self.at` is then after that call."""
        ends = [w.every for w in watchers]
        ends += [self.keeper.settings.every] if self.keeper else []
        cadences = [every for every in ends if every]

        def load(done: int, wanted: int) -> tuple[Any, int, Any]:
            count = min(wanted, self.source.most, self.steps - done)
            count = min([count, *(every - done % every for every in cadences)])
            return self.source.chunk(count)

        wanted, first, ready = 1, True, load(self.at.done, 1)
        while ready[1]:
            data, count, place = ready
            at, clock = self.at, time.perf_counter()
            now, values, sound = self.calls(at.now, self.key, at.done, count, data)
            done = at.done + count
            if self.source.ahead:  # while the device works, the batches of the next call
                ready = load(done, wanted)
            if not sound:
                raise self.calls.failure(at.now, self.key, at.done, count, data)
            values = {name: np.asarray(values[name])[:count] for name in ordered(values)}
            self.history.write(at.done, values)
            self.at = Position(now, done, place)
            took = time.perf_counter() - clock
            faster = 8 if first else max(1, int(count * min(2.0, SECONDS / took)))
            (wanted,), first = self.placement.agreed(faster), False
            yield values
            if not self.source.ahead:
                ready = load(done, wanted)
        if self.source.failure is not None:
            raise self.source.failure

    # ---- between them

    def _view(self) -> Run:
        """What callbacks see."""
        done = self.at.done
        state = self.placement.local(join(self.at.now[0], self.rest))
        columns = self.history.columns(done)
        return Run(done, self.steps, state, columns, self._seconds(), self.maximize)

    def _stopped_by(self, watchers: Sequence[Watcher]) -> str | None:
        """Call the watchers that are due; who asked to stop, if any did."""
        due = [w for w in watchers if w.due(self.at.done)]
        if not due:
            return None
        view = self._view()
        asked = [w for w in due if w.stops(view)]  # all are called
        (stop,) = self.placement.agreed(bool(asked))
        names = ", ".join(name_of(w.call) for w in asked) or "process 0"
        return f"step {self.at.done}: {names}" if stop else None

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    def _result(self, interrupted: bool = False, stopped: str | None = None) -> FitResult:
        view = self._view()
        columns = {name: column.copy() for name, column in view.columns.items()}
        history: Any = columns if columns else np.zeros(0)
        if columns.keys() == {"objective"}:
            history = columns["objective"]
        params, seconds = view.params, view.seconds
        return FitResult(params, history, seconds, interrupted, view.state, stopped, **self.about)

    # ---- checkpoints

    def _fingerprint(self) -> dict[str, Any]:
        source, now = self.source, self.at.now
        return fingerprint(
            state=now[0],
            rest=self.rest,
            key=self.key,
            batch_size=source.size,
            data=source.example,
            fixed_data=isinstance(source, Batches),
            devices=self.placement.devices,
            program=lambda: self.calls.lower(now, self.key, source.outline()).as_text(),
        )

    @contextlib.contextmanager
    def _opened(self, resume: bool) -> Iterator[bool]:
        """Hold the folder of the checkpoints; whether an earlier run is continued.

        On several hosts process 0 decides, and the others read the same folder.
        """
        keeper, found, failure = self.keeper, None, None
        if keeper is None:
            yield False
            return
        with contextlib.ExitStack() as stack:
            self.facts = {"run": self._fingerprint()}
            try:
                if self.placement.leads:
                    stack.enter_context(keeper.open())
                    if resume:
                        found = keeper.find(self.facts["run"], self.steps)
                    else:
                        keeper.require_empty()
            except CheckpointError as error:
                failure = error
            step, failed = self.placement.agreed(
                found[1]["step"] if found else -1, failure is not None
            )
            if failed:
                raise failure or CheckpointError("Process 0 cannot use the checkpoints.")
            if step >= 0:
                self._restore(*(found or keeper.at(step)))
            yield step >= 0

    def _restore(self, path: Any, facts: dict[str, Any]) -> None:
        """Go to where a checkpoint was made."""
        assert self.keeper is not None
        arrays = self.keeper.read(path, facts)
        like, tree = jax.tree.flatten(self.at.now)
        leaves = [to_device(arrays[f"state{i}"], x) for i, x in enumerate(like)]
        columns = {name: arrays[f"history{i}"] for i, name in enumerate(facts["history"])}
        self.history.write(0, columns)
        self.earlier = facts["seconds"]
        self.at = Position(jax.tree.unflatten(tree, leaves), facts["step"], facts["source"])
        self.source.seek(facts["step"], facts["source"])

    def _save(self, due: bool = False) -> None:
        """Write a checkpoint, if there are any and (with `due`) it is time."""
        at, keeper = self.at, self.keeper
        if keeper is None or not self.placement.leads or (due and not keeper.due(at.done)):
            return
        columns = self.history.columns(at.done)
        arrays = {f"state{i}": to_host(x) for i, x in enumerate(jax.tree.leaves(at.now))}
        arrays |= {f"history{i}": x for i, x in enumerate(columns.values())}
        facts = {"seconds": self._seconds(), "history": [*columns], "source": at.source}
        keeper.save(at.done, arrays, self.facts | facts)


def _is_rule(watcher: Watcher) -> bool:
    """Whether it can be asked again at the step where a run is continued: it looks back only."""
    return getattr(watcher.call, "of_history", False)
