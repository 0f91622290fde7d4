"""Ordinary textbook models against long NUTS runs: ``python -m benchmarks.textbook``.

Twenty models on classical data sets, written as users write them: nothing is standardised, and
hierarchies are centred. Each is fitted by `emf.fit` at its defaults. A fit passes if every element
of every free variable, on its constrained scale, has a mean within 0.1 posterior standard
deviations of that of NUTS, and a standard deviation within 10%.

``python -m benchmarks.textbook reference`` runs NUTS for the models that ``data/textbook.json``
lacks. Where the model as written is hard for NUTS, the reference is another parameterisation of
the same posterior, and the file says which:

============ ====================================================================================
as written   the model itself
whitened     its unconstrained space in affine coordinates that make the Laplace approximation at
             the mode a standard normal (:func:`whiten`)
non-centred  the same variables as functions of standard normal noise
marginal     some variables integrated out of the likelihood, and drawn given the others
============ ====================================================================================
"""

from __future__ import annotations

import argparse
import json
import logging

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import xarray as xr

from arviz_stats.base import array_stats
from pymc.distributions.transforms import ordered
from pytensor.gradient import hessian
from pytensor.graph.replace import graph_replace
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.linalg import cholesky, solve_triangular
from sklearn import datasets
from statsmodels import datasets as sm_datasets

REFERENCES = Path(__file__).parent / "data" / "textbook.json"

#: What a fit has to keep to: |mean - NUTS| in standard deviations of NUTS, |sd / NUTS - 1|.
MEAN_TOLERANCE, SD_TOLERANCE = 0.1, 0.1

#: Draws behind the moments of a fit.
DRAWS = 20_000


# --- typed-in data -----------------------------------------------------------------------------

# Rubin, "Estimation in parallel randomized experiments", J. Educ. Stat. 6 (1981), Table 2.
SCHOOL_EFFECT = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SCHOOL_SE = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)

# Weights in grams of 30 rats at 8, 15, 22, 29 and 36 days. Gelfand, Hills, Racine-Poon, Smith,
# "Illustration of Bayesian inference in normal data models using Gibbs sampling", J. Am. Stat.
# Assoc. 85 (1990), Table 3.
RAT_DAYS = (8, 15, 22, 29, 36)
RAT_WEIGHTS = """
    151 199 246 283 320  145 199 249 293 354  147 214 263 312 328  155 200 237 272 297
    135 188 230 280 323  159 210 252 298 331  141 189 231 275 305  159 201 248 297 338
    177 236 285 350 376  134 182 220 260 296  160 208 261 313 352  143 188 220 273 314
    154 200 244 289 325  171 221 270 326 358  163 216 242 281 312  160 207 248 288 324
    142 187 234 280 316  156 203 243 283 317  157 212 259 307 336  152 203 246 286 321
    154 205 253 298 334  139 190 225 267 302  146 191 229 272 302  157 211 250 285 323
    132 185 237 286 331  160 207 257 303 345  169 216 261 295 333  157 205 248 289 316
    137 180 219 258 291  153 200 244 286 324
"""

# Minutes between eruptions of Old Faithful. Azzalini, Bowman, "A look at some data on the Old
# Faithful geyser", Appl. Stat. 39 (1990); the 272 in Härdle, "Smoothing techniques" (1991).
FAITHFUL = """
    79 54 74 62 85 55 88 85 51 85 54 84 78 47 83 52 62 84 52 79 51 47 78 69 74 83 55 76 78 79
    73 77 66 80 74 52 48 80 59 90 80 58 84 58 73 83 64 53 82 59 75 90 54 80 54 83 71 64 77 81
    59 84 48 82 60 92 78 78 65 73 82 56 79 71 62 76 60 78 76 83 75 82 70 65 73 88 76 80 48 86
    60 90 50 78 63 72 84 75 51 82 62 88 49 83 81 47 84 52 86 81 75 59 89 79 59 81 50 85 59 87
    53 69 77 56 88 81 45 82 55 90 45 83 56 89 46 82 51 86 53 79 81 60 82 77 76 59 80 49 96 53
    77 77 65 81 71 70 81 93 53 89 45 86 58 78 66 76 63 88 52 93 49 57 77 68 81 81 73 50 85 74
    55 77 83 83 51 78 84 46 83 55 81 57 76 84 77 81 87 77 51 78 60 82 91 53 78 46 77 84 49 83
    71 80 49 75 64 76 53 94 55 76 50 82 54 75 78 79 78 78 70 79 70 54 86 50 90 54 54 77 79 64
    75 47 86 63 85 82 57 82 67 74 54 83 73 73 88 80 71 83 56 79 78 84 58 83 43 60 75 81 46 90
    46 74
"""

