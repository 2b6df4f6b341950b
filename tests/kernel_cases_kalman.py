"""Linear-Gaussian chains and Matern processes: the cases that every implementation is tried on."""

from __future__ import annotations

import functools

import jax
import numpy as np
from kernel_checks import Case

from varax.kernels import mp

NAMES = ("y", "A", "Q", "H", "R", "m0", "P0", "b", "d")


def chain(rng, n, m, steps, *, varying=False, scale=1.0, batch=(), batched=()):
    """Arrays of a model in the order of NAMES; `varying` gives A, Q, b, H, R, d a time axis."""
    moves = (max(steps - 1, 0),) if varying else ()
    times = (steps,) if varying else ()

    def covariance(*front, k):
        B = rng.standard_normal((*front, k, k + 1))
        return scale**2 * (B @ np.swapaxes(B, -1, -2) / k + 0.1 * np.eye(k))

    def of(name):
        front = batch if name in batched else ()
        normal = lambda *shape: rng.standard_normal((*front, *shape))  # noqa: E731
        return {
            "y": lambda: scale * normal(steps, m),
            "A": lambda: 0.7 * np.eye(n) + 0.3 * normal(*moves, n, n) / np.sqrt(n),
            "Q": lambda: covariance(*front, *moves, k=n),
            "H": lambda: normal(*times, m, n),
            "R": lambda: covariance(*front, *times, k=m),
            "m0": lambda: scale * normal(n),
            "P0": lambda: covariance(*front, k=n),
            "b": lambda: scale * normal(*moves, n),
            "d": lambda: scale * normal(*times, m),
        }[name]()

    return tuple(of(name) for name in NAMES)


def of_arrays(function, with_mask=False):
    def call(*arrays):
        model, mask = (arrays[:9], arrays[9]) if with_mask else (arrays, None)
        return function(*model[:7], b=model[7], d=model[8], mask=mask)

    return call


def case(name, function, n, m, steps, *, mask=None, axes=None, draws=1, **options):
    def arrays(rng):
        model = chain(rng, n, m, steps, **options)
        return model if mask is None else (*model, rng.random(mask) < 0.7)

    operation = {
        mp.kalman_log_likelihood: "kalman_filter",
        mp.kalman_filter: "kalman_filter",
        mp.kalman_smoother: "kalman_smoother",
    }[function]
    return Case(name, operation, of_arrays(function, mask is not None), arrays, axes, draws)


def batched(names, **mask):
    return (*(0 if name in names else None for name in NAMES), *mask.values())


def axes_of(**axes):
    return tuple(axes.get(name) for name in NAMES)


def moved(arrays):
    """Of 12 series, y `[4, t, 3, m]` and the A of every third `[n, 3, n]`."""
    y, A, *rest = arrays
    y = np.moveaxis(y.reshape(3, 4, *y.shape[1:]), 0, 2)
    return (y, np.moveaxis(A[::4], 0, 1), *rest)


def of_moved(*arrays):
    f = jax.vmap(of_arrays(mp.kalman_filter), axes_of(y=0))
    return jax.vmap(f, axes_of(y=2, A=1))(*arrays)


def integrator(name, n, steps, *, prior, noise, series=(), operation="kalman_filter"):
    """States that add up from the last to the first, which is observed: nothing shrinks."""

    def arrays(rng):
        def around(x):  # of a size, so that the roundings of several draws are independent
            return x * np.exp(0.3 * rng.standard_normal(np.shape(x)))

        A, H = np.eye(n) + around(0.1 * np.eye(n, k=1)), np.eye(1, n)
        slower = np.linspace(0.9, 1, *series)[..., None, None] if series else 1.0
        Q, R, P0 = (np.diag(around(np.full(k, x))) for k, x in ((n, 0.1), (1, noise), (n, prior)))
        zero = np.zeros(n)
        return (
            rng.standard_normal((*series, steps, 1)),
            slower * A,
            Q,
            H,
            R,
            zero,
            P0,
            zero,
            zero[:1],
        )

    axes = batched(("y", "A")) if series else None
    smoother = operation == "kalman_smoother"
    function = of_arrays(mp.kalman_smoother if smoother else mp.kalman_log_likelihood)
    return Case(f"integrator-{name}", operation, function, arrays, axes, 32)


