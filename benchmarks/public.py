"""Models in the manner of public questions, whose posteriors are awkward, on made-up data.

What users of PyMC and Stan ask about in forums and trackers, rebuilt small: wide priors on
exponents, bounds that the data set, centred hierarchies, funnels, heavy tails. Each function
returns a model; :mod:`benchmarks.verdict` fits them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pymc as pm
import pytensor.tensor as pt


def hill() -> pm.Model:
    """Dose response with very wide priors on its exponent and asymptotes."""
    rng = np.random.default_rng(4)
    dose = np.repeat([0.0, 1.0, 3.0, 10.0, 30.0, 100.0], 5)
    mean = 20 * (1 + 2.5 * dose**1.5 / (12**1.5 + dose**1.5))
    with pm.Model() as model:
        sigma, a, b = pm.HalfCauchy("sigma", 3), pm.Normal("a", 0, 10), pm.HalfCauchy("b", 3)
        c, d = pm.Normal("c", 0, 100), pm.HalfNormal("d", 100)
        curve = a * (1 + (c - 1) * dose**d / (b**d + dose**d))
        pm.Normal("response", curve, sigma, observed=np.log(rng.lognormal(np.log(mean), 0.25)))
    return model


def maxima() -> pm.Model:
    """Generalised extreme values of 40 years: the support depends on all three parameters."""
    rng = np.random.default_rng(1)
    y = 3.8 + 0.2 * ((-np.log(rng.uniform(size=40))) ** 0.1 - 1) / -0.1

    def logp(value, mu, sigma, xi):
        scaled = (value - mu) / sigma
        inside = 1 + xi * scaled
        log_inside = pt.log(pt.switch(inside > 0, inside, 1.0))
        safe = pt.switch(pt.abs(xi) > 1e-4, xi, 1e-4)
        power = pt.switch(pt.abs(xi) > 1e-4, log_inside / safe, scaled)
        log_density = -pt.log(sigma) - (xi + 1) * power - pt.exp(-power)
        return pt.switch(inside > 0, log_density, -np.inf)

    with pm.Model() as model:
        mu, sigma = pm.Normal("mu", 3.8, 0.2), pm.HalfNormal("sigma", 0.3)
        xi = pm.TruncatedNormal("xi", 0, 0.2, lower=-0.6, upper=0.6)
        pm.CustomDist("y", mu, sigma, xi, logp=logp, observed=y)
    return model


def barrier() -> pm.Model:
    """A regression whose slopes are kept in a simplex by a Potential of minus infinity."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 2))
    y = x @ [0.6, 0.5] + rng.normal(size=40)
    with pm.Model() as model:
        beta, sigma = pm.Normal("beta", 0, 1, shape=2), pm.HalfNormal("sigma", 1)
        pm.Potential("sum", pt.switch(beta.sum() < 1, 0.0, -np.inf))
        pm.Normal("y", x @ beta, sigma, observed=y)
    return model


def weibull() -> pm.Model:
    """Hierarchical Weibull, centred: lifetimes in 10 groups whose shapes are all but equal."""
    rng = np.random.default_rng(2)
    groups, n = 10, 200
    scale, shape = rng.normal(1.5, 0.4, groups), rng.normal(0.3, 0.1, groups)
    g = rng.integers(0, groups, n)
    with pm.Model(coords={"group": range(groups)}) as model:
        ml, sl = pm.Normal("log_scale_mu", 0, 2), pm.Exponential("log_scale_sd", 1)
        mk, sk = pm.Normal("log_k_mu", 0, 1), pm.Exponential("log_k_sd", 1)
        ls, lk = (
            pm.Normal("log_scale", ml, sl, dims="group"),
            pm.Normal("log_k", mk, sk, dims="group"),
        )
        pm.Weibull(
            "y",
            pm.math.exp(lk[g]),
            pm.math.exp(ls[g]),
            observed=np.exp(scale[g]) * rng.weibull(np.exp(shape[g])),
        )
    return model


