"""`@vx.model`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..kernels.source import user_line
from ..transforms.errors import UncalledModelError
from .measure import Measure

_OF_A_MEASURE = {name for name in dir(Measure) if name[0] != "_"} | {"program", "name", "original"}


class Model:
    """A generative program. Calling it with arguments gives a `Measure`; nothing runs yet.

    Arguments are anything: arrays, Python numbers, Equinox modules. Parameters are arguments.

    Raises:
        UncalledModelError: what a measure has (`simulate`, `log_density`) is asked of the model.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Measure:
        """The measure on the program's choices, given its arguments."""
        name = getattr(self.function, "__name__", "model")
        return Measure(lambda: self.function(*args, **kwargs), name)

    def __get__(self, instance: Any, owner: type | None = None) -> Model:
        """As a method: `self` is the first argument."""
        return self if instance is None else Model(functools.partial(self.function, instance))

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_A_MEASURE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        called = getattr(self.function, "__name__", "model")
        raise UncalledModelError(
            "This is not a measure.",
            expected="a model called with its arguments",
            got=f"{self!r}, of which `{name}` was asked",
            where=user_line(),
            fix=f"call the model: {called}(...)",
        )

    def __repr__(self) -> str:
        return f"Model({getattr(self.function, '__name__', self.function)})"


def model(function: Callable[..., Any]) -> Model:
    """Make a function that calls `vx.sample` a `Model`."""
    return Model(function)