FILTER = [
    *(case(f"{n}-1-filter", mp.kalman_filter, n, 1, 9) for n in (1, 2, 3, 5, 8)),
    case("6-1-likelihood", mp.kalman_log_likelihood, 6, 1, 130),
    case("4-3", mp.kalman_filter, 4, 3, 7),
    case("2-8", mp.kalman_filter, 2, 8, 5, varying=True),
    case("3-2-varying-mask", mp.kalman_filter, 3, 2, 9, varying=True, mask=(9, 2)),
    case("7-1-varying", mp.kalman_filter, 7, 1, 6, varying=True),
    case("2-1-mask", mp.kalman_log_likelihood, 2, 1, 70, mask=(70,)),
    case("one step", mp.kalman_filter, 3, 2, 1),
    case("no step", mp.kalman_filter, 2, 1, 0),
    case("large", mp.kalman_filter, 2, 2, 6, scale=1e8, draws=8),
    case("small", mp.kalman_filter, 2, 2, 6, scale=1e-8, draws=8),
    integrator("3-diffuse", 3, 300, prior=1e6, noise=1.0),
    integrator("3-precise", 3, 300, prior=1.0, noise=1e-5),
    integrator("6-precise", 6, 300, prior=1.0, noise=1e-5),
    integrator("lanes", 3, 300, prior=1e4, noise=1e-3, series=(17,)),
    case("9-1: no loops of this size", mp.kalman_filter, 9, 1, 4),
    case(
        "batch-y", mp.kalman_log_likelihood, 3, 1, 20,
        batch=(19,), batched=("y",), axes=batched(("y",)),
    ),
    case(
        "batch-of-2", mp.kalman_filter, 2, 1, 6,
        batch=(2,), batched=("y", "A"), axes=batched(("y", "A")),
    ),
    case(
        "batch-of-none", mp.kalman_filter, 2, 1, 3,
        batch=(0,), batched=("y",), axes=batched(("y",)),
    ),
    case(
        "batch-most", mp.kalman_filter, 3, 2, 5, varying=True,
        batch=(18,), batched=("y", "A", "H", "R", "m0", "b"),
        axes=batched(("y", "A", "H", "R", "m0", "b")),
    ),
    case(
        "batch-varying-mask", mp.kalman_filter, 2, 1, 35, varying=True, mask=(35, 1),
        batch=(18,), batched=("y", "A", "H", "R", "m0", "b"),
        axes=batched(("y", "A", "H", "R", "m0", "b"), mask=None),
    ),
    case(
        "batch-many-observed", mp.kalman_filter, 6, 2, 5,
        batch=(5,), batched=("y", "Q", "P0"), axes=batched(("y", "Q", "P0")),
    ),
    case(
        "batch-shared", mp.kalman_filter, 6, 1, 37, varying=True, mask=(37, 1),
        batch=(35,), batched=("y", "m0", "b", "d"), axes=batched(("y", "m0", "b", "d"), mask=None),
    ),
    case(
        "batch-shared-many-observed", mp.kalman_filter, 3, 2, 35, mask=(2,),
        batch=(3,), batched=("m0", "b"), axes=batched(("m0", "b"), mask=None),
    ),
    Case("batch-other-axes", "kalman_filter", of_moved, lambda rng: moved(chain(
        rng, 2, 1, 6, batch=(12,), batched=("y", "A")
    ))),
    case(
        "batch-mask", mp.kalman_filter, 2, 2, 8, mask=(17, 8, 2),
        batch=(17,), batched=("y",), axes=batched(("y",), mask=0),
    ),
]  # fmt: skip