# Earthquakes of magnitude 7 and more in the world, 1900 to 2006. Zucchini, MacDonald, "Hidden
# Markov models for time series" (2009), Table 1.1, after the US Geological Survey.
EARTHQUAKES = """
    13 14  8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14  8 11 14 23 18 17 19 20 22 19
    13 26 13 14 22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15
    22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15  8 15  6 11  8  7
    18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""

# Hair and eye colour of 592 students. Snee, "Graphical display of two-way contingency tables",
# Am. Stat. 28 (1974).
HAIR, EYES = ("black", "brown", "red", "blond"), ("brown", "blue", "hazel", "green")
HAIR_BY_EYES = ((68, 20, 15, 5), (119, 84, 54, 29), (26, 17, 14, 14), (7, 94, 10, 16))


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=int)


@cache
def _frame(name: str) -> pd.DataFrame:
    """Read a data set of statsmodels."""
    return getattr(sm_datasets, name).load_pandas().data


def _columns(frame: pd.DataFrame, *names: str) -> tuple[np.ndarray, dict]:
    """Choose covariates, and the coords that name them."""
    return frame[list(names)].to_numpy(dtype=float), {"covariate": list(names)}


# --- the models --------------------------------------------------------------------------------


def longley() -> pm.Model:
    """US employment, 16 years (Longley 1967); flat priors on nearly collinear raw covariates."""
    data = _frame("longley")
    x, coords = _columns(data, "GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR")
    with pm.Model(coords=coords) as model:
        intercept = pm.Flat("intercept")
        beta = pm.Flat("beta", dims="covariate")
        sigma = pm.HalfFlat("sigma")
        pm.Normal("y", intercept + x @ beta, sigma, observed=data["TOTEMP"].to_numpy(dtype=float))
    return model


def diabetes() -> pm.Model:
    """Disease progression of 442 patients (Efron et al. 2004), raw columns; Normal(0, 1e6)."""
    data = datasets.load_diabetes(scaled=False)
    with pm.Model(coords={"covariate": data.feature_names}) as model:
        intercept = pm.Normal("intercept", 0, 1e6)
        beta = pm.Normal("beta", 0, 1e6, dims="covariate")
        sigma = pm.Uniform("sigma", 0, 1000)
        pm.Normal("y", intercept + data.data @ beta, sigma, observed=data.target)
    return model


def spector() -> pm.Model:
    """Grades of 32 students (Spector and Mazzeo 1980), logistic; flat priors."""
    data = _frame("spector")
    x, coords = _columns(data, "GPA", "TUCE", "PSI")
    with pm.Model(coords=coords) as model:
        intercept = pm.Flat("intercept")
        beta = pm.Flat("beta", dims="covariate")
        pm.Bernoulli("y", logit_p=intercept + x @ beta, observed=data["GRADE"].to_numpy(dtype=int))
    return model


def breast_cancer() -> pm.Model:
    """569 tumours (Street et al. 1993), ten raw columns, logistic; Normal(0, 10)."""
    data = datasets.load_breast_cancer()
    x = data.data[:, :10]
    with pm.Model(coords={"covariate": list(data.feature_names[:10])}) as model:
        intercept = pm.Normal("intercept", 0, 10)
        beta = pm.Normal("beta", 0, 10, dims="covariate")
        pm.Bernoulli("benign", logit_p=intercept + x @ beta, observed=data.target)
    return model


def cpunish() -> pm.Model:
    """Executions in 17 US states (Gill 2000), Poisson, incomes in dollars; Normal(0, 100)."""
    data = _frame("cpunish")
    x, coords = _columns(data, "INCOME", "PERPOVERTY", "PERBLACK", "VC100k96", "SOUTH", "DEGREE")
    with pm.Model(coords=coords) as model:
        intercept = pm.Normal("intercept", 0, 100)
        beta = pm.Normal("beta", 0, 100, dims="covariate")
        rate = pm.math.exp(intercept + x @ beta)
        pm.Poisson("y", rate, observed=data["EXECUTIONS"].to_numpy(dtype=int))
    return model


def randhie() -> pm.Model:
    """Doctor visits, 962 persons of RAND's experiment (Deb and Trivedi 2002), negative binomial."""
    data = _frame("randhie").iloc[::21]
    x, coords = _columns(
        data, "lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp"
    )
    with pm.Model(coords=coords) as model:
        intercept = pm.Normal("intercept", 0, 10)
        beta = pm.Normal("beta", 0, 10, dims="covariate")
        alpha = pm.HalfNormal("alpha", 10)
        mu = pm.math.exp(intercept + x @ beta)
        pm.NegativeBinomial("y", mu=mu, alpha=alpha, observed=data["mdvis"].to_numpy(dtype=int))
    return model