def weibull_censored() -> pm.Model:
    """Lifetimes in 30 groups, censored at times of their own: hierarchical Weibull, centred."""
    rng = np.random.default_rng(2)
    groups, n = 30, 600
    scale, shape = rng.normal(1.5, 0.4, groups), rng.normal(0.3, 0.2, groups)
    g = rng.integers(0, groups, n)
    life, end = np.exp(scale[g]) * rng.weibull(np.exp(shape[g])), rng.uniform(1, 9, n)
    with pm.Model(coords={"group": range(groups)}) as model:
        ml, sl = pm.Normal("log_scale_mu", 0, 2), pm.Exponential("log_scale_sd", 1)
        mk, sk = pm.Normal("log_k_mu", 0, 1), pm.Exponential("log_k_sd", 1)
        ls = pm.Normal("log_scale", ml, sl, dims="group")
        lk = pm.Normal("log_k", mk, sk, dims="group")
        lifetime = pm.Weibull.dist(pm.math.exp(lk[g]), pm.math.exp(ls[g]))
        upper = np.where(life > end, end, np.inf)
        pm.Censored("y", lifetime, lower=None, upper=upper, observed=np.minimum(life, end))
    return model


def drift_diffusion() -> pm.Model:
    """First passages of six subjects, whose non-decision times the least of each bounds."""
    rng = np.random.default_rng(9)
    subjects, each, step = 6, 40, 0.002
    s = np.repeat(np.arange(subjects), each)
    v, a, t = (rng.normal(*of, subjects) for of in ((1.0, 0.4), (1.5, 0.15), (0.3, 0.04)))
    times, answers = np.empty(s.size), np.empty(s.size)
    for i, j in enumerate(s):
        place, k = a[j] / 2, 0
        while 0 < place < a[j] and k < 5000:
            place, k = place + v[j] * step + np.sqrt(step) * rng.normal(), k + 1
        times[i], answers[i] = k * step + t[j], 1 if place >= a[j] else -1
    least = np.array([times[s == j].min() for j in range(subjects)])

    def logp(value, v, a, t):
        # Navarro & Fuss (2009): the series for small times, from half of the way
        drift, time, w, k = -v * answers, value - t, 0.5, np.arange(-3, 4)
        scaled = pt.maximum(time, 1e-6) / a**2
        series = ((w + 2 * k) * pt.exp(-((w + 2 * k) ** 2) / (2 * scaled[:, None]))).sum(1)
        first = pt.log(pt.maximum(series, 1e-30)) - 0.5 * np.log(2 * np.pi) - 1.5 * pt.log(scaled)
        log_density = first - drift * a * w - drift**2 * time / 2 - 2 * pt.log(a)
        return pt.switch(time > 0, log_density, -np.inf)

    with pm.Model(coords={"subject": range(subjects)}) as model:
        mv, sv = pm.Normal("v_mu", 0, 2), pm.HalfNormal("v_sd", 0.5)
        ma, sa = pm.Gamma("a_mu", mu=1.5, sigma=0.75), pm.HalfNormal("a_sd", 0.3)
        drift = pm.Normal("v", mv, sv, dims="subject")
        width = pm.TruncatedNormal("a", ma, sa, lower=0.1, dims="subject")
        late = pm.Uniform("t", 0, least, dims="subject")
        pm.CustomDist("rt", drift[s], width[s], late[s], logp=logp, observed=times)
    return model


def power_law() -> pm.Model:
    """A power law whose exponent has a Normal(0, 100) prior, multiplicative noise."""
    rng = np.random.default_rng(5)
    x = rng.uniform(0.5, 20, 50)
    with pm.Model() as model:
        a, b = pm.HalfNormal("a", 100), pm.Normal("b", 0, 100)
        sigma = pm.HalfNormal("sigma", 10)
        pm.Normal("y", a * x**b, sigma, observed=2 * x**0.7 + rng.normal(0, 0.5, 50))
    return model


