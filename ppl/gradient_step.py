"""Stochastic gradients of an objective, then an optimizer: the inference step of most papers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..transforms import finite
from ..transforms.derivatives import is_float, join, reverse_mode, value_and_grad
from ..transforms.direction import require_bound
from ..transforms.errors import CapabilityError, ShapeError, VaraxError
from ..transforms.expect import Estimators, by_path, expect
from ..transforms.staging import Staged, stage
from ..transforms.strategies import Strategy
from .groups import group_names, path_name, share_out, split_trained
from .steps import InferenceState, Metrics, strong


@dataclasses.dataclass(frozen=True, eq=False)
class GradientStep:
    """One step of an optimizer along an unbiased estimate of an objective's gradient.

        params_g <- params_g + update(grad_{params_g} E[objective_g(params)]),    every group g

    Args:
        objective: `objective(params)`, or `objective(params, batch)` with data: a program. Its
            value is a scalar, which trains all parameters, or one scalar for each parameter group:
            a dict whose keys are those of the params or the attributes of a module, or any other
            tree that the params' tree begins with. A group's parameters follow its scalar alone.
            All scalars come from the same draws, in one evaluation of the program. An objective
            with an argument named `step` is given the number of steps that this one has taken.
        optimizer: an optax gradient transformation (for one of its own in each group,
            `optax.multi_transform`). One that takes `value=`, such as
            `optax.contrib.reduce_on_plateau`, is given the objective's (the groups' sum), negated
            where it is maximised.
        groups: the names of those that are trained, such as `"guide"`, `("guide", "prior")` or
            `"guide/local"`; all by default. The others are constants.
        maximize: False minimises.
        using, estimators, strict: as in `vx.expect`.
        guide: `guide(params) -> Measure`, what `posterior` answers.

    The metrics are `objective`, or one for each group by its name. Baselines and control variates
    are those that each scalar would have alone: a baseline that is trained learns the share of the
    scalar of its own group.

    Raises:
        GroupError: a trained parameter belongs to no group, or a group is not a part of the params.
        ShapeError: a value of the objective is not a scalar.
        BoundDirectionError: an estimated density enters a scalar objective on the side on which
            to maximise (or minimise) it is to widen the gap to the objective with exact densities.
    """

    objective: Callable[..., Any]
    optimizer: Any
    _: dataclasses.KW_ONLY
    groups: str | Sequence[str] | None = None
    maximize: bool = True
    using: Strategy | None = None
    estimators: Estimators | None = None
    strict: bool = False
    guide: Callable[[Any], Any] | None = None

    def init(self, key: jax.Array, params: Any) -> InferenceState:
        """The optimizer's state, of the trained parameters alone, and a count."""
        trained, rest = self._split(params)
        trained = jax.tree.map(strong, trained)
        memory = {"optimizer": self.optimizer.init(trained), "steps": jnp.zeros((), int)}
        return InferenceState(join(trained, rest), memory)

    def step(
        self, key: jax.Array, state: InferenceState, batch: Any
    ) -> tuple[InferenceState, Metrics]:
        """One update. The draws depend on the key alone."""
        metrics, grads = self.gradient(key, state, batch)
        trained, rest = self._split(state.params)
        sign = -1.0 if self.maximize else 1.0
        downhill = jax.tree.map(lambda g: sign * g, grads)
        value = sign * sum(metrics.values())  # some transformations watch it (reduce_on_plateau)
        updates, optimizer = optax.with_extra_args_support(self.optimizer).update(
            downhill, state.memory["optimizer"], trained, value=value
        )
        trained = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), trained, updates)
        memory = {"optimizer": optimizer, "steps": state.memory["steps"] + 1}
        return InferenceState(join(trained, rest), memory), metrics

    def gradient(
        self, key: jax.Array, state: InferenceState, batch: Any = None
    ) -> tuple[Metrics, Any]:
        """Unbiased estimates of the objective and of its gradient.

        The gradient has the tree of the params, with None for what is not trained; each group's
        leaves are the derivatives of that group's scalar.
        """
        trained, rest = self._split(state.params)
        program = self._program(state, rest, batch)
        asked = {"using": self.using, "estimators": self.estimators, "strict": self.strict}
        staged = stage(lambda: program(trained))
        outline = self._require_scalars(_outline(staged))
        if jax.tree_util.all_leaves([outline]):
            require_bound(staged, "lower" if self.maximize else "upper", self._where)
            value, grads = value_and_grad(program, **asked)(key, trained)
            return {"objective": value}, grads
        names = group_names(outline)
        share = share_out(names, trained, rest, self._where)
        values, grads = _together(program, key, trained, asked)
        own = jax.tree.map(lambda i, *candidates: candidates[i], share, *grads)
        return dict(zip(names, values, strict=True)), own

    def posterior(self, state: InferenceState) -> Any:
        """The guide at the present parameters: a measure."""
        if self.guide is None:
            raise CapabilityError(
                "This step does not know its guide.",
                expected="GradientStep(..., guide=lambda params: a measure)",
                got=repr(self.objective),
                where=self._where,
            )
        return self.guide(state.params)

    def diagnose(self, key: jax.Array, state: InferenceState, batch: Any) -> finite.Finding | None:
        """The first site, or the gradient, that is not finite in this step."""
        trained, rest = self._split(state.params)
        program = self._program(state, rest, batch)
        try:
            found = finite.find(lambda: program(trained), key, by_path(self.estimators))
        except VaraxError as error:  # an error that only concrete values show, such as a support
            name, line = type(error).__name__, error.where or ""
            return finite.Finding(name, error.address, line, str(error))
        if found is not None:
            return found

        @jax.jit
        def gradient(trained: Any) -> Any:
            here = dataclasses.replace(state, params=join(trained, rest))
            return self.gradient(key, here, batch)[1]

        leaves = jax.tree_util.tree_leaves_with_path(gradient(trained))
        bad = [path_name(path) or "the params" for path, x in leaves if not np.isfinite(x).all()]
        where = f"not finite in {', '.join(bad)}" if bad else "finite"
        detail = f"{where}, with every site's value, density and gradient finite at this draw"
        return finite.Finding("the objective's gradient", None, "", detail)

    # ---- the objective as a program of what is trained

    def _split(self, params: Any) -> tuple[Any, Any]:
        groups = (self.groups,) if isinstance(self.groups, str) else self.groups
        return split_trained(params, groups, self._where)

    def _program(self, state: InferenceState, rest: Any, batch: Any) -> Callable[[Any], Any]:
        data = () if batch is None else (batch,)
        number = {"step": state.memory["steps"]} if _takes_step(self.objective) else {}
        return lambda trained: self.objective(join(trained, rest), *data, **number)

    @property
    def _where(self) -> str:
        function = inspect.unwrap(self.objective)
        code = getattr(function, "__code__", None)
        name = getattr(function, "__name__", type(function).__name__)
        return name if code is None else f"{code.co_filename}:{code.co_firstlineno} ({name})"

    def _require_scalars(self, outline: Any) -> Any:
        leaves = jax.tree.leaves(outline)
        if not leaves or any(getattr(x, "shape", None) != () for x in leaves):
            raise ShapeError(
                "An objective is one number, or one for each parameter group.",
                expected="a scalar, or a dict of scalars whose keys are those of the params",
                got=", ".join(str(getattr(x, "shape", type(x).__name__)) for x in leaves)
                or "nothing",
                where=self._where,
                fix="return the mean over data points, for example",
            )
        return outline