def engel() -> pm.Model:
    """Food expenditure of 235 households (Engel 1857), Student t of unknown nu; vague priors."""
    data = _frame("engel")
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0, 1000)
        slope = pm.Normal("slope", 0, 10)
        sigma = pm.HalfNormal("sigma", 1000)
        nu = pm.Gamma("nu", 2, 0.1)
        mu = intercept + slope * data["income"].to_numpy()
        pm.StudentT("y", nu=nu, mu=mu, sigma=sigma, observed=data["foodexp"].to_numpy())
    return model


def grunfeld() -> pm.Model:
    """Investments of 11 firms over 20 years (Grunfeld 1958); centred intercepts by firm."""
    data = _frame("grunfeld")
    firm, firms = pd.factorize(data["firm"])
    x, coords = _columns(data, "value", "capital")
    with pm.Model(coords=coords | {"firm": list(firms)}) as model:
        mu = pm.Normal("mu", 0, 1000)
        tau = pm.HalfNormal("tau", 1000)
        intercept = pm.Normal("intercept", mu, tau, dims="firm")
        beta = pm.Normal("beta", 0, 10, dims="covariate")
        sigma = pm.HalfNormal("sigma", 1000)
        pm.Normal("y", intercept[firm] + x @ beta, sigma, observed=data["invest"].to_numpy())
    return model


def rats() -> pm.Model:
    """Growth of 30 rats, days not centred; intercepts and slopes centred, LKJ covariance."""
    days = np.array(RAT_DAYS, dtype=float)
    weights = _numbers(RAT_WEIGHTS).reshape(-1, len(days))
    coords = {"rat": np.arange(len(weights)), "effect": ["intercept", "slope"]}
    with pm.Model(coords=coords) as model:
        mu = pm.Normal("mu", 0, 1000, dims="effect")
        chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2, sd_dist=pm.Exponential.dist(0.1, size=2))
        effect = pm.MvNormal("growth", mu, chol=chol, dims=("rat", "effect"))
        sigma = pm.HalfNormal("sigma", 100)
        pm.Normal("y", effect[:, :1] + effect[:, 1:] * days, sigma, observed=weights)
    return model


def eight_schools(form: str = "as written") -> pm.Model:
    """Coaching effects in eight schools (Rubin 1981), centred; HalfCauchy(5) and a flat mean."""
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Flat("mu")
        tau = pm.HalfCauchy("tau", 5)
        if form == "as written":
            theta = pm.Normal("theta", mu, tau, dims="school")
        else:
            noise = pm.Normal("noise", dims="school")
            theta = pm.Deterministic("theta", mu + tau * noise, dims="school")
        pm.Normal("y", theta, SCHOOL_SE, observed=SCHOOL_EFFECT)
    return model


