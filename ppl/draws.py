"""What samplers leave behind: draws of a model's choices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.source import user_line
from ..transforms.choices import flatten, nest
from ..transforms.errors import UnknownAddressError, show_address
from .measure import Measure


@dataclasses.dataclass(frozen=True, repr=False)
class Draws:
    """Draws of a posterior, in chains.

    Attributes:
        model: the measure that they are of.
        choices: nested dict, address -> array [chains, draws, *shape].
        stats: by name, arrays [chains, draws] such as `diverging`, `lp` (log density on the
            unconstrained space), `acceptance_rate`, `energy`, `tree_depth`, `n_steps`, `step_size`;
            or one number, such as `khat` of Pathfinder.
        seconds: wall time, compilation included.
        recorded: what the model records (`vx.deterministic`), nested like choices.
        interrupted: True where the user stopped the run (Ctrl-C); everything up to then is here.
        method: what made them.
    """

    model: Measure
    choices: dict[str, Any]
    stats: dict[str, Any]
    seconds: float
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)
    interrupted: bool = False
    method: str = ""

    @property
    def chains(self) -> int:
        """How many chains."""
        return self._shape[0]

    @property
    def draws(self) -> int:
        """Draws in each chain."""
        return self._shape[1]

    @property
    def divergences(self) -> int:
        """Trajectories whose energy error was beyond bounds: the draws there are not to be trusted.

        Step sizes that are too long for a narrow part of the posterior; a higher
        `target_acceptance` or another parameterisation helps.
        """
        return int(np.sum(self.stats.get("diverging", 0)))

    def __len__(self) -> int:
        """All draws of all chains."""
        return self.chains * self.draws

    def __getitem__(self, address: str | tuple[str, ...]) -> Any:
        """`draws["mu"]` or `draws["local", "z"]`: an array [chains, draws, *shape]."""
        path = tuple(address.split("/")) if isinstance(address, str) else tuple(address)
        known = flatten(self.choices) | flatten(self.recorded)
        if path in known:
            return known[path]
        inside = {a[len(path) :]: x for a, x in known.items() if a[: len(path)] == path}
        if inside:
            return nest(inside)
        raise UnknownAddressError(
            "These draws have no such address.",
            address=path,
            expected=f"one of {{{', '.join(map(show_address, known))}}}",
            got=show_address(path),
            where=user_line(),
            fix="nested addresses are written draws['outer', 'inner']",
        )

    def flat(self) -> dict[str, Any]:
        """The choices with chains and draws in one axis: [chains * draws, *shape]."""
        return jax.tree.map(lambda x: jnp.reshape(x, (len(self), *jnp.shape(x)[2:])), self.choices)

    def sample(self, key: jax.Array, n: int) -> dict[str, Any]:
        """`n` of the draws, with replacement: the choices, [n, *shape]."""
        at = jax.random.randint(key, (n,), 0, len(self))
        return jax.tree.map(lambda x: x[at], self.flat())

    def summary(self, **options: Any) -> Any:
        """A table of means, standard deviations, quantiles, R-hat and effective sample sizes."""
        from . import diagnosis

        return diagnosis.summarize(self, **options)

    def to_arviz(self, **options: Any) -> Any:
        """ArviZ's InferenceData (0.x) or DataTree (1.x)."""
        from . import diagnosis

        return diagnosis.to_arviz(self, **options)

    def plot(self, **options: Any) -> Any:
        """Traces and marginal densities."""
        from . import diagnosis

        return diagnosis.plot(self, **options)

    def predict(self, key: jax.Array, *args: Any, **options: Any) -> Any:
        """Predictions at the draws: see `diagnosis.predict`."""
        from . import diagnosis

        return diagnosis.predict(self, key, *args, **options)

    @property
    def _shape(self) -> tuple[int, ...]:
        arrays = [*flatten(self.choices).values(), *self.stats.values()]
        return next((np.shape(x)[:2] for x in arrays if np.ndim(x) >= 2), (0, 0))

    def __repr__(self) -> str:
        rows = [
            f"  {show_address(a)}  {list(np.shape(x)[2:]) or 'scalar'}  mean {_mean(x)}"
            for a, x in (flatten(self.choices) | flatten(self.recorded)).items()
        ]
        head = f"Draws({self.model.name}, {self.method}, chains={self.chains}, draws={self.draws}"
        if "diverging" in self.stats:
            head += f", divergences={self.divergences}"
        if "khat" in self.stats:
            head += f", khat={float(self.stats['khat']):.2f}"
        return "\n".join([f"{head}, seconds={self.seconds:.1f})", *rows])


def _mean(x: Any) -> str:
    means = np.asarray(x, float).mean((0, 1))
    if means.size <= 6:
        return np.array2string(means, precision=4, separator=", ")
    return f"from {means.min():.4g} to {means.max():.4g}"
