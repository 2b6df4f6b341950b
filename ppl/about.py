"""What a fit is about: the measure whose posterior is sought, and the guide that stands for it."""

from __future__ import annotations

from typing import Any

from ..kernels.source import user_line
from ..transforms.errors import CapabilityError
from .measure import Measure
from .model import Model


def about(step: Any, data: Any, model: Any = None, guide: Any = None) -> dict[str, Any]:
    """`model` and `guide` of a `FitResult`: those given, else what the step or objective knows.

    An objective such as `AutoGuide.elbo` has both; a model of minibatches becomes that of all data.

    Raises:
        CapabilityError: the model is a `Model` that was not called, the guide no function.
    """
    known = [step, getattr(step, "objective", None)]
    is_found = model is None
    model = _first(known, "model") if is_found else model
    guide = guide if guide is not None else _first(known, "guide")
    if callable(model) and not _is_measure(model):
        model = model(data) if is_found and data is not None else model
    if isinstance(model, Model) or not (model is None or callable(model) or _is_measure(model)):
        raise CapabilityError(
            "The model of a fit is a measure.",
            expected="model=model(data), the observations included, or a function of the params",
            got=repr(model),
            where=user_line(),
        )
    if guide is not None and not callable(guide):
        raise CapabilityError(
            "The guide of a fit is a function of its params.",
            expected="guide=lambda params: guide(params)",
            got=repr(guide),
            where=user_line(),
        )
    return {"model": model, "guide": guide}


def _first(known: list[Any], name: str) -> Any:
    found = (getattr(x, name, None) for x in known)
    return next((x for x in found if x is not None), None)


def _is_measure(x: Any) -> bool:
    return isinstance(x, Measure)
