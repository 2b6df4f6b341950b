"""Functions of one pathwise choice x that are continuous, for tests/test_soundness.py."""

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
from jax import lax

from varax import dist as d
from varax.transforms.smooth import assume_smooth

KNOTS = jnp.arange(-3.0, 4.0)
THREE = jnp.array([0.5, -1.0, 2.0])
exp, sigmoid = jnp.exp, jax.nn.sigmoid


def stages(x):
    """A library's loop with a derivative of its own, and a branch on how often it ran."""
    from equinox.internal import while_loop

    done, y = while_loop(
        lambda at: at[0] < 3,
        lambda at: (at[0] + 1, jnp.sin(at[1]) + x),
        (jnp.asarray(0), x),
        kind="checkpointed",
        max_steps=3,
    )
    return jnp.where(done == 3, y, -y)


def spread(x):
    """Three numbers that depend on x."""
    return x * THREE + jnp.array([0.1, 0.7, -0.3])


def matrix(x):
    """A positive definite matrix that depends on x."""
    return jnp.array([[2.0, 0.3], [0.3, 1.0]]) + x**2 * jnp.array([[1.0, 0.5], [0.5, 1.0]])


def straight_through(x):
    return x + lax.stop_gradient(jnp.round(x) - x)


@jax.custom_jvp
def smooth_at_heart(x):
    return jnp.where(x > 0, x, 0.0)


smooth_at_heart.defjvp(
    lambda xs, ts: (smooth_at_heart(xs[0]), ts[0] * jnp.where(xs[0] > 0, 1.0, 0.0))
)


def declared(x):
    return assume_smooth(jnp.where(x > 0, x, 0.0))


def dead(x):
    unused = jnp.where(x > 0, 1.0, 0.0)
    return x**2 + 0.0 * len(unused.shape)


def dead_in_jit(x):
    return jax.jit(lambda y: (jnp.sin(y), jnp.floor(y)))(x)[0]


def dead_in_scan(x):
    def body(carry, _):
        return (jnp.sin(carry[0]), jnp.round(carry[0])), None

    return lax.scan(body, (x, 0.0), None, length=2)[0][0]


def supported(x):
    return jnp.where(x > -50.0, -0.5 * x**2, -jnp.inf)


def not_a_number(x):
    return jnp.where(jnp.isnan(x), 0.0, x) + jnp.nan_to_num(x)


def scanned(x):
    def body(carry, knot):
        return jnp.tanh(carry + knot), jnp.maximum(carry, knot)

    last, seen = lax.scan(body, x, KNOTS)
    return last + seen.sum()


def counted(x):
    return lax.fori_loop(0, 5, lambda i, y: jnp.where(i % 2 == 0, y + 1.0, jnp.cos(y)), x)


def other_branch(x):
    return lax.cond(KNOTS[1] > 0.0, jnp.cos, jnp.sin, x)


def log_prob(name, *args, to=lambda x: x, **kwargs):
    return lambda x: getattr(d, name)(*args, **kwargs).log_prob(to(x)).sum()


def own_leaky_relu(x):
    y = spread(x)
    return jnp.where(y >= 0, y, 0.1 * y).sum()


def langevin(x):
    step = jax.grad(lambda y: d.StudentT(3.0, 0.2, 1.0).log_prob(y))
    return jnp.cos(x + 0.3 * step(x))


def weights(x):
    mix = d.MixtureSameFamily(d.Categorical(logits=THREE), d.Normal(THREE, exp(0.1 * THREE)))
    return mix.log_prob(x)


TRI = jnp.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.2, 0.1, 1.0]])


def simplex(x):
    return jax.nn.softmax(spread(x))


def corr(x):
    """The Cholesky factor of a 2 x 2 correlation matrix."""
    row = jnp.stack([jnp.tanh(x), jnp.sqrt(1 - jnp.tanh(x) ** 2)])
    return jnp.stack([jnp.array([1.0, 0.0]), row])


