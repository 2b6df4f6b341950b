"""Linear-Gaussian chains and Matern processes against scans, dynamax, tinygp and celerite2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kernel_entries import Entry

from varax.kernels import mp


def entries(quick: bool) -> list[Entry]:
    """Long chains, many short ones, and Matern-3/2 at the size of celerite2's published figure."""
    steps, many = (20_000, 1000) if quick else (100_000, 2000)
    long = 100_000 if quick else 1_000_000
    found = [
        Entry(
            "kalman_filter",
            what,
            f"{steps} steps, {n} states, float32",
            chain(n, steps, gradient),
            flops=steps * (4 * n**3 + 12 * n**2) * (2.5 if gradient else 1),
        )
        for n in (2, 3, 6)
        for what, gradient in (("value", False), ("value and gradient", True))
    ]
    found += [
        Entry(
            "kalman_filter",
            what,
            f"64 series x {many} steps, {n} states, {of}, float32",
            series(n, many, gradient, own),
            flops=(64 if own else 1) * many * (4 * n**3 + 12 * n**2) * (2.5 if gradient else 1),
        )
        for own, of in ((False, "of one model"), (True, "each with its A"))
        for n in (3, 6)
        for what, gradient in (("value", False), ("value and gradient", True))
    ]
    found += [
        Entry(
            "kalman_smoother",
            "value and gradient" if gradient else "value",
            f"{steps} steps, {n} states, float32",
            smoother(n, steps, gradient),
            bytes=4 * steps * (1 + n + n**2),
            flops=steps * (14 * n**3 + 16 * n**2) * (2.5 if gradient else 1),
        )
        for n, gradient in ((3, False), (6, False), (3, True))
    ]
    found += [
        Entry(
            "kalman_sample",
            "value",
            f"{steps} steps, 3 states, float32",
            sampler(3, steps),
            bytes=4 * steps * (1 + 2 * 3),
            flops=steps * (14 * 3**3 + 16 * 3**2),
        )
    ]
    found += [
        Entry(
            "matern_log_likelihood",
            what,
            f"Matern-3/2, {long} times, float64",
            matern(long, gradient),
            bytes=16.0 * long,
            kind="float64",
            tolerance=0.02,  # of celerite2, whose Matern-3/2 is the limit of another covariance
        )
        for what, gradient in (("value", False), ("value and gradient", True))
    ]
    return found


def arrays(n: int, steps: int, batch: tuple[int, ...] = (), own: tuple[int, ...] = ()) -> list[Any]:
    """y, A, Q, H, R, m0, P0."""
    rng = np.random.default_rng(0)
    A = 0.9 * np.eye(n) + 0.1 * rng.standard_normal((n, n)) / np.sqrt(n)
    model = (
        rng.standard_normal((*batch, steps)), A, 0.1 * np.eye(n), rng.standard_normal(n),
        0.5, np.zeros(n), np.eye(n),
    )  # fmt: skip
    return [jnp.asarray(x, jnp.float32) for x in model]


def plain(y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any) -> Any:
    """The filter as a careful user writes it: scalar observations, products as multiply and add."""

    def dot(A: Any, B: Any) -> Any:
        return (A[:, :, None] * B[None]).sum(1)

    def step(carry: Any, y: Any) -> Any:
        m, P = carry
        g = (P * H).sum(1)
        S, v = (H * g).sum() + R, y - (H * m).sum()
        K = g / S
        m, P = m + K * v, P - K[:, None] * g
        term = -0.5 * (v * v / S + jnp.log(2 * jnp.pi * S))
        return ((A * m).sum(1), dot(dot(A, P), A.T) + Q), term

    return jax.lax.scan(step, (m0, P0), y)[1].sum()


def textbook(y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any) -> Any:
    """The filter as books print it, a matrix product for each of theirs."""

    def step(carry: Any, y: Any) -> Any:
        m, P = carry
        S, v = H @ P @ H + R, y - H @ m
        K = P @ H / S
        m, P = m + K * v, P - jnp.outer(K, H) @ P
        return (A @ m, A @ P @ A.T + Q), -0.5 * (v * v / S + jnp.log(2 * jnp.pi * S))

    return jax.lax.scan(step, (m0, P0), y)[1].sum()