def league() -> pm.Model:
    """Attack and defence of six teams with flat intercepts, centred hierarchies."""
    rng = np.random.default_rng(10)
    n = 6
    attack, defence = rng.normal(0, 0.3, n), rng.normal(0, 0.3, n)
    attack, defence = attack - attack.mean(), defence - defence.mean()
    h, a = np.array([(i, j) for i in range(n) for j in range(n) if i != j]).T
    home_score = rng.poisson(np.exp(3.1 + attack[h] + defence[a]))
    away_score = rng.poisson(np.exp(2.9 + attack[a] + defence[h]))
    with pm.Model(coords={"team": range(n)}) as model:
        home, intercept = pm.Flat("home"), pm.Flat("intercept")
        sa = pm.HalfStudentT("sd_att", nu=3, sigma=2.5)
        sd = pm.HalfStudentT("sd_def", nu=3, sigma=2.5)
        att, dfc = pm.Normal("att", 0, sa, dims="team"), pm.Normal("def", 0, sd, dims="team")
        att, dfc = att - att.mean(), dfc - dfc.mean()
        pm.Poisson("at_home", pm.math.exp(intercept + home + att[h] + dfc[a]), observed=home_score)
        pm.Poisson("away", pm.math.exp(intercept + att[a] + dfc[h]), observed=away_score)
    return model


def horseshoe() -> pm.Model:
    """Regularised horseshoe, 15 coefficients, 40 rows."""
    return _horseshoe([4, -5, 1.0], size=15, n=40)


def wide_horseshoe() -> pm.Model:
    """Regularised horseshoe, 30 coefficients, 60 rows."""
    return _horseshoe([4, -5, 6, 1.0], size=30, n=60)


def _horseshoe(signals: list[float], size: int, n: int) -> pm.Model:
    rng, some = np.random.default_rng(19), len(signals)
    x, b = rng.normal(size=(n, size)), np.zeros(size)
    b[:some] = signals
    y = 1 + x @ b + rng.normal(size=n)
    with pm.Model(coords={"x": range(size)}) as model:
        s = pm.HalfNormal("sigma", 2.5)
        tau = pm.HalfStudentT("tau", nu=2, sigma=some / (size - some) * s / np.sqrt(n))
        lam, c2 = pm.HalfStudentT("lam", nu=5, sigma=1, dims="x"), pm.InverseGamma("c2", 2, 8)
        z = pm.Normal("z", 0, 1, dims="x")
        beta = z * tau * lam * pm.math.sqrt(c2 / (c2 + tau**2 * lam**2))
        pm.Normal("y", pm.Normal("beta0", 0, 10) + x @ beta, s, observed=y)
    return model