def mauna_loa() -> pm.Model:
    """Annual CO2 at Mauna Loa, 1959 to 2001; Gaussian process of unknown length, height, noise."""
    weekly = _frame("co2")["co2"]
    annual = weekly.groupby(weekly.index.year).mean().loc[1959:]
    with pm.Model() as model:
        length = pm.Gamma("length", 2, 0.1)
        height = pm.HalfNormal("height", 100)
        sigma = pm.HalfNormal("sigma", 5)
        gp = pm.gp.Marginal(cov_func=height**2 * pm.gp.cov.ExpQuad(1, ls=length))
        years = annual.index.to_numpy(dtype=float)[:, None]
        gp.marginal_likelihood("y", years, (annual - annual.mean()).to_numpy(), sigma=sigma)
    return model


def sunspots() -> pm.Model:
    """Yearly sunspots, 1700 to 2008 (Yule 1927); AR(2) of unknown coefficients and level."""
    data = _frame("sunspots")
    with pm.Model() as model:
        constant = pm.Normal("constant", 0, 100)
        phi = pm.Normal("phi", 0, 1, shape=2)
        sigma = pm.HalfNormal("sigma", 100)
        pm.AR(
            "y",
            rho=pt.concatenate([constant[None], phi]),
            sigma=sigma,
            constant=True,
            init_dist=pm.Normal.dist(0, 100, size=2),
            observed=data["SUNACTIVITY"].to_numpy(),
        )
    return model


def garch() -> pm.Model:
    """US quarterly growth in percent, 1959 to 2009, less its mean; stationary GARCH(1, 1)."""
    growth = 100 * np.diff(np.log(_frame("macrodata")["realgdp"].to_numpy()))
    with pm.Model() as model:
        omega = pm.HalfNormal("omega", 1)
        alpha = pm.Uniform("alpha", 0, 1)
        beta = pm.Uniform("beta", 0, 1 - alpha)
        start = pm.HalfNormal("start", 5)
        pm.GARCH11(
            "y",
            omega=omega,
            alpha_1=alpha,
            beta_1=beta,
            initial_vol=start,
            observed=growth - growth.mean(),
        )
    return model


def nile(form: str = "as written") -> pm.Model:
    """Flow of the Nile, 1871 to 1970 (Cobb 1978), raw; a random walk seen through noise."""
    data = _frame("nile")
    flow = data["volume"].to_numpy(dtype=float)
    with pm.Model(coords={"year": data["year"].to_numpy(dtype=int)}) as model:
        step = pm.HalfNormal("step", 500)
        sigma = pm.HalfNormal("sigma", 500)
        if form == "as written":
            first = pm.Normal.dist(1000, 1000)
            level = pm.GaussianRandomWalk("level", sigma=step, init_dist=first, dims="year")
            pm.Normal("y", level, sigma, observed=flow)
        else:
            one, time = np.eye(len(flow)), np.arange(len(flow))
            covariance = 1000**2 + step**2 * np.minimum.outer(time, time)
            pm.MvNormal("y", np.full(len(flow), 1000), covariance + sigma**2 * one, observed=flow)
            # The level given the rest, by its precision: the walk's is that of its steps.
            scale = pt.concatenate([[1000.0], pt.repeat(step, len(flow) - 1)])
            steps = (one - np.eye(len(flow), k=-1)) / scale[:, None]
            root = pt.linalg.cholesky(steps.T @ steps + one / sigma**2)
            shift = one[0] / 1000 + flow / sigma**2
            noise = pm.Normal("noise", dims="year")
            white = noise + pt.linalg.solve_triangular(root, shift, lower=True)
            level = pt.linalg.solve_triangular(root.T, white, lower=False)
            pm.Deterministic("level", level, dims="year")
    return model