def chain(n: int, steps: int, gradient: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
    def make() -> dict[str, Callable[[], Any]]:
        model = arrays(n, steps)
        forms = {"varax": mp.kalman_log_likelihood, "plain XLA": plain, "textbook scan": textbook}
        if dynamax := dynamax_filter(n):
            forms["dynamax"] = dynamax
        return {k: timed(f, model, tuple(range(1, 7)), gradient) for k, f in forms.items()}

    return make


def series(
    n: int, steps: int, gradient: bool, own: bool
) -> Callable[[], dict[str, Callable[[], Any]]]:
    def make() -> dict[str, Callable[[], Any]]:
        model = arrays(n, steps, (64,))
        if own:
            model[1] *= jnp.linspace(0.9, 1, 64)[:, None, None]

        def of(f: Any) -> Any:
            return lambda *a: jax.vmap(f, (0, 0 if own else None) + (None,) * 5)(*a).sum()

        forms = {"varax": mp.kalman_log_likelihood, "plain XLA": plain}
        if dynamax := dynamax_filter(n):
            forms["dynamax"] = dynamax
        return {k: timed(of(f), model, tuple(range(1, 7)), gradient) for k, f in forms.items()}

    return make


def sampler(n: int, steps: int) -> Callable[[], dict[str, Callable[[], Any]]]:
    """Draws by the same normal numbers; dynamax draws by its own, and cannot be compared."""

    def make() -> dict[str, Callable[[], Any]]:
        noise = jnp.asarray(np.random.default_rng(1).standard_normal((steps, n)), jnp.float32)
        forms = {"varax": mp.kalman_sample, "plain XLA": plain_sample}
        model = arrays(n, steps)
        return {k: timed(partial(f, noise), model, (), False) for k, f in forms.items()}

    return make


def plain_sample(noise: Any, y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any) -> jax.Array:
    """Filter forwards, sample backwards, as books print it."""

    def forwards(carry: Any, y: Any) -> Any:
        m, P = carry
        K = (P @ H) / (H @ P @ H + R)
        m, P = m + K * (y - H @ m), P - jnp.outer(K, H @ P)
        return (A @ m, A @ P @ A.T + Q), (m, P)

    def draw(m: Any, P: Any, z: Any) -> Any:
        return m + jnp.linalg.cholesky((P + P.T) / 2) @ z

    def backwards(x: Any, now: Any) -> Any:
        m, P, z = now
        predicted = A @ P @ A.T + Q
        G = jnp.linalg.solve(predicted, A @ P).T
        x = draw(m + G @ (x - A @ m), P - G @ predicted @ G.T, z)
        return x, x

    _, (m, P) = jax.lax.scan(forwards, (m0, P0), y)
    last = draw(m[-1], P[-1], noise[-1])
    _, xs = jax.lax.scan(backwards, last, (m[:-1], P[:-1], noise[:-1]), reverse=True)
    return jnp.concatenate([xs, last[None]])


def smoother(n: int, steps: int, gradient: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
    def make() -> dict[str, Callable[[], Any]]:
        model = arrays(n, steps)
        definition = mp.kalman_smoother

        def in_jax(*model: Any) -> Any:
            from varax import kernels

            with kernels.using("xla"):
                return definition(*model)

        forms: dict[str, Any] = {"varax": definition, "plain XLA": in_jax}
        try:
            from dynamax.linear_gaussian_ssm import lgssm_smoother

            def of_dynamax(y: Any, *model: Any) -> Any:
                found = lgssm_smoother(dynamax_params(n, *model), y[:, None])
                return found.marginal_loglik, found.smoothed_means, found.smoothed_covariances

            forms["dynamax"] = of_dynamax
        except ImportError:
            pass

        def of_squares(f: Any) -> Any:
            def total(*model: Any) -> Any:
                log_likelihood, means, covariances = f(*model)
                return log_likelihood + (means**2).sum() + (covariances**2).sum()

            return total

        if gradient:
            forms = {k: of_squares(f) for k, f in forms.items()}
        return {k: timed(f, model, tuple(range(1, 7)), gradient) for k, f in forms.items()}

    return make


def timed(f: Any, model: Any, moving: tuple[int, ...], gradient: bool) -> Callable[[], Any]:
    """The compiled call. Of derivatives in covariances only the symmetric part has a meaning."""

    def symmetric(y: Any, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any) -> Any:
        return f(y, A, (Q + Q.T) / 2, H, R, m0, (P0 + P0.T) / 2)

    function = jax.jit(jax.value_and_grad(symmetric, argnums=moving) if gradient else f)
    return lambda: function(*model)


def dynamax_params(n: int, A: Any, Q: Any, H: Any, R: Any, m0: Any, P0: Any) -> Any:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    params, _ = LinearGaussianSSM(n, 1).initialize(
        jax.random.key(0),
        initial_mean=m0,
        initial_covariance=P0,
        dynamics_weights=A,
        dynamics_bias=jnp.zeros(n),
        dynamics_covariance=Q,
        emission_weights=H[None],
        emission_bias=jnp.zeros(1),
        emission_covariance=R[None, None],
    )
    return params


def dynamax_filter(n: int) -> Any:
    try:
        from dynamax.linear_gaussian_ssm import lgssm_filter
    except ImportError:
        return None

    def log_likelihood(y: Any, *model: Any) -> Any:
        return lgssm_filter(dynamax_params(n, *model), y[:, None]).marginal_loglik

    return log_likelihood


def matern(steps: int, gradient: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
    def make() -> dict[str, Callable[[], Any]]:
        rng = np.random.default_rng(0)
        with jax.enable_x64(True):
            times = jnp.asarray(np.sort(rng.uniform(0, steps / 10, steps)))
            y = jnp.asarray(rng.standard_normal(steps))
            parameters = [jnp.asarray(x, jnp.float64) for x in (1.3, 2.0, 0.3)]

        def varax(variance: Any, length_scale: Any, noise_sd: Any) -> Any:
            return mp.matern_log_likelihood(times, y, "3/2", variance, length_scale, noise_sd)

        forms = {"varax": varax, "plain XLA": lambda *a: plain_matern(times, y, *a)}
        forms |= celerite(times, y) | tinygp(times, y)
        calls = {}
        for name, f in forms.items():
            function = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)) if gradient else f)

            def call(function: Any = function) -> Any:
                with jax.enable_x64(True):
                    return function(*parameters)

            calls[name] = call
        return calls

    return make


