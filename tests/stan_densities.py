"""The log densities of the models of posteriordb in NumPy and SciPy, as their Stan programs say.

`DENSITIES[model](data, **parameters)` is log p(parameters, data) up to a constant.
"""

import numpy as np
from scipy import integrate, stats

normal = stats.norm.logpdf


def half_cauchy(x, scale):
    return -np.log1p((x / scale) ** 2)


def arK(data, alpha, beta, sigma):
    y, k = data["y"], data["K"]
    found = normal(alpha, 0, 10) + normal(beta, 0, 10).sum() + half_cauchy(sigma, 2.5)
    for t in range(k, len(y)):
        mean = alpha + sum(beta[j] * y[t - 1 - j] for j in range(k))
        found += normal(y[t], mean, sigma)
    return found


def arma11(data, mu, phi, theta, sigma):
    y = data["y"]
    found = normal(mu, 0, 10) + normal(phi, 0, 2) + normal(theta, 0, 2) + half_cauchy(sigma, 2.5)
    error = y[0] - (mu + phi * mu)
    found += normal(error, 0, sigma)
    for t in range(1, len(y)):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        found += normal(error, 0, sigma)
    return found


def garch11(data, mu, alpha0, alpha1, beta1):
    y, sd, found = data["y"], data["sigma1"], 0.0
    for t in range(len(y)):
        found += normal(y[t], mu, sd)
        sd = np.sqrt(alpha0 + alpha1 * (y[t] - mu) ** 2 + beta1 * sd**2)
    return found


def eight_schools_centered(data, theta, mu, tau):
    found = normal(mu, 0, 5) + half_cauchy(tau, 5) + normal(theta, mu, tau).sum()
    return found + normal(data["y"], theta, data["sigma"]).sum()


def eight_schools_noncentered(data, theta_trans, mu, tau):
    theta = mu + tau * theta_trans
    found = normal(mu, 0, 5) + half_cauchy(tau, 5) + normal(theta_trans).sum()
    return found + normal(data["y"], theta, data["sigma"]).sum()


def kidscore_momiq(data, beta, sigma):
    mean = np.column_stack([np.ones(434), data["mom_iq"]]) @ beta
    return half_cauchy(sigma, 2.5) + normal(data["kid_score"], mean, sigma).sum()


def kidscore_interaction(data, beta, sigma):
    hs, iq = data["mom_hs"], data["mom_iq"]
    mean = np.column_stack([np.ones(434), hs, iq, hs * iq]) @ beta
    return half_cauchy(sigma, 2.5) + normal(data["kid_score"], mean, sigma).sum()


def kidscore_interaction_z(data, beta, sigma):
    hs, iq = (stats.zscore(data[name], ddof=1) / 2 for name in ("mom_hs", "mom_iq"))
    mean = np.column_stack([np.ones(434), hs, iq, hs * iq]) @ beta
    return normal(data["kid_score"], mean, sigma).sum()


def earn_height(data, beta, sigma):
    return normal(data["earn"], beta[0] + beta[1] * data["height"], sigma).sum()


def logearn_height(data, beta, sigma):
    return normal(np.log(data["earn"]), beta[0] + beta[1] * data["height"], sigma).sum()


def mesquite(data, beta, sigma):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    mean = beta[0] + sum(b * data[name] for b, name in zip(beta[1:], names, strict=True))
    return normal(data["weight"], mean, sigma).sum()


def logmesquite_logvas(data, beta, sigma):
    area = data["diam1"] * data["diam2"]
    columns = (
        np.log(area * data["canopy_height"]),
        np.log(area),
        np.log(data["diam1"] / data["diam2"]),
        np.log(data["total_height"]),
        np.log(data["density"]),
        data["group"],
    )
    mean = beta[0] + sum(b * x for b, x in zip(beta[1:], columns, strict=True))
    return normal(np.log(data["weight"]), mean, sigma).sum()