def faithful() -> pm.Model:
    """Waiting times at Old Faithful, minutes; mixture of two normals with ordered means."""
    with pm.Model() as model:
        weight = pm.Dirichlet("weight", np.ones(2))
        mu = pm.Normal("mu", 0, 100, shape=2, transform=ordered, initval=[50, 80])
        sigma = pm.HalfNormal("sigma", 20, shape=2)
        pm.NormalMixture("y", w=weight, mu=mu, sigma=sigma, observed=_numbers(FAITHFUL))
    return model


def earthquakes() -> pm.Model:
    """Earthquakes a year, 1900 to 2006; Poisson hidden Markov model, summed out by a scan."""
    counts = _numbers(EARTHQUAKES)
    with pm.Model(coords={"state": ["calm", "active"]}) as model:
        log_rate = pm.Normal("log_rate", 3, 1, dims="state", transform=ordered, initval=[2.0, 4.0])
        stay = pm.Beta("stay", 1, 1, dims="state")
        log_change = pt.log(
            pt.stack([pt.stack([stay[0], 1 - stay[0]]), pt.stack([1 - stay[1], stay[1]])])
        )
        log_likelihood = pm.logp(pm.Poisson.dist(pt.exp(log_rate)), counts[:, None])

        def forward(log_p, log_alpha, log_change):
            return log_p + pt.logsumexp(log_alpha[:, None] + log_change, axis=0)

        log_alpha = pytensor.scan(
            forward,
            sequences=log_likelihood[1:],
            outputs_info=log_likelihood[0] + np.log(0.5),
            non_sequences=log_change,
            return_updates=False,
        )
        pm.Potential("y", pt.logsumexp(log_alpha[-1]))
    return model


def hair_eyes() -> pm.Model:
    """Eye colours given the hair of 592 students (Snee 1974); multinomials, flat Dirichlet."""
    counts = np.array(HAIR_BY_EYES)
    with pm.Model(coords={"hair": HAIR, "eyes": EYES}) as model:
        p = pm.Dirichlet("p", np.ones(len(EYES)), dims=("hair", "eyes"))
        pm.Multinomial("y", n=counts.sum(axis=1), p=p, observed=counts)
    return model


def iris() -> pm.Model:
    """The four measures of 150 irises (Fisher 1936), multivariate normal; LKJ covariance."""
    data = datasets.load_iris()
    with pm.Model(coords={"measure": data.feature_names}) as model:
        mu = pm.Normal("mu", 0, 10, dims="measure")
        chol, _, _ = pm.LKJCholeskyCov("chol", n=4, eta=2, sd_dist=pm.Exponential.dist(1, size=4))
        pm.MvNormal("y", mu, chol=chol, observed=data.data)
    return model


def heart() -> pm.Model:
    """Days survived after 69 heart transplants (Miller 1976), censored Weibull; scale to 1e4."""
    data = _frame("heart")
    days, died = data["survival"].to_numpy(dtype=float), data["censors"].to_numpy() == 1
    age = (data["age"] - data["age"].mean()).to_numpy()
    with pm.Model() as model:
        shape = pm.HalfNormal("shape", 5)
        scale = pm.HalfNormal("scale", 1e4)
        slope = pm.Normal("slope", 0, 1)
        lifetime = pm.Weibull.dist(shape, scale * pm.math.exp(slope * age))
        pm.Censored("y", lifetime, lower=None, upper=np.where(died, np.inf, days), observed=days)
    return model


def anes96() -> pm.Model:
    """Party identification of 944 voters (ANES 1996), ordered logistic; raw covariates."""
    data = _frame("anes96")
    x, coords = _columns(data, "age", "educ", "income")
    with pm.Model(coords=coords) as model:
        beta = pm.Normal("beta", 0, 10, dims="covariate")
        cutpoints = pm.Normal(
            "cutpoints", 0, 10, shape=6, transform=ordered, initval=np.linspace(-3, 3, 6)
        )
        party = data["PID"].to_numpy(dtype=int)
        pm.OrderedLogistic("y", eta=x @ beta, cutpoints=cutpoints, compute_p=False, observed=party)
    return model


