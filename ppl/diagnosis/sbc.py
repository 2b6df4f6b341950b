"""Simulation-based calibration: does an inference find the posterior of its own model?

    theta, y ~ p,   theta_1, ..., theta_S ~ inference(y),   rank = #{s: f(theta_s) < f(theta)}

is uniform on 0, ..., S for every f where the draws are independent and from p(theta | y) (Talts,
Betancourt, Simpson, Vehtari and Gelman 2018). A rank that is not uniform shows how: too narrow a
posterior puts ranks at both ends, a shifted one at one end. f = log p(theta, y) sees what no
parameter alone does, such as an inference that ignores the data (Modrák et al. 2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.std import tqdm

from ...kernels.source import user_line
from ...transforms.choices import Choices, Flat, flatten, nest
from ...transforms.errors import show_address
from ...transforms.seed import seed
from ..errors_posterior import CalibrationError
from ..measure import Measure
from . import uniformity
from .table import scalar_names

LOG_DENSITY = "log density"  # the name of the quantity that is always looked at
Quantity = Callable[[dict[str, Any], dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of true values among draws.

    Attributes:
        names: of the n quantities.
        ranks: [replicates, n], each in 0, ..., draws.
        draws: S.
        false_alarm: how often exact inference does not pass, over all quantities.
        failed: replicates left out because a draw was not finite.
    """

    names: list[str]
    ranks: np.ndarray
    draws: int
    false_alarm: float
    failed: int = 0

    @functools.cached_property
    def p_values(self) -> dict[str, float]:
        """By quantity, of the simultaneous test of the ranks' distribution function."""
        return {
            name: uniformity.p_value(self.ranks[:, i], self.draws)
            for i, name in enumerate(self.names)
        }

    @property
    def chi_square(self) -> dict[str, float]:
        """By quantity, Pearson's chi-square p-value, a second opinion."""
        return {
            name: uniformity.chi_square(self.ranks[:, i], self.draws)
            for i, name in enumerate(self.names)
        }

    @property
    def passed(self) -> bool:
        """Whether every p-value is above `false_alarm` / n, and no replicate failed."""
        limit = self.false_alarm / max(len(self.names), 1)
        return not self.failed and min(self.p_values.values()) > limit

    def plot(self, level: float = 0.95, ax: Any = None) -> Any:
        """Distribution functions of the ranks less the uniform one, with their simultaneous band.

        A curve above zero on the left: ranks are small, the draws too large.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.5))
        n = len(self.ranks)
        z, least, most = uniformity.band(n, self.draws, level)
        ax.fill_between(z, least / n - z, most / n - z, color="0.85", label=f"{level:.0%} band")
        for i, name in enumerate(self.names):
            ax.step(z, uniformity.counts(self.ranks[:, i], self.draws) / n - z, lw=0.8, label=name)
        ax.set(xlabel="rank / (S + 1)", ylabel="ECDF - uniform")
        if len(self.names) <= 8:
            ax.legend(fontsize="small")
        return ax

    def __repr__(self) -> str:
        chi, width = self.chi_square, max(map(len, self.names))
        lines = [
            f"  {name.ljust(width)}  p = {p:.2g}  (chi-square {chi[name]:.2g})"
            for name, p in self.p_values.items()
        ]
        failed = f", {self.failed} replicates failed" if self.failed else ""
        says = "passed" if self.passed else "NOT passed"
        head = f"Calibration: {says}, {len(self.ranks)} replicates of {self.draws} draws{failed}"
        return "\n".join([head, *lines])


def sbc(
    model: Measure,
    infer: Callable[[jax.Array, Measure], Choices],
    key: jax.Array,
    *,
    observed: str | Iterable[str],
    replicates: int = 1000,
    quantities: Mapping[str, Quantity] | None = None,
    batch: int | None = 100,
    false_alarm: float = 0.01,
    progress: bool = True,
) -> Calibration:
    """Check an inference on data that the model itself makes.

        def infer(key, target):                    # target: the model given simulated data
            ...
            return {"mu": draws}                   # [S], independent

        vx.sbc(model(), infer, key, observed="y").passed

    Args:
        model: a generative measure: nothing observed, the prior proper.
        infer: `(key, measure) -> choices`, S draws of the measure's unobserved choices, leading
            axis [S], the same S every time, thinned so that they are nearly independent. S + 1 a
            multiple of 20 or so, such as 99, makes for even bins.
        key: randomness.
        observed: the addresses that are data; a nested model's name stands for all of its own.
        replicates: data sets.
        quantities: further functions to look at, by name: `f(choices, data)`, a scalar or array.
        batch: replicates that run together under `jax.jit` and `jax.vmap`; None calls `infer` once
            a replicate, with arrays whose values are known.
        false_alarm: how often `passed` may be False for exact inference.
        progress: whether to show the bar.

    Returns:
        `Calibration`, of every scalar of every unobserved choice, the log density and
        `quantities`. After Ctrl-C that of the replicates so far.

    Raises:
        CalibrationError: the addresses do not fit the model, or `infer` did not return draws of
            the unobserved choices.
        CapabilityError: the model observes or weighs.
    """
    data, latent = _divided(model, observed)
    one = _replicate(model, infer, data, latent, dict(quantities or {}))
    run = _lift(one) if batch is None else jax.jit(jax.vmap(one))
    size = min(batch or 1, replicates)
    keys = jax.random.split(key, replicates)
    found: list[Any] = []
    with tqdm(total=replicates, disable=not progress, unit="data set", dynamic_ncols=True) as bar:
        try:
            for i in range(0, replicates, size):
                at = np.arange(i, i + size)
                values = jax.tree.map(np.asarray, run(keys[np.minimum(at, replicates - 1)]))
                found.append(jax.tree.map(lambda x, n=replicates - i: x[:n], values))
                bar.update(len(found[-1][1]))
        except KeyboardInterrupt:
            if not found:
                raise
    ranks, sound, draws = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
    names = [n for name, x in ranks.items() for n in scalar_names(name, x.shape[1:])]
    columns = np.concatenate([x.reshape(len(x), -1) for x in ranks.values()], 1)
    if not sound.any():
        raise CalibrationError(
            "No replicate gave finite draws.",
            expected="draws of the posterior",
            got=f"NaN or infinite draws in all {len(sound)}",
            where=user_line(),
        )
    return Calibration(names, columns[sound], int(draws[0]), false_alarm, int((~sound).sum()))


def _lift(one: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """A function of one key as one of a batch of one."""
    return lambda keys: jax.tree.map(lambda x: np.asarray(x)[None], one(keys[0]))


def _replicate(
    model: Measure,
    infer: Any,
    data: list[Any],
    latent: list[Any],
    quantities: dict[str, Quantity],
) -> Callable[[jax.Array], tuple[dict[str, Any], Any, int]]:
    """One replicate, `key -> (ranks by quantity, whether all is finite, S)`."""

    def simulate(key: jax.Array) -> tuple[Flat, Flat]:
        flat = flatten(model.simulate(key).choices)
        return {a: flat[a] for a in data}, {a: flat[a] for a in latent}

    def ranks(key: jax.Array, known: Flat, truth: Flat, drawn: Flat) -> Any:
        estimate, ties = jax.random.split(key)
        target = model.condition(nest(known))

        def look(choices: Flat) -> dict[str, Any]:
            c = nest(choices)
            found = {show_address(a): x for a, x in choices.items()}
            found[LOG_DENSITY] = seed(lambda: target.log_density(c), estimate)
            return found | {n: jnp.asarray(f(c, nest(known))) for n, f in quantities.items()}

        at_truth, at_draws = look(truth), jax.vmap(look)(drawn)
        sound = [jnp.isfinite(x).all() for x in drawn.values()]
        below = {
            name: _rank(x, at_draws[name], jax.random.fold_in(ties, i))
            for i, (name, x) in enumerate(at_truth.items())
        }
        return below, jnp.stack(sound).all()

    jitted = jax.jit(simulate), jax.jit(ranks)

    def one(key: jax.Array) -> tuple[dict[str, Any], Any, int]:
        first, second, third = jax.random.split(key, 3)
        known, truth = jitted[0](first)
        drawn = flatten(infer(second, model.condition(nest(known))))
        count = _require_draws(drawn, truth)
        return *jitted[1](third, known, truth, {a: jnp.asarray(drawn[a]) for a in truth}), count

    return one


def _rank(truth: jax.Array, draws: jax.Array, key: jax.Array) -> jax.Array:
    """#{draws < truth}, ties broken at random, elementwise."""
    ties = (draws == truth).sum(0)
    return (draws < truth).sum(0) + jax.random.randint(key, truth.shape, 0, ties + 1)


