"""Guides for free: `vx.autoguide(model, kind)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ...kernels.source import user_line
from ...transforms.choices import Choices
from ...transforms.errors import CapabilityError, GuideKindError
from ..language import sample
from ..measure import Measure
from ..potential import Potential, constrain
from .amortised import AmortisedGuide, amortise
from .flow import FlowGuide
from .gaussian import FullRank, Laplace, LowRank, MeanField
from .start import FULL, Start, find_start
from .structured import Structured, find_parents

Array = jax.Array
KINDS = ("mean_field", "full_rank", "low_rank", "structured", "flow", "laplace", "amortised")
ADDRESS = "unconstrained"  # of the draw of u


class Family(Protocol):
    """Distributions on R^D with their parameters.

    Attributes:
        inverts: whether the density at a given value is cheap; if not, `distribution` is a `Flow`.
    """

    inverts: bool

    def init(self, key: Array) -> Any:
        """Parameters."""
        ...

    def distribution(self, params: Any) -> Any:
        """The distribution of u, [D]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class AutoGuide:
    """A family of measures on a model's choices: `guide(params)` is one of them.

        guide = vx.autoguide(model(data), "full_rank")
        result = vx.fit(guide.elbo, guide.init(key), optax.adam(0.01), steps=2000, key=key)
        result.summary()

    u has a distribution on R^D, and the choices are its image T(u), as in `vx.constrain`. It serves
    every objective: `vx.objectives.iwelbo(model(data), guide(params), {}, k=10)`.

    Attributes:
        model: the measure whose choices are guided; with minibatches, `batch -> measure`.
        family: the distributions of u.
        potential: of the model.
        start: the Gaussian that the family starts from.
        draws: per step, for `elbo`.
    """

    model: Measure | Callable[[Any], Measure]
    family: Family
    potential: Potential
    start: Start
    draws: int = 1

    def init(self, key: Array) -> Any:
        """The first parameters."""
        return self.family.init(key)

    def __call__(self, params: Any) -> Measure:
        """The guide with these parameters, over the model's unobserved addresses."""
        return constrain(self.noise(params), self.potential.measure)

    def noise(self, params: Any) -> Measure:
        """The measure on u, one vector at the address `unconstrained`."""
        q = self.family.distribution(params)
        return Measure(lambda: sample(ADDRESS, q), type(self.family).__name__)

    @property
    def elbo(self) -> Elbo:
        """The evidence lower bound, an objective of the params (and a batch)."""
        return Elbo(self)

    def __repr__(self) -> str:
        name = type(self.family).__name__
        return f"AutoGuide({name}, {self.potential.measure.name}, D={self.potential.size})"


@dataclasses.dataclass(frozen=True, eq=False)
class Elbo:
    """E_q[log p(T(u), data) + log |det dT/du| - log q(u)], an average over draws.

    The gradient is that of the path alone: its variance is zero where q is the posterior (Roeder,
    Wu and Duvenaud 2017). Only for flows in more than 200 dimensions it is the whole gradient.
    """

    guide: AutoGuide

    @property
    def model(self) -> Any:
        """The measure whose evidence is bounded."""
        return self.guide.model

    def __call__(self, params: Any, batch: Any = None) -> Array:
        """The bound, in nats."""
        guide = self.guide
        potential = guide.potential
        if not isinstance(guide.model, Measure):
            potential = guide.model(batch).potential()
        noise = guide.noise(params)

        def drawn() -> tuple[Array, Array]:
            if not guide.family.inverts:
                q = guide.family.distribution(params)
                return q.draw(ADDRESS, path=potential.size <= FULL)
            trace = noise.simulate()
            return trace[ADDRESS], noise.detach().log_density(trace.choices)

        def one(_: Any) -> Array:
            u, log_q = drawn()
            return potential.log_density(potential.unravel(u)) - log_q

        if guide.draws == 1:
            return one(None)
        return jax.vmap(one)(jnp.arange(guide.draws)).mean()