def slopes() -> pm.Model:
    """Intercepts and slopes of 12 groups with a common LKJ covariance, centred."""
    rng = np.random.default_rng(7)
    groups, each = 12, 8
    g = np.repeat(np.arange(groups), each)
    x = rng.normal(size=groups * each)
    truth = rng.multivariate_normal([1.0, 0.5], [[0.6, -0.2], [-0.2, 0.3]], size=groups)
    y = truth[g, 0] + truth[g, 1] * x + rng.normal(0, 0.7, len(g))
    with pm.Model(coords={"group": range(groups), "term": ["1", "x"]}) as model:
        chol, *_ = pm.LKJCholeskyCov("chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1, shape=2))
        mu = pm.Normal("mu", 0, 2, dims="term")
        ab = pm.MvNormal("ab", mu, chol=chol, dims=("group", "term"))
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", ab[g, 0] + ab[g, 1] * x, sigma, observed=y)
    return model


def volatility() -> pm.Model:
    """Stochastic volatility of 100 days: a random walk whose step is unknown."""
    rng = np.random.default_rng(6)
    days = 100
    log_vol = np.cumsum(rng.normal(0, 0.15, days)) - 1
    with pm.Model(coords={"day": range(days)}) as model:
        step, nu = pm.Exponential("step", 10), pm.Exponential("nu", 0.1)
        walk = pm.GaussianRandomWalk("walk", sigma=step, init_dist=pm.Normal.dist(0, 2), dims="day")
        returns = np.exp(log_vol) * rng.standard_t(8, days)
        pm.StudentT("r", nu=nu, mu=0, sigma=pm.math.exp(walk), observed=returns)
    return model


def level() -> pm.Model:
    """A local level of 250 days with both scales unknown: more than 200 elements."""
    rng = np.random.default_rng(8)
    days = 250
    mean = np.cumsum(rng.normal(0, 0.2, days))
    with pm.Model(coords={"day": range(days)}) as model:
        step, noise = pm.HalfNormal("step", 1), pm.HalfNormal("noise", 1)
        walk = pm.GaussianRandomWalk("walk", sigma=step, init_dist=pm.Normal.dist(0, 5), dims="day")
        pm.Normal("y", walk, noise, observed=mean + rng.normal(0, 0.8, days))
    return model


def tumours() -> pm.Model:
    """Rates of 20 groups with a beta population in its mean and a wide precision."""
    rng = np.random.default_rng(11)
    n = rng.integers(10, 30, 20)
    y = rng.binomial(n, rng.beta(2, 12, 20))
    with pm.Model(coords={"group": range(20)}) as model:
        mean, size = pm.Uniform("mean", 0, 1), pm.Pareto("size", 1.5, 1.0)
        theta = pm.Beta("theta", mean * size, (1 - mean) * size, dims="group")
        pm.Binomial("y", n, theta, observed=y)
    return model


def funnel() -> pm.Model:
    """Neal's funnel of nine effects, each seen once with little precision."""
    rng = np.random.default_rng(12)
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        x = pm.Normal("x", 0, pm.math.exp(v / 2), shape=9)
        pm.Normal("y", x, 2.0, observed=rng.normal(0, 2.2, 9))
    return model


def outliers() -> pm.Model:
    """A line with Student t noise of unknown degrees of freedom, two gross outliers."""
    rng = np.random.default_rng(13)
    x = np.linspace(-1, 1, 25)
    y = 1 + 2 * x + rng.normal(0, 0.3, 25)
    y[[3, 20]] += [4, -6]
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 10), pm.Normal("b", 0, 10)
        sigma, nu = pm.HalfCauchy("sigma", 1), pm.Gamma("nu", 2, 0.1)
        pm.StudentT("y", nu=nu, mu=a + b * x, sigma=sigma, observed=y)
    return model


def zeros() -> pm.Model:
    """Zero-inflated negative binomial counts of which few are not zero."""
    rng = np.random.default_rng(14)
    y = rng.negative_binomial(1.5, 0.3, 60) * (rng.uniform(size=60) < 0.35)
    with pm.Model() as model:
        psi = pm.Beta("psi", 1, 1)
        mu, alpha = pm.Gamma("mu", 2, 0.5), pm.Exponential("alpha", 0.5)
        pm.ZeroInflatedNegativeBinomial("y", psi, mu, alpha, observed=y)
    return model


def overlap() -> pm.Model:
    """Two components that all but overlap, ordered means."""
    rng = np.random.default_rng(15)
    y = np.concatenate([rng.normal(-0.8, 1, 50), rng.normal(1.2, 0.7, 30)])
    with pm.Model() as model:
        w = pm.Beta("w", 2, 2)
        mu = pm.Normal(
            "mu",
            0,
            2,
            shape=2,
            transform=pm.distributions.transforms.ordered,
            initval=np.array([-1.0, 1.0]),
        )
        sigma = pm.HalfNormal("sigma", 1, shape=2)
        pm.NormalMixture("y", pt.stack([w, 1 - w]), mu, sigma, observed=y)
    return model