def _together(
    program: Callable[[Any], Any], key: jax.Array, trained: Any, asked: dict[str, Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Estimates of a program's scalars, and the gradient of each by itself in everything.

    One evaluation of the program, linearised once and transposed by scalar. What a scalar does not
    depend on stays out of its transpose: no zero meets an infinity there.
    """

    def scalars(trained: Any) -> list[Any]:
        found = jax.tree.leaves(program(trained))
        return [x if is_float(x) else jnp.asarray(x, float) for x in found]

    with reverse_mode():
        values, push = jax.linearize(lambda x: expect(scalars, **asked)(key, x), trained)
        each = range(len(values))
        pulls = [jax.linear_transpose(lambda t, i=i: push(t)[i], trained) for i in each]
        return values, [pulls[i](jnp.ones_like(values[i]))[0] for i in each]


def _takes_step(objective: Callable[..., Any]) -> bool:
    """Whether an objective has an argument named `step` that is not bound yet."""
    try:
        names = inspect.signature(objective).parameters
    except (TypeError, ValueError):  # a builtin
        return False
    return "step" in names and "step" not in getattr(objective, "keywords", {})


def _outline(staged: Staged) -> Any:
    """A program's outputs as zeros: for shapes alone."""
    return staged.rebuild([jnp.zeros(v.aval.shape, v.aval.dtype) for v in staged.jaxpr.outvars])