MODELS: dict[str, Callable[[], pm.Model]] = {
    builder.__name__: builder
    for builder in (
        longley,
        diabetes,
        spector,
        breast_cancer,
        cpunish,
        randhie,
        engel,
        grunfeld,
        rats,
        eight_schools,
        mauna_loa,
        sunspots,
        garch,
        nile,
        faithful,
        earthquakes,
        hair_eyes,
        iris,
        heart,
        anes96,
    )
}

#: How NUTS runs, where it differs from what `reference` has as defaults.
NUTS: dict[str, dict] = {
    "longley": {"form": "whitened"},
    "diabetes": {"form": "whitened"},
    "spector": {"form": "whitened"},
    "breast_cancer": {"form": "whitened"},
    "cpunish": {"form": "whitened"},
    "randhie": {"form": "whitened"},
    "engel": {"form": "whitened"},
    "anes96": {"form": "whitened"},
    "eight_schools": {"form": "non-centred", "target_accept": 0.99},
    "nile": {"form": "marginal"},
}


# --- references --------------------------------------------------------------------------------


def whiten(model: pm.Model) -> pm.Model:
    """Write a model in the coordinates of its Laplace approximation.

    The free variables u of the unconstrained space become u = mode + factor @ z, where factor is
    the inverse Cholesky factor of the curvature at the mode. This is the same posterior, with the
    model's variables as deterministics of z.

    Parameters
    ----------
    model : pm.Model
        Without hierarchies whose density grows without bound, or there is no mode to find.
    """
    start = model.initial_point()
    sizes = {value: start[value.name].shape for value in model.value_vars}
    graphs = [model.logp(), *model.replace_rvs_by_values(model.free_RVs)]

    def at(u):
        replacements, offset = {}, 0
        for value, shape in sizes.items():
            end = offset + int(np.prod(shape))
            replacements[value] = u[offset:end].reshape(shape)
            offset = end
        return graph_replace(graphs, replacements, strict=False)

    mode = np.concatenate([np.ravel(start[value.name]) for value in sizes]).astype(float)
    mode, factor = _laplace(lambda u: -at(u)[0], mode)
    with pm.Model(coords=model.coords) as whitened:
        z = pm.Flat("z", shape=len(mode))
        logp, *constrained = at(mode + factor @ z)
        pm.Potential("logp", logp)
        for rv, graph in zip(model.free_RVs, constrained, strict=True):
            pm.Deterministic(rv.name, graph, dims=model.named_vars_to_dims.get(rv.name))
    return whitened