def autoguide(
    model: Measure | Callable[[Any], Measure],
    kind: str = "full_rank",
    *,
    key: Array | None = None,
    start: str | Choices | Start = "uniform",
    draws: int = 1,
    rank: int | None = None,
    layers: int = 4,
    spline: bool = False,
    batch: Any = None,
) -> AutoGuide | AmortisedGuide:
    """A guide over all unobserved choices of a model.

    Args:
        model: a measure with observations (`obs=`, `.condition({...})`) and continuous choices; or,
            with `batch`, a function from a batch of the data to one.
        kind: "mean_field": independent normals on the unconstrained space; "full_rank": a normal
            with any covariance; "low_rank": diagonal plus `rank` directions; "structured": normals
            given their parents in the model's own graph, scales included; "flow": an inverse
            autoregressive flow; "laplace": the Gaussian by the curvature where the search ends, not
            trained; "amortised": `vx.amortise`, where `model` is a function of one data point and
            `batch` some of them.
        key: of the search for the start; `jax.random.key(0)` by default.
        start: where the search begins: "uniform", "prior" or choices, as in `Potential.initial`; or
            the result of a search, `Start`. The search makes the guide independent of the units
            of the parameters: predictors need no centring and no scaling.
        draws: of each step of `elbo`.
        rank: of "low_rank"; by default about the square root of the dimension.
        layers, spline: of "flow".
        batch: an example of the batches that `elbo` is given.

    Raises:
        GuideKindError: there is no such kind, or it does not serve so many dimensions.
        CapabilityError: a choice is discrete or may be absent.
        InitialisationError: nowhere is the density finite: names the site.
    """
    if kind == "amortised" and not isinstance(model, Measure):
        return amortise(model, batch)
    example = model if isinstance(model, Measure) else _of_batch(model, batch)
    if kind not in KINDS or kind == "amortised":
        raise GuideKindError(
            "There is no such kind of guide.",
            expected=", ".join(KINDS),
            got=repr(kind),
            where=user_line(),
            fix='"amortised" is for a function of one data point: vx.amortise(model, example)'
            if kind == "amortised"
            else None,
        )
    potential = example.potential()
    d = potential.size
    if (d > FULL and kind == "structured") or d < 1:
        raise GuideKindError(
            f"A {kind} guide does not serve {example.name}.",
            expected=f"1 to {FULL} dimensions" if kind == "structured" else "a choice to guide",
            got=f"{d}",
            where=user_line(),
            fix='"mean_field", "low_rank" and "flow" serve more' if d else "remove an obs=",
        )
    search, pattern = jax.random.split(jax.random.key(0) if key is None else key)
    if not isinstance(start, Start):
        start = find_start(potential, search, strategy=start, refined=kind != "laplace")
    families: dict[str, Callable[[], Family]] = {
        "mean_field": lambda: MeanField(start),
        "full_rank": lambda: FullRank(start),
        "low_rank": lambda: LowRank(start, min(d, rank or max(1, round(d**0.5)))),
        "structured": lambda: Structured(start, find_parents(_energy(potential), start, pattern)),
        "flow": lambda: FlowGuide(start, layers, spline),
        "laplace": lambda: Laplace(start),
    }
    return AutoGuide(model, families[kind](), potential, start, draws)


def _energy(potential: Potential) -> Callable[[Array], Array]:
    return lambda u: potential(potential.unravel(u))


def _of_batch(model: Any, batch: Any) -> Measure:
    made = model(batch) if callable(model) and batch is not None else None
    if not isinstance(made, Measure):
        raise CapabilityError(
            "A guide needs a measure: a model called with its arguments.",
            expected="vx.autoguide(model(data), ...), or a function from a batch to a measure "
            "with an example batch=",
            got=repr(model),
            where=user_line(),
        )
    return made
