"""Exceptions and warnings of runs: checkpoints, and data that a fit cannot use."""

from __future__ import annotations

from ..transforms.errors import VaraxError


class DataError(VaraxError):
    """The data of a fit are empty, not numbers, or have missing values."""


class DataExhaustedWarning(UserWarning):
    """An iterator of batches ended before the fit."""


class CheckpointError(VaraxError):
    """Base class of what can be wrong with a folder of checkpoints."""


class CheckpointDamagedError(CheckpointError):
    """No checkpoint of the folder is as it was written.

    Attributes:
        file: the damaged or missing file of the newest one.
    """

    file: str


class CheckpointMismatchError(CheckpointError):
    """A checkpoint is of another model, other data or another key."""


class CheckpointExistsError(CheckpointError):
    """A new run was asked for in the folder of another."""


class CheckpointInUseError(CheckpointError):
    """Another process writes into this folder."""


class CheckpointWriteError(CheckpointError):
    """The folder cannot be written."""


class CheckpointDamagedWarning(UserWarning):
    """A checkpoint is not as it was written; an older one is used."""


class CheckpointWriteWarning(UserWarning):
    """A checkpoint could not be written; the run goes on and the previous one is intact."""