SMOOTHER = [
    case("3-1", mp.kalman_smoother, 3, 1, 12),
    case("4-2-varying-mask", mp.kalman_smoother, 4, 2, 8, varying=True, mask=(8, 2)),
    case("one step", mp.kalman_smoother, 2, 1, 1),
    case("no step", mp.kalman_smoother, 2, 1, 0),
    case("8-1", mp.kalman_smoother, 8, 1, 20, draws=8),
    integrator("3-diffuse", 3, 100, prior=1e4, noise=1e-3, operation="kalman_smoother"),
    integrator(
        "lanes", 3, 100, prior=1e4, noise=1e-3, series=(17,), operation="kalman_smoother"
    ),
    case(
        "batch", mp.kalman_smoother, 2, 1, 6,
        batch=(5,), batched=("y", "Q"), axes=batched(("y", "Q")),
    ),
    case(
        "batch-shared", mp.kalman_smoother, 3, 2, 20, mask=(20, 2),
        batch=(5,), batched=("y", "m0"), axes=batched(("y", "m0"), mask=None),
    ),
]  # fmt: skip


def sampled(name, n, m, steps, *, draws=(3,), noise_has="", mask=None, **options):
    """Draws, of noise that has the batch's axis or not."""

    def call(noise, *arrays):
        return of_arrays(functools.partial(mp.kalman_sample, noise), mask is not None)(*arrays)

    def arrays(rng):
        front = options.get("batch", ()) if noise_has == "batch" else ()
        noise = rng.standard_normal((*front, *draws, steps, n))
        model = chain(rng, n, m, steps, **options)
        return noise, *model, *(() if mask is None else (rng.random(mask) < 0.7,))

    axes = None
    if "batch" in options:
        in_batch = options["batched"]
        axes = (
            0 if noise_has else None,
            *batched(in_batch, **({} if mask is None else {"m": None})),
        )
    return Case(name, "kalman_sample", call, arrays, axes)


def noise_alone(noise, *arrays):
    return jax.vmap(lambda noise: mp.kalman_sample(noise, *arrays[:7], b=arrays[7]))(noise)


SAMPLE = [
    *(sampled(f"{n}-1", n, 1, 9) for n in (1, 2, 3, 6, 8)),
    sampled("one draw", 3, 1, 70, draws=()),
    sampled("one step", 3, 2, 1),
    sampled("4-2-varying-mask", 4, 2, 8, varying=True, mask=(8, 2)),
    sampled("batch", 3, 1, 9, noise_has="batch", batch=(17,), batched=("y", "A")),
    sampled("batch-of-models", 3, 1, 9, batch=(5,), batched=("y", "Q")),
    sampled("batch-shared", 2, 2, 9, noise_has="batch", mask=(9, 2), batch=(5,), batched=("y",)),
    Case(
        "noise-alone",
        "kalman_sample",
        noise_alone,
        lambda rng: (rng.standard_normal((4, 2, 9, 3)), *chain(rng, 3, 1, 9)),
    ),
]


def matern(name, kind, steps, *, noise=(), spacing=1.0, axes=None, front=()):
    def function(times, y, variance, length_scale, noise_sd):
        return mp.matern_log_likelihood(times, y, kind, variance, length_scale, noise_sd)

    def arrays(rng):
        gaps = spacing * rng.exponential(size=steps) * rng.choice([0.1, 1.0], steps)
        return (
            np.cumsum(gaps),
            rng.standard_normal((*front, steps)),
            np.exp(0.3 * rng.standard_normal(front)),
            np.exp(0.3 * rng.standard_normal()),
            0.3 + rng.random(noise),
        )

    return Case(f"{kind}-{name}".replace("/", ":"), "matern_log_likelihood", function, arrays, axes)


MATERN = [
    *(matern("200", kind, 200) for kind in ("1/2", "3/2", "5/2")),
    *(matern("one", kind, 1) for kind in ("1/2", "5/2")),
    matern("none", "3/2", 0),
    matern("each noise", "3/2", 65, noise=(65,)),
    matern("far apart", "5/2", 20, spacing=1e3),
    matern("batch", "3/2", 10, front=(5,), axes=(None, 0, 0, None, None)),
    matern("batch of segments", "5/2", 128, front=(3,), axes=(None, 0, 0, None, None)),
]

CASES = [*FILTER, *SMOOTHER, *SAMPLE, *MATERN]