def decay() -> pm.Model:
    """Two exponentials whose rates are hardly told apart by twelve points."""
    rng = np.random.default_rng(16)
    t = np.linspace(0, 5, 12)
    y = 3 * np.exp(-1.2 * t) + 1 * np.exp(-0.2 * t) + rng.normal(0, 0.1, 12)
    with pm.Model() as model:
        a = pm.HalfNormal("a", 5, shape=2)
        fast, share = pm.LogNormal("fast", 0, 1), pm.Beta("share", 1, 1)
        sigma = pm.HalfNormal("sigma", 0.5)
        curve = a[0] * pm.math.exp(-fast * t) + a[1] * pm.math.exp(-fast * share * t)
        pm.Normal("y", curve, sigma, observed=y)
    return model


def hospitals() -> pm.Model:
    """Rates of 70 hospitals with a beta population."""
    rng = np.random.default_rng(17)
    n = rng.integers(20, 200, 70)
    y = rng.binomial(n, rng.beta(8, 32, 70))
    with pm.Model(coords={"hospital": range(70)}) as model:
        mean, size = pm.Beta("mean", 2, 2), pm.Gamma("size", 2, 0.05)
        rate = pm.Beta("rate", mean * size, (1 - mean) * size, dims="hospital")
        pm.Binomial("y", n, rate, observed=y)
    return model


def heavy_groups() -> pm.Model:
    """Intercepts of 40 groups with a Student t population of unknown degrees of freedom."""
    rng = np.random.default_rng(18)
    group = np.repeat(np.arange(40), 10)
    y = (1 + 0.5 * rng.standard_t(4, 40))[group] + rng.normal(size=400)
    with pm.Model(coords={"group": range(40)}) as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 2)
        nu, sigma = pm.Gamma("nu", 2, 0.1), pm.HalfNormal("sigma", 2)
        intercept = pm.StudentT("intercept", nu=nu, mu=mu, sigma=tau, dims="group")
        pm.Normal("y", intercept[group], sigma, observed=y)
    return model


def claims() -> pm.Model:
    """Counts of 60 policies with a gamma population of rates."""
    rng = np.random.default_rng(19)
    exposure = rng.uniform(1, 10, 60)
    y = rng.poisson(exposure * rng.gamma(3, 0.5, 60))
    with pm.Model(coords={"policy": range(60)}) as model:
        alpha, beta = pm.Gamma("alpha", 2, 0.5), pm.Gamma("beta", 2, 0.5)
        rate = pm.Gamma("rate", alpha, beta, dims="policy")
        pm.Poisson("y", rate * exposure, observed=y)
    return model


def overdispersed() -> pm.Model:
    """Negative binomial counts in 30 groups."""
    rng = np.random.default_rng(20)
    group = np.repeat(np.arange(30), 8)
    rate = np.exp(1 + 0.5 * rng.normal(size=30))[group]
    y = rng.negative_binomial(3, 3 / (3 + rate))
    with pm.Model(coords={"group": range(30)}) as model:
        level, spread = pm.Normal("level", 0, 2), pm.HalfNormal("spread", 1)
        effect = pm.Normal("effect", 0, spread, dims="group")
        alpha = pm.Exponential("alpha", 0.5)
        mu = pm.math.exp(level + effect[group])
        pm.NegativeBinomial("y", mu=mu, alpha=alpha, observed=y)
    return model


#: Every model by its name.
MODELS: dict[str, Callable[[], pm.Model]] = {
    function.__name__: function
    for function in (
        hill,
        maxima,
        barrier,
        weibull,
        weibull_censored,
        drift_diffusion,
        power_law,
        league,
        horseshoe,
        wide_horseshoe,
        slopes,
        volatility,
        level,
        tumours,
        funnel,
        outliers,
        zeros,
        overlap,
        decay,
        hospitals,
        heavy_groups,
        claims,
        overdispersed,
    )
}