def nes(data, beta, sigma):
    mean = np.full(len(data["partyid7"]), beta[0])
    mean += beta[1] * data["real_ideo"] + beta[2] * data["race_adj"]
    for at, age in ((3, 2), (4, 3), (5, 4)):
        mean += beta[at] * (data["age_discrete"] == age)
    mean += beta[6] * data["educ1"] + beta[7] * data["gender"] + beta[8] * data["income"]
    return normal(data["partyid7"], mean, sigma).sum()


def blr(data, beta, sigma):
    prior = normal(beta, 0, 10).sum() + normal(sigma, 0, 10)
    return prior + normal(data["y"], data["X"] @ beta, sigma).sum()


def diamonds(data, b, Intercept, sigma):
    x = data["X"][:, 1:] - data["X"][:, 1:].mean(0)
    prior = normal(b).sum() + stats.t.logpdf(Intercept, 3, 8, 10) + stats.t.logpdf(sigma, 3, 0, 10)
    return prior + normal(data["Y"], Intercept + x @ b, sigma).sum()


def scales(rho, alpha):
    return stats.gamma.logpdf(rho, 25, scale=1 / 4) + normal(alpha, 0, 2)


def kernel(x, rho, alpha):
    return alpha**2 * np.exp(-(np.subtract.outer(x, x) ** 2) / (2 * rho**2))


def gp_regr(data, rho, alpha, sigma):
    cov = kernel(data["x"], rho, alpha) + sigma * np.eye(11)
    prior = scales(rho, alpha) + normal(sigma)
    return prior + stats.multivariate_normal.logpdf(data["y"], np.zeros(11), cov)


def gp_pois_regr(data, rho, alpha, f_tilde):
    f = np.linalg.cholesky(kernel(data["x"], rho, alpha) + 1e-10 * np.eye(11)) @ f_tilde
    prior = scales(rho, alpha) + normal(f_tilde).sum()
    return prior + stats.poisson.logpmf(data["k"], np.exp(f)).sum()


def low_dim_gauss_mix(data, mu, sigma, theta):
    prior = normal(mu, 0, 2).sum() + normal(sigma, 0, 2).sum() + stats.beta.logpdf(theta, 5, 5)
    low, high = (stats.norm.pdf(data["y"], mu[k], sigma[k]) for k in range(2))
    return prior + np.log(theta * low + (1 - theta) * high).sum()


def hmm_example(data, theta1, theta2, mu):
    """By products of matrices, each brought back to a sum of one."""
    transition = np.stack([theta1, theta2])
    emission = stats.norm.pdf(data["y"][:, None], mu)
    found, alpha = normal(mu[0], 3) + normal(mu[1], 10), np.ones(2)
    for t, likelihood in enumerate(emission):
        alpha = (alpha @ transition if t else alpha) * likelihood
        found += np.log(alpha.sum())
        alpha = alpha / alpha.sum()
    return found


def lotka_volterra(data, theta, z_init, sigma):
    def field(t, z):
        return [(theta[0] - theta[1] * z[1]) * z[0], (-theta[2] + theta[3] * z[0]) * z[1]]

    times = data["ts"]
    solved = integrate.solve_ivp(field, (0, times[-1]), z_init, t_eval=times, rtol=1e-9, atol=1e-9)
    found = normal(theta, [1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05]).sum()
    found += stats.lognorm.logpdf(sigma, 1, scale=np.exp(-1)).sum()
    found += stats.lognorm.logpdf(z_init, 1, scale=10).sum()
    found += stats.lognorm.logpdf(data["y_init"], sigma, scale=z_init).sum()
    return found + stats.lognorm.logpdf(data["y"], sigma, scale=solved.y.T).sum()


DENSITIES = {
    f.__name__: f
    for f in (
        arK,
        arma11,
        blr,
        diamonds,
        earn_height,
        eight_schools_centered,
        eight_schools_noncentered,
        garch11,
        gp_pois_regr,
        gp_regr,
        hmm_example,
        kidscore_interaction,
        kidscore_interaction_z,
        kidscore_momiq,
        logearn_height,
        logmesquite_logvas,
        lotka_volterra,
        low_dim_gauss_mix,
        mesquite,
        nes,
    )
}
