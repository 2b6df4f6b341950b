"""A model's posterior as a function on R^D, and measures on R^D as measures on a model's choices.

    m.potential()            -log p(T(u), data) - log |det dT/du|, what samplers and optimisers take
    vx.constrain(noise, m)   the image of a measure on u under T: a guide for m

T maps every choice from R^n onto its support, in the order of the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms.choices import Choices, check, flatten, nest
from ..transforms.errors import CapabilityError, ShapeError, show_address
from ..transforms.inference import Image
from ..transforms.layout import layout
from ..transforms.nested import bind_nested
from ..transforms.site import Address
from ..transforms.staging import stage
from ..transforms.unconstrained import Point, Space
from .measure import Measure

Array = jax.Array


class Potential:
    """Minus the log density of a measure's choices on R^D, Jacobian included.

        potential = model(data).potential()
        u = potential.initial(key)
        potential(u), jax.grad(potential)(u)
        potential.constrain(u)                  # the choices

    u is a nested dict like the choices. All methods can be traced, batched and differentiated.

    Attributes:
        measure: whose potential it is.
        shapes: of u, by address (`"outer/inner"`).
        size: D.

    Raises:
        CapabilityError: a choice is discrete or may be absent, or a density is an estimate.
    """

    def __init__(self, measure: Measure):
        self.measure = measure
        self._space = Space.of(stage(measure.program), f"The potential of {measure.name}")
        self.shapes = {show_address(a): shape for a, shape in self._space.shapes.items()}
        self.size = self._space.size
        self.kept: dict[Any, Any] = {}  # what `initial` has compiled

    def __call__(self, u: Choices) -> Array:
        """-log p(T(u), data) - log |det dT/du|: what NumPyro's samplers take."""
        return -self.log_density(u)

    def log_density(self, u: Choices) -> Array:
        """log p(T(u), data) + log |det dT/du|: what blackjax's samplers take."""
        point = self._at(u)
        return point.log_density + point.log_det

    def constrain(self, u: Choices) -> dict[str, Any]:
        """The choices T(u)."""
        return nest(self._at(u).values)

    def recorded(self, u: Choices) -> dict[str, Any]:
        """What the program records at T(u): deterministic values, observations."""
        return nest(self._at(u).record.recorded)

    def factors(self, u: Choices) -> dict[str, Any]:
        """The log weights of `vx.factor` at T(u), by address."""
        return nest(self._space.factors(self._flat(u)))

    def unconstrain(self, choices: Choices) -> dict[str, Any]:
        """u of the choices.

        Raises:
            MissingAddressError, UnknownAddressError, ShapeError: as for `Measure.log_density`.
        """
        given = check(flatten(choices), self._space.entries, complete=True, what="unconstrain")
        return nest(self._space.inverse(given)[0])

    def ravel(self, u: Choices) -> Array:
        """All of u in one vector, shape [D], in program order."""
        return self._space.ravel(self._flat(u))

    def unravel(self, vector: Array) -> dict[str, Any]:
        """The inverse of `ravel`."""
        if jnp.shape(vector) != (self.size,):
            raise ShapeError(
                "This is not a vector of all unconstrained values.",
                expected=f"shape ({self.size},)",
                got=f"shape {jnp.shape(vector)}",
                where=user_line(),
                fix="jax.vmap(potential.unravel) for several",
            )
        return nest(self._space.unravel(vector))

    @property
    def names(self) -> list[str]:
        """Of the D numbers, in the order of `ravel`: `beta[0]`, `local/z[1,2]`."""
        found = []
        for name, shape in self.shapes.items():
            for i in range(math.prod(shape)):
                at = ",".join(map(str, np.unravel_index(i, shape)))
                found.append(f"{name}[{at}]" if shape else name)
        return found

    def initial(
        self,
        key: Array,
        chains: int | None = None,
        strategy: str | Choices | Measure = "uniform",
    ) -> dict[str, Any]:
        """A point where the density and its gradient are finite: see `initial.find`."""
        from .initial import find

        return find(self, key, chains, strategy)

    def _at(self, u: Choices) -> Point:
        return self._space.at(self._flat(u))

    def _flat(self, u: Choices) -> dict[Address, Array]:
        flat = {a: jnp.asarray(x) for a, x in flatten(u).items()}
        expected = self._space.shapes
        if {a: x.shape for a, x in flat.items()} != expected:
            raise ShapeError(
                f"This is not a point of the unconstrained space of {self.measure.name}.",
                expected=_shown(expected),
                got=_shown({a: x.shape for a, x in flat.items()}),
                where=user_line(),
                fix="potential.initial(key), potential.unconstrain(choices) and "
                "potential.unravel(vector) give one",
            )
        return flat

    def __repr__(self) -> str:
        return f"Potential({self.measure.name}, D={self.size})"


def _shown(shapes: Mapping[Address, tuple[int, ...]]) -> str:
    return "{" + ", ".join(f"{show_address(a)}: {shape}" for a, shape in shapes.items()) + "}"


def constrain(noise: Measure, model: Measure) -> Measure:
    """The image of a measure on R^D in the choices of a model: a guide with exact density.

        @vx.model
        def noise(phi):
            u = vx.sample("mu", d.Normal(phi["m"], 1.0))
            vx.sample("tau", d.Normal(phi["a"] + phi["b"] * u, 0.5))  # in R; the model's: positive

        guide = lambda phi: vx.constrain(noise(phi), model(data))

    Args:
        noise: a measure whose choices are the u of the model's, by the same addresses, or by others
            that hold all D numbers one after the other.
        model: whose unobserved choices these are. Its density does not matter, its supports do.

    Raises:
        CapabilityError: a choice of the model is discrete or may be absent.
        ShapeError: the sizes differ.
    """
    for m in (noise, model):
        if not isinstance(m, Measure):
            raise CapabilityError(
                "This is not a measure.",
                expected="a model called with its arguments",
                got=repr(m),
                where=user_line(),
                fix="vx.constrain(noise(phi), model(data))",
            )
    name, line = f"constrain({noise.name}, {model.name})", user_line()

    def program() -> dict[str, Any]:
        staged = stage(model.program)
        space = Space.of(staged, name)
        given = {a: e.shape for a, e in layout(stage(noise.program).jaxpr).items()}
        same = given == space.shapes
        if not same and (given.keys() == space.shapes.keys() or _size(given) != space.size):
            raise ShapeError(
                f"{name}: the noise does not fit the model's unconstrained choices.",
                expected=f"{_shown(space.shapes)}, or {space.size} numbers at other addresses",
                got=f"{_shown(given)}: {_size(given)} numbers",
                where=line,
                fix="model.potential().shapes has the shapes",
            )
        entries = space.entries
        values = bind_nested(
            model.program,
            Image(name),
            list(entries),
            entries,
            proposal=lambda _: noise.program,
            name=name,
            line=line,
        )
        return nest(values)

    return Measure(program, name)


def _size(shapes: Mapping[Address, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