SOUND = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": lambda x: jax.nn.elu(x, 0.5),
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "relu6": jax.nn.relu6,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "mish": jax.nn.mish,
    "sparse_plus": jax.nn.sparse_plus,
    "abs": jnp.abs,
    "max": lambda x: jnp.max(spread(x)),
    "maximum": lambda x: jnp.maximum(x, 0.3) * jnp.minimum(x, 1.0),
    "fmax": lambda x: jnp.fmax(x, 0.3),
    "clip": lambda x: jnp.clip(x, -0.5, 1.0),
    "sort": lambda x: jnp.sort(spread(x)) @ THREE,
    "top_k_values": lambda x: lax.top_k(spread(x), 2)[0] @ THREE[:2],
    "cummax": lambda x: lax.cummax(spread(x)) @ THREE,
    "logsumexp": lambda x: jax.nn.logsumexp(spread(x)),
    "logsumexp_guarded": lambda x: jsp.logsumexp(jnp.stack([x, -jnp.inf, 0.0]), b=THREE**2),
    "logaddexp": lambda x: jnp.logaddexp(x, 0.3),
    "softmax": lambda x: jax.nn.softmax(spread(x)) @ THREE,
    "log_softmax": lambda x: jax.nn.log_softmax(spread(x))[0],
    "norm": lambda x: jnp.linalg.norm(spread(x)),
    "norm_1": lambda x: jnp.linalg.norm(spread(x), 1),
    "hypot": lambda x: jnp.hypot(x, 0.2),
    "var": lambda x: jnp.var(spread(x)) + jnp.std(spread(x) + THREE**2),
    "cholesky": lambda x: jnp.linalg.cholesky(matrix(x)).sum(),
    "triangular_solve": lambda x: lax.linalg.triangular_solve(
        TRI, spread(x)[:, None], left_side=True, lower=True
    ).sum(),
    "solve": lambda x: jnp.linalg.solve(matrix(x), THREE[:2])[0],
    "inv": lambda x: jnp.linalg.inv(matrix(x))[0, 0],
    "slogdet": lambda x: jnp.linalg.slogdet(matrix(x))[1],
    "eigvalsh": lambda x: jnp.linalg.eigvalsh(matrix(x))[0],
    "expm": lambda x: jax.scipy.linalg.expm(0.3 * matrix(jnp.tanh(x))).sum(),
    "interp": lambda x: jnp.interp(x, KNOTS, KNOTS**2),
    "median": lambda x: jnp.median(spread(x)),
    "quantile": lambda x: jnp.quantile(spread(x), 0.3),
    "cumsum": lambda x: jnp.cumsum(spread(x)) @ THREE,
    "cumlogsumexp": lambda x: lax.cumlogsumexp(spread(x)) @ THREE,
    "lgamma": lambda x: jsp.gammaln(exp(x)) + jsp.digamma(exp(x)),
    "gamma": lambda x: jsp.gamma(1.0 + sigmoid(x)),
    "erf": lambda x: jsp.erf(x) + jsp.erfinv(jnp.tanh(x)),
    "ndtr": jsp.ndtr,
    "log_ndtr": jsp.log_ndtr,
    "ndtri": lambda x: jsp.ndtri(sigmoid(x)),
    "i0e": lambda x: jsp.i0e(x) + jsp.i1e(x),
    "betaln": lambda x: jsp.betaln(6.0 * exp(0.3 * x), 3.0),
    "betainc": lambda x: jsp.betainc(2.0, 3.0, sigmoid(x)),
    "gammainc": lambda x: jsp.gammainc(2.0, exp(x)),
    "xlogy": lambda x: jsp.xlogy(exp(x), exp(x)) + jsp.entr(sigmoid(x)),
    "rel_entr": lambda x: jsp.rel_entr(sigmoid(x), 0.3) + jsp.kl_div(sigmoid(x), 0.2),
    "sinc": jnp.sinc,
    "spence": lambda x: jsp.spence(0.1 + 0.8 * sigmoid(x)) + jsp.spence(1.2 + sigmoid(x)),
    "polyval": lambda x: jnp.polyval(THREE, jnp.tanh(x)),
    "gamma_draw": lambda x: jax.random.gamma(jax.random.key(0), exp(0.1 * x)),
    "own_relu": lambda x: jnp.where(x > 0, x, 0.0),
    "own_leaky_relu": own_leaky_relu,
    "own_prelu": lambda x: jnp.where(x > 0, x, THREE[0] * x),
    "own_elu": lambda x: jnp.where(x < 0, jnp.expm1(x), x),
    "own_huber": lambda x: jnp.where(jnp.abs(x) <= 1.0, 0.5 * x**2, jnp.abs(x) - 0.5),
    "own_clip": lambda x: jnp.where(x > 1.0, 1.0, jnp.where(x < -1.0, -1.0, x)),
    "safe_log": lambda x: jnp.where(x > 0, jnp.log1p(jnp.where(x > 0, x, 1.0)), 0.0),
    "safe_quotient": lambda x: jnp.where(x == 0, 1.0, jnp.sin(x) / jnp.where(x == 0, 1.0, x)),
    "own_softplus": lambda x: jnp.where(x > 0, x + jnp.log1p(exp(-x)), jax.nn.softplus(x)),
    "straight_line_mask": lambda x: jnp.where(THREE > 0, x, 0.0).sum(),
    "fixed_index": lambda x: spread(x)[jnp.argmax(THREE)],
    "custom_jvp": smooth_at_heart,
    "assume_smooth": declared,
    "dead": dead,
    "dead_in_jit": dead_in_jit,
    "dead_in_scan": dead_in_scan,
    "support_guard": supported,
    "nan_guard": not_a_number,
    "scan": scanned,
    "fori_loop": counted,
    "cond": other_branch,
    "vmap": lambda x: jax.vmap(jnp.tanh)(spread(x)).sum(),
    "library_loop": stages,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.abs(x))),
    "langevin": langevin,
    "normal": log_prob("Normal", 0.1, 0.9),
    "log_normal": log_prob("LogNormal", 0.1, 0.9, to=exp),
    "gamma_density": log_prob("Gamma", 2.0, 3.0, to=exp),
    "beta_density": log_prob("Beta", 2.0, 3.0, to=sigmoid),
    "student_t": log_prob("StudentT", 3.0, 0.1, 0.9),
    "laplace": log_prob("Laplace", 0.1, 0.9),
    "asymmetric_laplace": log_prob("AsymmetricLaplace", 0.1, 0.9, 0.5),
    "cauchy": log_prob("Cauchy", 0.1, 0.9),
    "exponential": log_prob("Exponential", 2.0, to=exp),
    "weibull": log_prob("Weibull", 2.0, 1.5, to=exp),
    "gumbel": log_prob("Gumbel", 0.1, 1.5),
    "logistic": log_prob("Logistic", 0.1, 0.9),
    "half_normal": log_prob("HalfNormal", 0.9, to=lambda x: exp(0.5 * x)),
    "half_cauchy": log_prob("HalfCauchy", 0.9, to=exp),
    "inverse_gamma": log_prob("InverseGamma", 2.0, 1.0, to=lambda x: exp(0.5 * x)),
    "dirichlet": log_prob("Dirichlet", THREE**2, to=simplex),
    "multivariate_normal": log_prob("MultivariateNormal", jnp.zeros(3), scale_tril=TRI, to=spread),
    "low_rank": log_prob(
        "LowRankMultivariateNormal", jnp.zeros(3), TRI[:, :1], THREE**2, to=spread
    ),
    "von_mises": log_prob("VonMises", 0.1, 2.0, to=lambda x: 3.0 * jnp.tanh(x)),
    "truncated_normal": log_prob("TruncatedNormal", 0.1, 1.0, low=0.0, to=jax.nn.softplus),
    "truncated_both": log_prob("TruncatedNormal", 0.1, 1.0, low=0.0, high=1.0, to=sigmoid),
    "mixture": weights,
    "uniform": log_prob("Uniform", -50.0, 50.0),
    "pareto": log_prob("Pareto", 1.0, 2.0, to=lambda x: 1.0 + exp(x)),
    "kumaraswamy": log_prob("Kumaraswamy", 2.0, 3.0, to=sigmoid),
    "lkj_cholesky": log_prob("LKJCholesky", 2, 1.5, to=corr),
    "soft_laplace": log_prob("SoftLaplace", 0.1, 1.0),
    "poisson": lambda x: d.Poisson(exp(0.5 * x)).log_prob(3),
    "bernoulli": lambda x: (
        d.Bernoulli(logits=x).log_prob(1) + d.Bernoulli(probs=sigmoid(x)).log_prob(0)
    ),
    "binomial": lambda x: (
        d.Binomial(5, logits=x).log_prob(2) + d.Binomial(5, probs=sigmoid(x)).log_prob(2)
    ),
    "categorical": lambda x: (
        d.Categorical(logits=spread(x)).log_prob(1) + d.Categorical(probs=simplex(x)).log_prob(0)
    ),
    "geometric": lambda x: d.Geometric(probs=sigmoid(x)).log_prob(2),
    "negative_binomial": lambda x: d.NegativeBinomial2(exp(0.5 * x), 2.0).log_prob(2),
    "multinomial": lambda x: d.Multinomial(5, probs=simplex(x)).log_prob(jnp.array([1, 2, 2])),
    "ordered": lambda x: d.OrderedLogistic(x, KNOTS[2:4]).log_prob(1),
    "truncation_parameters": lambda x: d.TruncatedNormal(x, exp(0.1 * x), low=0.0).log_prob(0.3),
    "mixture_parameters": lambda x: d.MixtureSameFamily(
        d.Categorical(logits=spread(x)), d.Normal(spread(x), 1.0)
    ).log_prob(0.2),
}