def _divided(model: Any, observed: str | Iterable[str]) -> tuple[list[Any], list[Any]]:
    """The addresses of the data, and the others."""
    asked = [tuple(a.split("/")) for a in ([observed] if isinstance(observed, str) else observed)]
    if not isinstance(model, Measure):
        raise CalibrationError(
            "Simulation-based calibration needs a measure.",
            expected="a model called with its arguments",
            got=repr(model),
            where=user_line(),
        )
    known = [tuple(name.split("/")) for name in model.addresses]
    data = [a for a in known if any(a[: len(b)] == b for b in asked)]
    latent = [a for a in known if a not in data]
    lost = [b for b in asked if not any(a[: len(b)] == b for a in known)]
    if lost or not data or not latent:
        raise CalibrationError(
            f"The data of {model.name} are not some of its choices, with others left to infer.",
            address=lost[0] if lost else None,
            expected=f"observed= some of {', '.join(map(show_address, known))}, not all",
            got=f"observed={observed!r}",
            where=user_line(),
            fix="write the model without obs=, so that it makes its own data",
        )
    return data, latent


def _require_draws(drawn: Flat, truth: Flat) -> int:
    """How many draws there are of every choice."""
    shapes = {a: jnp.shape(x) for a, x in drawn.items()}
    counts = {shape[:1] for shape in shapes.values()}
    fits = all(
        shapes.get(a, ())[1:] == x.shape and shapes[a] for a, x in truth.items() if a in shapes
    )
    if not (drawn.keys() >= truth.keys() and fits and len(counts) == 1 and counts != {()}):
        raise CalibrationError(
            "`infer` did not return draws of the unobserved choices.",
            expected=", ".join(
                f"{show_address(a)}: (S, {str(x.shape)[1:]}" for a, x in truth.items()
            ),
            got=", ".join(f"{show_address(a)}: {s}" for a, s in shapes.items()) or "nothing",
            where=user_line(),
            fix="return a dict by address with the draws along the leading axis",
        )
    return next(iter(counts))[0]