def plain_matern(times: Any, y: Any, variance: Any, length_scale: Any, noise_sd: Any) -> Any:
    """The two-state filter with every product written out."""
    rate = np.sqrt(3) / length_scale
    dt = jnp.diff(times, prepend=times[:1])

    def step(carry: Any, now: Any) -> Any:
        m0, m1, p00, p01, p11 = carry
        dt, y = now
        x = rate * dt
        e = jnp.exp(-x)
        a, b, c, d = e * (1 + x), e * dt, -e * rate * x, e * (1 - x)
        i00, i11 = variance, variance * rate**2
        p00, p11 = p00 - i00, p11 - i11  # P' = A (P - P_inf) A' + P_inf
        q00, q01, q10, q11 = (
            a * p00 + b * p01,
            a * p01 + b * p11,
            c * p00 + d * p01,
            c * p01 + d * p11,
        )
        p00, p01, p11 = q00 * a + q01 * b + i00, q00 * c + q01 * d, q10 * c + q11 * d + i11
        m0, m1 = a * m0 + b * m1, c * m0 + d * m1
        S, v = p00 + noise_sd**2, y - m0
        k0, k1 = p00 / S, p01 / S
        term = v * v / S + jnp.log(2 * jnp.pi * S)
        carry = m0 + k0 * v, m1 + k1 * v, p00 - k0 * p00, p01 - k0 * p01, p11 - k1 * p01
        return carry, term

    zero = jnp.zeros((), y.dtype)
    start = (zero, zero, variance + zero, zero, variance * rate**2 + zero)
    return -0.5 * jax.lax.scan(step, start, (dt, y))[1].sum()


def celerite(times: Any, y: Any) -> dict[str, Any]:
    """celerite2's Matern-3/2, by its own compiled operations (an approximation with eps = 0.01)."""
    try:
        import celerite2.jax as c
    except ImportError:
        return {}

    def log_likelihood(variance: Any, length_scale: Any, noise_sd: Any) -> Any:
        term = c.terms.Matern32Term(sigma=jnp.sqrt(variance), rho=length_scale)
        gp = c.GaussianProcess(term, mean=0.0)
        gp.compute(times, diag=jnp.full(times.shape, noise_sd**2), check_sorted=False)
        return gp.log_likelihood(y)

    return {"celerite2": log_likelihood}


def tinygp(times: Any, y: Any) -> dict[str, Any]:
    """tinygp's quasiseparable Matern-3/2."""
    try:
        import tinygp as t
    except ImportError:
        return {}

    def log_likelihood(variance: Any, length_scale: Any, noise_sd: Any) -> Any:
        kernel = t.kernels.quasisep.Matern32(scale=length_scale, sigma=jnp.sqrt(variance))
        gp = t.GaussianProcess(kernel, times, diag=noise_sd**2)
        return gp.log_probability(y)

    return {"tinygp": log_likelihood}
