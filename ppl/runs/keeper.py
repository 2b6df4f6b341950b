"""Checkpoints of a fit: a folder of folders, one for each saved step.

    folder/step_000000001000/arrays/...     the step's arrays, the permutation, the history: Orbax
                             run.json       step, seconds, fingerprint, names, types and shapes
                             manifest.json  sha256 of all files (see `manifest`)

A checkpoint is written under another name and renamed when it is complete and on the disk. It is
verified before it is read. The one before it is deleted only after that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.source import user_line
from ..errors_runs import (
    CheckpointDamagedError,
    CheckpointDamagedWarning,
    CheckpointExistsError,
    CheckpointMismatchError,
    CheckpointWriteError,
    CheckpointWriteWarning,
)
from . import arrays as storage
from . import manifest
from .checkpoints import Checkpoints
from .fingerprint import differences
from .folder import SAVING, clear_leftovers, delete, lock, path_of, set_aside, steps_in

FORMAT = 1


class Keeper:
    """Writes and finds the checkpoints of one folder."""

    def __init__(self, settings: Checkpoints):
        storage.orbax()
        self.settings = settings
        self.folder = Path(settings.folder).absolute()
        self.saved_at = time.monotonic()
        self.saved: int | None = None  # the newest step that is safe

    @contextlib.contextmanager
    def open(self) -> Iterator[Keeper]:
        """Make the folder, keep other processes out of it, remove what a kill left half-done.

        Raises:
            CheckpointWriteError, CheckpointInUseError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("a")
        except OSError as error:
            raise CheckpointWriteError(
                "The folder of the checkpoints cannot be written.",
                expected="a folder that is there or can be made",
                got=f"{self.folder}: {error.strerror}",
                where=user_line(),
            ) from error
        with file:
            lock(file, self.folder)
            clear_leftovers(self.folder)
            yield self

    # ---- reading

    def require_empty(self) -> None:
        """Raise where the folder has the checkpoints of a run, even damaged ones."""
        if steps := steps_in(self.folder):
            raise CheckpointExistsError(
                "The folder has the checkpoints of another run.",
                expected="a folder without checkpoints, as resume=False starts anew",
                got=f"{self.folder}, up to step {max(steps)}",
                where=user_line(),
                fix="resume=True continues that run; for a new one take another folder, or delete "
                "this one",
            )

    def find(self, mine: dict[str, Any], steps: int) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is as it was written, and what its `run.json` says.

        Damaged newer ones are renamed, so that they are not taken for the newest again.

        Args:
            mine: the fingerprint of this run.
            steps: how many it is to take.

        Raises:
            CheckpointDamagedError: there are checkpoints, and all are damaged.
            CheckpointMismatchError: it is of another run, or beyond the last step.
        """
        damaged: list[tuple[Path, manifest.Damage]] = []
        for path in steps_in(self.folder).values():
            try:
                manifest.verify(path)
            except manifest.Damage as damage:
                damaged.append((path, damage))
                continue
            facts = _facts(path)
            self._require_same(path, facts, mine, steps)
            for bad, damage in damaged:
                warnings.warn(
                    f"a checkpoint is damaged: {damage}. The run goes on from {path.name}; the "
                    f"damaged one is now {set_aside(bad).name}",
                    CheckpointDamagedWarning,
                    stacklevel=2,
                )
            self.saved = facts["step"]
            return path, facts
        if damaged:
            raise _all_damaged(damaged)
        return None

    def at(self, step: int) -> tuple[Path, dict[str, Any]]:
        """The checkpoint of a step that another process has verified."""
        path = path_of(self.folder, step)
        return path, _facts(path)

    def _require_same(self, path: Path, facts: Any, mine: dict[str, Any], steps: int) -> None:
        if facts["format"] != FORMAT:
            found = [f"format {facts['format']}, and this version of varax reads {FORMAT}"]
        else:
            found = differences(facts["run"], mine, self.settings.same_program)
        if found:
            raise CheckpointMismatchError(
                "The checkpoint is of another run.",
                expected=f"a run that {path} can continue",
                got="; ".join(found),
                where=user_line(),
                fix="take another folder for this run; to go on with a changed objective or "
                "optimizer: vx.Checkpoints(folder, same_program=False)",
            )
        if facts["step"] > steps:
            raise CheckpointMismatchError(
                "The checkpoint is beyond the last step of this run.",
                expected=f"at most {steps} steps",
                got=f"{path}: {facts['step']} steps taken",
                where=user_line(),
                fix="more steps, or another folder",
            )

    @staticmethod
    def read(path: Path, facts: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint that `find` found, by name."""
        like = {name: (tuple(shape), _dtype(kind)) for name, (kind, shape) in facts["form"].items()}
        return storage.load(path / "arrays", like)

    # ---- writing

    def due(self, step: int) -> bool:
        """Whether it is time to save after this many steps."""
        every, seconds = self.settings.every, self.settings.seconds
        seconds = 60.0 if every is None and seconds is None else seconds
        late = seconds is not None and time.monotonic() - self.saved_at >= seconds
        return late or (every is not None and step % every == 0)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], facts: dict[str, Any]) -> bool:
        """Write a checkpoint; warn and return False where the file system refuses."""
        if step == self.saved:
            return True
        self.saved_at = time.monotonic()
        form = {name: (x.dtype.name, list(x.shape)) for name, x in arrays.items()}
        facts = {"format": FORMAT, "step": step, "form": form, **facts}
        new = self.folder / f"{SAVING}{step}_{os.getpid()}"
        try:
            new.mkdir()
            storage.save(new / "arrays", arrays)
            manifest.write(new / "run.json", json.dumps(facts, indent=1))
            manifest.seal(new)
            name = path_of(self.folder, step)
            if name.exists():
                delete(name)
            manifest.publish(new, name)
        except (OSError, ValueError) as error:
            shutil.rmtree(new, ignore_errors=True)
            safe = "there is none yet" if self.saved is None else f"step {self.saved} is intact"
            warnings.warn(
                f"the checkpoint of step {step} could not be written into {self.folder}: {error}. "
                f"The run goes on; the previous checkpoint: {safe}",
                CheckpointWriteWarning,
                stacklevel=2,
            )
            return False
        self.saved = step
        for path in reversed([*steps_in(self.folder).values()][self.settings.keep :]):
            delete(path)
        return True


def _facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text(encoding="utf-8"))


def _dtype(name: str) -> np.dtype:
    """The type of a name, also of those that only JAX has."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _all_damaged(damaged: list[tuple[Path, manifest.Damage]]) -> CheckpointDamagedError:
    newest = damaged[0][1]
    error = CheckpointDamagedError(
        "The checkpoint is damaged, and there is no older one to go back to.",
        expected="files as they were written",
        got="; ".join(f"{damage.file}: {damage.what}" for _, damage in damaged),
        where=user_line(),
        fix="bring the file back from a copy, or start anew in another folder",
    )
    error.file = str(newest.file)
    return error