def _laplace(loss: Callable, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimise by damped Newton steps; return the mode, and a factor of the inverse curvature."""
    point = pt.dvector("point")
    value = loss(point)
    graphs = [value, pt.grad(value, point), hessian(value, point)]
    evaluate = pytensor.function([point], graphs, mode="FAST_COMPILE")
    here, gradient, curvature = evaluate(u)
    damping = 1.0
    for _ in range(1_000):
        # In units of the diagonal, for covariates may differ by many orders of magnitude.
        unit = 1 / np.sqrt(np.abs(np.diag(curvature)) + 1e-300)
        scaled = unit[:, None] * curvature * unit
        lowest = np.linalg.eigvalsh(scaled)[0]
        shift = damping + max(0.0, -2 * lowest)
        step = -unit * np.linalg.solve(scaled + shift * np.eye(len(u)), unit * gradient)
        there = evaluate(u + step)
        if np.isfinite(there[0]) and there[0] <= here:
            gain, u = here - there[0], u + step
            here, gradient, curvature = there
            damping = max(damping / 10, 1e-14)
            if gain < 1e-9 and damping < 1e-6:
                break
        elif damping > 1e10:
            break
        else:
            damping *= 10
    unit = 1 / np.sqrt(np.diag(curvature))
    root = cholesky(unit[:, None] * curvature * unit, lower=True)
    return u, unit[:, None] * solve_triangular(root, np.eye(len(u)), lower=True).T


def reference(
    name: str,
    form: str = "as written",
    draws: int = 2_500,
    tune: int = 1_500,
    target_accept: float = 0.95,
    seed: int = 20,
) -> dict:
    """Run NUTS on one model: four chains.

    Returns
    -------
    dict
        The settings, diagnostics of the whole run, and for each variable the elements' means and
        standard deviations, in C order. ``ess`` is the smallest of those of the bulk, the tails,
        the mean and the standard deviation.
    """
    model = MODELS[name]()
    names = [variable.name for variable in model.free_RVs]
    if form == "whitened":
        sampled = whiten(model)
    elif form != "as written":
        sampled = MODELS[name](form=form)
    else:
        sampled = model
    begin = perf_counter()
    idata = pm.sample(
        draws,
        tune=tune,
        chains=4,
        cores=2,
        target_accept=target_accept,
        random_seed=seed,
        model=sampled,
        progressbar=False,
        compute_convergence_checks=False,
    )
    seconds = perf_counter() - begin
    variables, rhat, ess, methods = {}, [], [], ("bulk", "mean", "sd")
    for variable in names:
        array = idata.posterior[variable].transpose("chain", "draw", ...).to_numpy()
        elements = array.reshape(*array.shape[:2], -1)
        moments = [(float(e.mean()), float(e.std())) for e in np.moveaxis(elements, -1, 0)]
        variables[variable] = {
            "mean": [float(f"{mean:.8g}") for mean, _ in moments],
            "sd": [float(f"{sd:.8g}") for _, sd in moments],
        }
        for element in np.moveaxis(elements, -1, 0):
            rhat.append(float(az.rhat(element)))
            ess.append(min(float(az.ess(element, method=method)) for method in methods))
            ess.append(float(az.ess(element, method="tail", prob=(0.05, 0.95))))
    return {
        "form": form,
        "draws": 4 * draws,
        "tune": 4 * tune,
        "target_accept": target_accept,
        "seed": seed,
        "seconds": round(seconds, 1),
        "divergences": int(idata.sample_stats["diverging"].sum()),
        "rhat": round(max(rhat), 4),
        "ess": round(min(ess)),
        "variables": variables,
    }


def load_references() -> dict[str, dict]:
    """Read the moments by NUTS of all models that have them."""
    return json.loads(REFERENCES.read_text(encoding="utf-8")) if REFERENCES.exists() else {}


def write_references(names: list[str], again: bool, console: Console) -> None:
    """Run NUTS on the models that have no reference yet, or on all if `again`."""
    for name in names:
        known = load_references()
        if name in known and not again:
            continue
        with console.status(name):
            known[name] = reference(name, **NUTS.get(name, {}))
        ordered_by_model = {key: known[key] for key in MODELS if key in known}
        REFERENCES.parent.mkdir(exist_ok=True)
        REFERENCES.write_text(json.dumps(ordered_by_model, indent=1) + "\n", encoding="utf-8")
        diagnostics = {key: value for key, value in known[name].items() if key != "variables"}
        console.print(name, diagnostics)


# --- fits --------------------------------------------------------------------------------------


class Warned(logging.Handler):
    """Keeps the messages of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def _labels(array: xr.DataArray) -> list[str]:
    """Name the elements of a variable by their coordinates."""
    dims = [dim for dim in array.dims if dim not in ("chain", "draw")]
    if not dims:
        return [str(array.name)]
    return [
        f"{array.name}[{', '.join(map(str, index))}]"
        for index in product(*(array[dim].to_numpy() for dim in dims))
    ]


def compare(posterior: xr.Dataset, known: dict) -> dict[str, tuple[float, float]]:
    """Compare a posterior with the reference.

    Returns
    -------
    dict
        Element to the difference of the means, in standard deviations of NUTS, and to the ratio of
        the standard deviations.
    """
    errors = {}
    for name, moments in known["variables"].items():
        array = posterior[name].transpose("chain", "draw", ...)
        values = array.to_numpy().reshape(array.sizes["chain"] * array.sizes["draw"], -1)
        mean, sd = np.array(moments["mean"]), np.array(moments["sd"])
        differences = (values.mean(axis=0) - mean) / sd
        ratios = values.std(axis=0) / sd
        for label, difference, ratio in zip(_labels(array), differences, ratios, strict=True):
            errors[label] = (float(difference), float(ratio))
    return errors


def measure(name: str, known: dict, seed: int) -> dict:
    """Fit one model and compare it with its reference; a record for the table and the file."""
    import pymc_emf as emf  # the references do without it

    model = MODELS[name]()
    dim = sum(int(np.prod(value.shape)) for value in model.initial_point().values())
    record: dict = {"model": name, "dim": dim}
    warned = Warned()
    logger = logging.getLogger("pymc_emf")
    logger.addHandler(warned)
    begin = perf_counter()
    try:
        approx = emf.fit(model=model, random_seed=seed, progressbar=False)
        record["seconds"] = perf_counter() - begin
        idata = approx.sample(DRAWS, random_seed=seed + 1)
    except Exception as error:  # a fit that fails is a row of the table as well
        logging.getLogger(__name__).exception("the fit of %s fails", name)
        record |= {"seconds": perf_counter() - begin, "error": f"{type(error).__name__}: {error}"}
        record |= {"warnings": warned.messages, "passed": False}
        return record
    finally:
        logger.removeHandler(warned)
    log_weights = (idata.sample_stats["lp"] - idata.sample_stats["lq"]).to_numpy().ravel()
    _, k = array_stats.psislw(-log_weights)
    errors = compare(idata.posterior.dataset, known)
    mean_at = max(errors, key=lambda label: np.nan_to_num(abs(errors[label][0]), nan=np.inf))
    sd_at = max(errors, key=lambda label: np.nan_to_num(abs(errors[label][1] - 1), nan=np.inf))
    mean_error, sd_ratio = errors[mean_at][0], errors[sd_at][1]
    return record | {
        "mean_error": mean_error,
        "mean_at": mean_at,
        "sd_ratio": sd_ratio,
        "sd_at": sd_at,
        "warnings": warned.messages,
        "k": float(k),
        "passed": abs(mean_error) < MEAN_TOLERANCE and abs(sd_ratio - 1) < SD_TOLERANCE,
        "elements": errors,
    }


def tabulate(records: list[dict]) -> Table:
    """Lay the records out, one row each."""
    table = Table()
    table.add_column("model", no_wrap=True)
    for column in ("d", "seconds", "Δmean / sd"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("of")
    table.add_column("sd / sd", justify="right", no_wrap=True)
    table.add_column("of")
    table.add_column("k", justify="right", no_wrap=True)
    table.add_column("warned", no_wrap=True)
    table.add_column("passed", no_wrap=True)
    for record in records:
        row = [record["model"], str(record["dim"]), f"{record['seconds']:.1f}"]
        if "error" in record:
            row += ["failed", record["error"].partition(":")[0], "", "", ""]
        else:
            row += [f"{record['mean_error']:+.3f}", escape(record["mean_at"])]
            row += [f"{record['sd_ratio']:.3f}", escape(record["sd_at"]), f"{record['k']:.2f}"]
        row += ["yes" if record["warnings"] else "", "yes" if record["passed"] else "no"]
        table.add_row(*row)
    return table


def main() -> None:
    """Run NUTS, or the fits: print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=["fit", "reference"], default="fit")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--again", action="store_true", help="replace references that exist")
    parser.add_argument("--seed", type=int, default=0, help="of the fits")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    if args.command == "reference":
        write_references(args.models, args.again, console)
        return
    logging.getLogger("pymc").setLevel(logging.WARNING)
    known = load_references()
    records = []
    for name in args.models:
        if name not in known:
            console.print(f"{name} has no reference: python -m benchmarks.textbook reference")
            continue
        with console.status(name):
            records.append(measure(name, known[name], args.seed))
        if args.json:  # after every model, for some take minutes
            report = {"seed": args.seed, "draws": DRAWS, "records": records}
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(tabulate(records))
    passed = sum(record["passed"] for record in records)
    console.print(f"{passed} of {len(records)} pass")


if __name__ == "__main__":
    main()
