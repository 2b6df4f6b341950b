"""Minibatches from an iterator on the host, some calls' worth at a time.

While the device works on the batches of one call, those of the next are taken from the iterator
and stacked. An iterator may be infinite, or have an end; what can be iterated anew (a loader of
batches, a generator function) is begun again at its end: an epoch.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from ...kernels.source import user_line
from ...transforms.errors import ShapeError
from ..batches import require_numbers
from ..errors_runs import DataError
from .fingerprint import form
from .placement import Placement

BYTES = 2**25  # of the batches of one call
MOST = 256  # batches of one call


def is_stream(data: Any) -> bool:
    """Whether data are batches to come, not arrays."""
    if data is None or not jax.tree_util.all_leaves([data]):
        return False
    known = hasattr(data, "__array__") or hasattr(data, "shape") or isinstance(data, (str, bytes))
    return not known and (hasattr(data, "__iter__") or hasattr(data, "__next__") or callable(data))


class Feed:
    """A source of batches, as `Batches` is: an iterator, a generator function, or an iterable."""

    size = None
    ahead = True

    def __init__(self, source: Any, placement: Placement, allow_nan: bool):
        self.source, self.placement, self.allow_nan = source, placement, allow_nan
        self.position = 0  # batches taken from the iterator, those not used yet included
        self.waiting: list[Any] = []
        self.failure: BaseException | None = None
        self.ended = False
        self._begin()
        self.example = self._first()
        leaves = jax.tree.leaves(self.example)
        self.placement.require_divisible(leaves[0].shape[0] if leaves[0].ndim else 0)
        self.most = max(1, min(MOST, BYTES // max(1, sum(x.nbytes for x in leaves))))

    def _begin(self) -> None:
        if hasattr(self.source, "__next__"):
            self.iterator = self.source
        elif hasattr(self.source, "__iter__"):
            self.iterator = iter(self.source)
        else:
            self.iterator = self.source()
        self.once = self.iterator is self.source

    def _first(self) -> Any:
        """The first batch, which stays to be used."""
        self.form = None
        first = self._next()
        if first is None:
            raise self._no_batch()
        if not jax.tree.leaves(first):
            raise DataError(
                "A batch has no arrays.",
                expected="a pytree of arrays",
                got=repr(first),
                where=user_line(),
            )
        self.waiting.append(first)
        return first

    def outline(self) -> Any:
        """A chunk, for its form."""
        return self._stacked([self.example])

    def start(self) -> Any:
        """Nothing on the device is renewed."""
        return ()

    def seek(self, done: int, state: Any) -> None:
        """After a resume: go to the batch after `done` others.

        With `load_state_dict` that is left to the source, otherwise the batches are passed over.
        """
        if state is not None and hasattr(self.source, "load_state_dict"):
            self.source.load_state_dict(json.loads(state))
            self.waiting, self.position = [], done
            self._begin()
            return
        if done:
            self.waiting = []
        while self.position < done and not self.ended:
            self.ended = self._next(used=False) is None

    def chunk(self, count: int) -> tuple[Any, int, Any]:
        """Batches for up to `count` steps, stacked, how many, and where the source is then.

        Fewer at the end of the source, or where it raised an exception, which is kept.
        """
        while len(self.waiting) < count and not self.ended and self.failure is None:
            try:
                batch = self._next()
            except Exception as error:
                self.failure = error
                break
            if batch is None:
                self.ended = True
            else:
                self.waiting.append(batch)
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        state = self._state() if not self.waiting else None
        return self._stacked(now) if now else None, len(now), state

    def take(
        self, data: Any, order: Any, number: Any, offset: Any, key: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """The batch of a step: that of its place in the chunk."""
        return order, self.placement.split(jax.tree.map(lambda x: x[offset], data))

    def _stacked(self, batches: list[Any]) -> Any:
        """[most, B, ...]: of one shape for all calls, so that one program serves them."""

        def stack(*leaves: Any) -> np.ndarray:
            out = np.zeros((self.most, *leaves[0].shape), leaves[0].dtype)
            for i, leaf in enumerate(leaves):
                out[i] = leaf
            return out

        return self.placement.put_split(jax.tree.map(stack, *batches))

    def _next(self, used: bool = True) -> Any:
        """The next batch as host arrays, None at the end."""
        found = next(self.iterator, self)  # `self`: no batch can be that
        if found is self and not self.once:
            self._begin()
            found = next(self.iterator, self)
            if found is self:
                raise self._no_batch()
        if found is self:
            return None
        self.position += 1
        return self._checked(found) if used else found

    def _checked(self, batch: Any) -> Any:
        what = f"batch {self.position - 1}"
        require_numbers(batch, self.allow_nan, what)
        batch = jax.tree.map(_host, batch)
        mine = form(batch), jax.tree.structure(batch)
        self.form = self.form or mine
        if mine != self.form:
            was, now = self.form[0], mine[0]
            changed = [at for at in [*was, *now] if was.get(at) != now.get(at)]
            at = changed[0] if changed else "(itself)"
            raise ShapeError(
                "The batches differ in their form.",
                expected=f"{at}: {was.get(at)}, as in the first one",
                got=f"{at}: {now.get(at)} in {what}",
                where=user_line(),
                fix="leave out the last, smaller batch of an epoch (drop_last=True), or pad it",
            )
        return batch

    def _state(self) -> str | None:
        """What the source says of its position, if it says it in JSON."""
        if not (hasattr(self.source, "state_dict") and hasattr(self.source, "load_state_dict")):
            return None
        try:
            return json.dumps(self.source.state_dict())
        except (TypeError, ValueError):
            return None

    def _no_batch(self) -> DataError:
        return DataError(
            "The iterator of batches gives none.",
            expected="at least one batch",
            got=repr(self.source),
            where=user_line(),
            fix="an iterator that was used before is at its end; a generator function begins anew",
        )


def _host(x: Any) -> np.ndarray:
    """As NumPy, in the type that JAX would give it."""
    array = np.asarray(x)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
