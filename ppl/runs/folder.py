"""The folder of a run's checkpoints: their names, and who may write."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ...kernels.source import user_line
from ..errors_runs import CheckpointInUseError

PREFIX, SAVING, DELETING = "step_", ".saving_", ".deleting_"


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{PREFIX}{step:012d}"


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints that are there, by step, the newest first."""
    found = {}
    for path in folder.glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX)
        if number.isdecimal() and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items(), reverse=True))


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half written or half deleted."""
    for left in [*folder.glob(f"{SAVING}*"), *folder.glob(f"{DELETING}*")]:
        shutil.rmtree(left, ignore_errors=True)


def delete(path: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves no half of it under its name."""
    with contextlib.suppress(OSError):
        away = path.with_name(f"{DELETING}{path.name}_{os.getpid()}")
        os.replace(path, away)
        shutil.rmtree(away, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint; the path that it has now."""
    for n in range(1000):
        away = path.with_name(f"damaged_{path.name}" + (f"_{n}" if n else ""))
        if not away.exists():
            with contextlib.suppress(OSError):
                os.replace(path, away)
                return away
    return path


def lock(file: Any, folder: Path) -> None:
    """Hold the folder until this process ends or closes the file; a kill releases it."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointInUseError(
            "Another fit writes into the folder of the checkpoints.",
            expected="one run in a folder at a time",
            got=str(folder),
            where=user_line(),
            fix="wait for it to end, or take another folder",
        ) from error
    except OSError:  # a file system without locks
        return
