"""How much the gradient estimators scatter: standard deviations, and what they cost in runs.

Every table has an exact reference for the mean, by a closed form, a sum over all values or a fine
grid, so that its numbers are variances of unbiased estimates: `z` is the largest distance of a
coordinate's mean from the reference in standard errors of the mean, `!` where that would happen
by chance once in 10^6 tables. `sd` is the root mean square over coordinates of the standard
deviation of one estimate, `sd / |g|` the same over the gradient's root mean square, `runs` the
number of evaluations of the objective to an estimate, `var x runs` what an evaluation buys.

    plate       z_i ~ Bern(0.3), x_i ~ Normal(1.5 z_i, 1), i < B; guide z_i ~ Bern(logits = l_i)
    normal      measure-valued derivatives of E[k(x)], x ~ Normal(0.4, 0.8), noise shared or not
    coins       E[sum_i (b_i - 0.499)^2] and E[(sum_i b_i - 0.499 n)^2], b_i ~ Bern(logits = l_i)
    chain       the ELBO of the chain of binary choices of `enumeration.py`, K = 6
    landing     an ELBO at the posterior and off it
    bounds      importance-weighted bounds of a discrete and of a normal guide
    walk        z_t ~ Bern(logits = a + b s_t), s_{t+1} = s_t + 2 z_t - 1, a cost each step
    strategies  64 runs of the ELBO of a logistic regression: independent, mirrored, Sobol'

    python benchmarks/variance.py [--quick] [--only plate coins] [--save | --out FILE]
"""

from __future__ import annotations

from _report import Report
from _variance_bounds import bounds, landing, strategies
from _variance_discrete import chain, coins
from _variance_normal import normal
from _variance_plates import plate, walk


def main():
    tables = (plate, normal, coins, chain, landing, bounds, walk, strategies)
    names = [f.__name__ for f in tables]
    report = Report("variance", __doc__, ("--only", {"nargs": "+", "choices": names}))
    n, steps = (4096, 300) if report.quick else (16384, 1000)
    for table in tables:
        if table.__name__ in (report.options.only or names):
            table(report, n, *((steps,) if table in (coins, chain) else ()))
    report.close()


if __name__ == "__main__":
    main()
