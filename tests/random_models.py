"""Models at random, each the same for the same generator of random numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc.distributions import transforms as tr

REAL = {
    "Normal": lambda name, m, s, **kw: pm.Normal(name, m, s, **kw),
    "Laplace": lambda name, m, s, **kw: pm.Laplace(name, m, s, **kw),
    "Logistic": lambda name, m, s, **kw: pm.Logistic(name, m, s, **kw),
    "Gumbel": lambda name, m, s, **kw: pm.Gumbel(name, m, s, **kw),
    "Moyal": lambda name, m, s, **kw: pm.Moyal(name, m, s, **kw),
    "AsymmetricLaplace": lambda name, m, s, **kw: pm.AsymmetricLaplace(name, s, m, 1.0, **kw),
}
POSITIVE = {
    "HalfNormal": lambda name, m, s, **kw: pm.HalfNormal(name, s, **kw),
    "Exponential": lambda name, m, s, **kw: pm.Exponential(name, s, **kw),
    "LogNormal": lambda name, m, s, **kw: pm.LogNormal(name, m, s, **kw),
    "Weibull": lambda name, m, s, **kw: pm.Weibull(name, 1.5, s, **kw),
    "HalfCauchy": lambda name, m, s, **kw: pm.HalfCauchy(name, s, **kw),
}
BOUNDED = {
    "Uniform": lambda name, m, s, **kw: pm.Uniform(name, m - s, m + s, **kw),
    "Kumaraswamy": lambda name, m, s, **kw: pm.Kumaraswamy(name, s, 1.5, **kw),
}
CHEAP = REAL | POSITIVE | BOUNDED
VECTORS = {
    "MvNormal": lambda name, m, s: pm.MvNormal(name, m * np.ones(2), s * np.eye(2) + 0.3),
    "ZeroSumNormal": lambda name, m, s: pm.ZeroSumNormal(name, s, shape=3),
    "RandomWalk": lambda name, m, s: pm.GaussianRandomWalk(
        name, m, s, init_dist=pm.Normal.dist(0, 1), steps=3
    ),
    "AR": lambda name, m, s: pm.AR(
        name, pt.stack([m, 0.5]), s, init_dist=pm.Normal.dist(0, 1), constant=True, steps=3
    ),
    "ordered": lambda name, m, s: pm.Normal(
        name, m, s, shape=2, transform=tr.ordered, initval=np.arange(2.0)
    ),
}
#: Families that take seconds to compile: at most one or two of them in a model.
BY_QUADRATURE = {
    "Gamma": lambda name, m, s: pm.Gamma(name, 1.5, s),
    "Beta": lambda name, m, s: pm.Beta(name, s, 2.0, shape=2),
    "StudentT": lambda name, m, s: pm.StudentT(name, 4.0, m, sigma=s),
    "TruncatedNormal": lambda name, m, s: pm.TruncatedNormal(name, m, s, lower=-1.0),
    "Dirichlet": lambda name, m, s: pm.Dirichlet(name, s * np.ones(3)),
    "NormalMixture": lambda name, m, s: pm.NormalMixture(
        name, [0.3, 0.7], pt.stack([m, m + 1.0]), sigma=s
    ),
}


def _scan(m, s, size):
    def step(before, m, s):
        x = pm.Normal.dist(m + 0.5 * before, s)
        return x, pm.pytensorf.collect_default_updates(outputs=[x])

    series, _ = pytensor.scan(
        step, outputs_info=[pt.zeros(())], non_sequences=[m, s], n_steps=4, strict=True
    )
    return series


#: Families for fits only: some are bypassed, some cannot be fitted at all, and of some PyMC's
#: density lacks a constant.
OTHERS = {
    "Flat": lambda name, m, s: pm.Flat(name),
    "HalfFlat": lambda name, m, s: pm.HalfFlat(name, shape=2),
    "Cauchy": lambda name, m, s: pm.Cauchy(name, m, s),
    "Triangular": lambda name, m, s: pm.Triangular(name, m - s, m + s, m),
    "Interpolated": lambda name, m, s: pm.Interpolated(
        name, np.linspace(-2, 2, 9), np.exp(-(np.linspace(-2, 2, 9) ** 2))
    ),
    "LogitNormal": lambda name, m, s: pm.LogitNormal(name, m, s),
    "Pareto": lambda name, m, s: pm.Pareto(name, 2.0, s),
    "InverseGamma": lambda name, m, s: pm.InverseGamma(name, 2.0, s),
    "ChiSquared": lambda name, m, s: pm.ChiSquared(name, s),
    "small Gamma": lambda name, m, s: pm.Gamma(name, 0.05, s),
    "Wald": lambda name, m, s: pm.Wald(name, s, 1.0),
    "SkewNormal": lambda name, m, s: pm.SkewNormal(name, mu=m, sigma=s, alpha=2.0),
    "ExGaussian": lambda name, m, s: pm.ExGaussian(name, m, s, nu=1.0),
    "HalfStudentT": lambda name, m, s: pm.HalfStudentT(name, 3.0, s),
    "VonMises": lambda name, m, s: pm.VonMises(name, 0.5, s),
    "Rice": lambda name, m, s: pm.Rice(name, nu=1.0, sigma=s),
    "Truncated": lambda name, m, s: pm.Truncated(name, pm.Normal.dist(m, s), lower=0.0, upper=3.0),
    "Mixture": lambda name, m, s: pm.Mixture(
        name, [0.4, 0.6], [pm.Normal.dist(m, s), pm.Laplace.dist(0.0, 1.0)]
    ),
    "Censored": lambda name, m, s: pm.Censored(name, pm.Normal.dist(m, s), lower=-3.0, upper=3.0),
    "MvStudentT": lambda name, m, s: pm.MvStudentT(
        name, nu=4, mu=m * np.ones(2), scale=s * np.eye(2)
    ),
    "MatrixNormal": lambda name, m, s: pm.MatrixNormal(
        name, mu=m * np.ones((2, 2)), rowcov=np.eye(2), colcov=s * np.eye(2)
    ),
    "LKJCorr": lambda name, m, s: pm.LKJCorr(name, n=3, eta=s),
    "LKJCholeskyCov": lambda name, m, s: pm.LKJCholeskyCov(
        name, n=2, eta=2.0, sd_dist=pm.HalfNormal.dist(s, shape=2), compute_corr=False
    ),
    "StickBreakingWeights": lambda name, m, s: pm.StickBreakingWeights(name, alpha=s, K=2),
    "CAR": lambda name, m, s: pm.CAR(name, mu=m * np.ones(3), W=1.0 - np.eye(3), alpha=0.5, tau=s),
    "ICAR": lambda name, m, s: pm.ICAR(name, W=1.0 - np.eye(3), sigma=s),
    "GARCH11": lambda name, m, s: pm.GARCH11(name, s, 0.2, 0.3, 1.0, steps=3),
    "EulerMaruyama": lambda name, m, s: pm.EulerMaruyama(
        name, 0.1, lambda x, m, s: (m - x, s), (m, s), init_dist=pm.Normal.dist(), steps=3
    ),
    "density alone": lambda name, m, s: pm.CustomDist(
        name, m, s, logp=lambda x, m, s: -(((x - m) / s) ** 4)
    ),
    "function of a normal": lambda name, m, s: pm.CustomDist(
        name, m, s, dist=lambda m, s, size: pt.sinh(pm.Normal.dist(m, s, size=size)), shape=2
    ),
    "scan": lambda name, m, s: pm.CustomDist(name, m, s, dist=_scan, ndim_supp=1, shape=4),
    "constrained Normal": lambda name, m, s: pm.Normal(
        name, m, s, transform=tr.Interval(-1.0, 4.0), initval=1.0
    ),
    "untransformed Uniform": lambda name, m, s: pm.Uniform(
        name, -1.0, 2.0, default_transform=None, shape=2
    ),
    "untransformed Gamma": lambda name, m, s: pm.Gamma(name, 2.0, s, default_transform=None),
    "wide": lambda name, m, s: pm.Normal(name, m, 1e6 * s),
    "narrow": lambda name, m, s: pm.Normal(name, m, 1e-9 * s),
    "loop": lambda name, m, s: _chain(name, m, s),
    "PolyaGamma": lambda name, m, s: pm.PolyaGamma(name, 1.0, m),
    "Bernoulli": lambda name, m, s: pm.Bernoulli(name, logit_p=m),
}


def _chain(name, m, s, n_steps=8):
    """A Python loop of scalar variables."""
    x = pm.Normal(f"{name}_0", m, s)
    for t in range(1, n_steps):
        x = pm.Normal(f"{name}_{t}", 0.9 * x + 0.1 * pt.sin(x), s)
    return x


def _pick(rng, options):
    return options[rng.integers(len(options))]


def _location_and_scale(rng, parents, links=(pt.tanh,)):
    shift = sum((_pick(rng, links)(parent.sum()) for parent in parents), pt.zeros(()))
    return rng.uniform(-1, 1) + 0.5 * shift, rng.uniform(0.5, 2.0) * pt.exp(0.3 * shift)


def _parents(rng, variables):
    return [_pick(rng, variables) for _ in range(rng.integers(3))] if variables else []


def _cheap(rng, name, loc, scale):
    family = _pick(rng, sorted(CHEAP))
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["shape"] = _pick(rng, [(2,), (1,), (2, 2)])
    if family in POSITIVE and rng.random() < 0.5:
        options["default_transform"] = _pick(rng, [None, tr.LogExpM1()])
    return family, CHEAP[family](name, loc, scale, **options)


def _from(families):
    def add(rng, name, loc, scale):
        family = _pick(rng, sorted(families))
        return family, families[family](name, loc, scale)

    return add


def law_model(rng: np.random.Generator, most: int, most_by_quadrature: int) -> pm.Model:
    """A prior whose variables may each depend on any two of those before it."""
    n = rng.integers(2, most + 1)
    by_quadrature = rng.choice(n, size=rng.integers(most_by_quadrature + 1), replace=False)
    variables = []
    with pm.Model() as model:
        for i in range(n):
            loc, scale = _location_and_scale(rng, _parents(rng, variables))
            add = _from(VECTORS) if rng.random() < 0.2 else _cheap
            if i in by_quadrature:
                add = _from(BY_QUADRATURE)
            variables.append(add(rng, f"x{i}", loc, scale)[1])
    return model


# --- data ------------------------------------------------------------------------------------


def _mv(name, m, s, **kw):
    m = pt.as_tensor(m)
    mean = pt.stack([m, m + 1.0], axis=-1)
    return pm.MvNormal(name, mean, s * np.eye(2) + 0.3, **kw)


def _three(m, s):
    return pt.stack([pt.zeros_like(m), m, m + s], axis=-1)


def _walk(name, m, s, **kw):
    return pm.GaussianRandomWalk(name, pt.mean(m), s, init_dist=pm.Normal.dist(0, 10), **kw)


def _autoregression(name, m, s, **kw):
    return pm.AR(name, [0.5], s, init_dist=pm.Normal.dist(0, 10), **kw)


#: Support of the data, and the distribution; ``m`` is a scalar or one number an observation.
LIKELIHOODS: dict[str, tuple[str, Any]] = {
    "Normal": ("real", lambda name, m, s, **kw: pm.Normal(name, m, s, **kw)),
    "StudentT": ("real", lambda name, m, s, **kw: pm.StudentT(name, 3.0, m, sigma=s, **kw)),
    "Laplace": ("real", lambda name, m, s, **kw: pm.Laplace(name, m, s, **kw)),
    "Cauchy": ("real", lambda name, m, s, **kw: pm.Cauchy(name, m, s, **kw)),
    "SkewNormal": (
        "real",
        lambda name, m, s, **kw: pm.SkewNormal(name, mu=m, sigma=s, alpha=m, **kw),
    ),
    "Uniform": ("real", lambda name, m, s, **kw: pm.Uniform(name, m - 5 * s, m + 5 * s, **kw)),
    "NormalMixture": (
        "real",
        lambda name, m, s, **kw: pm.NormalMixture(name, [0.3, 0.7], _three(m, s)[..., :2], s, **kw),
    ),
    "Censored": (
        "real",
        lambda name, m, s, **kw: pm.Censored(
            name, pm.Normal.dist(m, s), lower=-1.0, upper=1.0, **kw
        ),
    ),
    "custom": (
        "real",
        lambda name, m, s, **kw: pm.CustomDist(
            name, m, s, logp=lambda x, m, s: -pt.abs(x - m) / s - pt.log(s), **kw
        ),
    ),
    "GaussianRandomWalk": ("real", _walk),
    "AR": ("real", _autoregression),
    "MvNormal": ("plane", _mv),
    "Gamma": ("positive", lambda name, m, s, **kw: pm.Gamma(name, s, pt.exp(m), **kw)),
    "Exponential": ("positive", lambda name, m, s, **kw: pm.Exponential(name, pt.exp(m), **kw)),
    "HalfNormal": ("positive", lambda name, m, s, **kw: pm.HalfNormal(name, pt.exp(m), **kw)),
    "LogNormal": ("positive", lambda name, m, s, **kw: pm.LogNormal(name, m, s, **kw)),
    "Weibull": ("positive", lambda name, m, s, **kw: pm.Weibull(name, s, pt.exp(m), **kw)),
    "InverseGamma": (
        "positive",
        lambda name, m, s, **kw: pm.InverseGamma(name, s, pt.exp(m), **kw),
    ),
    "Truncated": (
        "positive",
        lambda name, m, s, **kw: pm.Truncated(name, pm.Normal.dist(m, s), lower=0.0, **kw),
    ),
    "HurdleGamma": (
        "positive",
        lambda name, m, s, **kw: pm.HurdleGamma(name, 0.6, alpha=s, beta=pt.exp(m), **kw),
    ),
    "Beta": ("unit", lambda name, m, s, **kw: pm.Beta(name, s, pt.exp(m), **kw)),
    "Poisson": ("count", lambda name, m, s, **kw: pm.Poisson(name, pt.exp(m), **kw)),
    "NegativeBinomial": (
        "count",
        lambda name, m, s, **kw: pm.NegativeBinomial(name, mu=pt.exp(m), alpha=s, **kw),
    ),
    "ZeroInflatedPoisson": (
        "count",
        lambda name, m, s, **kw: pm.ZeroInflatedPoisson(name, 0.7, pt.exp(m), **kw),
    ),
    "Bernoulli": ("binary", lambda name, m, s, **kw: pm.Bernoulli(name, logit_p=m, **kw)),
    "Bernoulli of p": (
        "binary",
        lambda name, m, s, **kw: pm.Bernoulli(name, p=pt.sigmoid(m), **kw),
    ),
    "Binomial": ("category", lambda name, m, s, **kw: pm.Binomial(name, 2, logit_p=m, **kw)),
    "Categorical": (
        "category",
        lambda name, m, s, **kw: pm.Categorical(name, logit_p=_three(m, s), **kw),
    ),
    "OrderedLogistic": (
        "category",
        lambda name, m, s, **kw: pm.OrderedLogistic(
            name, eta=m, cutpoints=[-1.0, 1.0], compute_p=False, **kw
        ),
    ),
    "VonMises": ("angle", lambda name, m, s, **kw: pm.VonMises(name, pt.tanh(m), s, **kw)),
    "Dirichlet": (
        "simplex",
        lambda name, m, s, **kw: pm.Dirichlet(name, _three(0 * m, s) + s, **kw),
    ),
}

#: What is odd about the data.
ODDITIES = (
    "ordinary",
    "outlier",
    "edge",
    "constant",
    "single",
    "far",
    "tiny",
    "huge",
    "masked",
    "integer",
    "empty",
    "outside",
    "infinite",
    "NaN",
)


def _data(rng, support, oddity):
    """Random observations, and whether their density is zero whatever the parameters."""
    n = 1 if oddity == "single" else 0 if oddity == "empty" else int(rng.integers(2, 12))
    shape = (n, 2) if support == "plane" else (n, 3) if support == "simplex" else (n,)
    match support:
        case "real" | "plane":
            data = rng.normal(size=shape)
        case "positive":
            data = rng.gamma(2.0, size=shape)
        case "unit":
            data = rng.beta(1.5, 2.0, size=shape)
        case "count":
            data = rng.poisson(3.0, size=shape)
        case "binary":
            data = rng.integers(2, size=shape)
        case "category":
            data = rng.integers(3, size=shape)
        case "angle":
            data = rng.uniform(-3, 3, size=shape)
        case "simplex":
            data = rng.dirichlet(np.ones(3), size=n)
    unbounded = support in ("real", "plane", "positive", "count")
    if oddity == "constant":
        data[:] = data[0]
    elif oddity == "edge":  # where many a density is zero or unbounded
        data[0] = [0.0, 0.4, 0.6] if support == "simplex" else 0
        data[-1] = [1.0, 0.0, 0.0] if support == "simplex" else 1 if support == "unit" else 0
    elif oddity == "outlier" and unbounded:
        data[0] = 10**6
    elif oddity == "far" and unbounded:
        data = data + 1000
    elif oddity == "huge" and unbounded:
        data = data * 10**8
    elif oddity == "tiny" and unbounded and support != "count":
        data = data * 1e-8
    elif oddity == "integer" and support in ("real", "plane"):
        data = np.round(3 * data).astype(int)
    elif oddity == "masked":
        mask = np.zeros(shape, dtype=bool)
        mask[0] = True
        data = np.ma.masked_array(data, mask)
    elif oddity == "NaN" and data.dtype == float:  # imputed, as masked data are
        data[0] = np.nan
    elif oddity == "infinite" and data.dtype == float:
        data[0] = np.inf
        return data, True
    elif oddity == "outside" and support not in ("real", "plane"):
        data[0] = [0.9, 0.9, -0.8] if support == "simplex" else -7
        return data, True
    return data, False


# --- fits ------------------------------------------------------------------------------------


@dataclass
class Case:
    """A model with data, and how it is to be fitted.

    Attributes
    ----------
    number : int
        From which everything follows.
    model : Model
    words : list of str
        What the model consists of.
    asvi : bool
        Whether ``ASVI`` fits it; otherwise ``EMFApprox``.
    method, fit : dict
        Options of the method, and arguments of its ``fit``.
    invalid : bool
        Whether the data lie where the density is zero whatever the parameters.
    """

    number: int
    model: pm.Model
    words: list[str]
    asvi: bool
    method: dict[str, Any]
    fit: dict[str, Any]
    invalid: bool


def random_case(number: int) -> Case:
    """The model and the fit of this number."""
    rng = np.random.default_rng(number)
    words: list[str] = []
    variables: list[Any] = []
    links = [pt.tanh] * 6 + [lambda x: x, pt.exp, pt.sqr]
    with pm.Model() as model:
        n = _pick(rng, [1, 2, 2, 3, 3, 4])
        special = rng.integers(n) if rng.random() < 0.7 else None
        for i in range(n):
            loc, scale = _location_and_scale(rng, _parents(rng, variables), links)
            if i == special:  # one is enough: many of them take seconds to compile
                add = _from(BY_QUADRATURE if rng.random() < 0.15 else OTHERS)
            else:
                add = _from(VECTORS) if rng.random() < 0.15 else _cheap
            family, x = add(rng, f"x{i}", loc, scale)
            words.append(family)
            variables.append(x)
        invalid = False
        for name in ["y", "z"][: _pick(rng, [0, 1, 1, 1, 1, 1, 2])]:
            invalid |= _add_likelihood(rng, name, variables, links, words)
        total = sum(x.sum() for x in variables)
        if rng.random() < 0.15:
            words.append("potential")
            pm.Potential("potential", _pick(rng, [-(total**2), -pt.abs(total), pt.log(total**2)]))
        if rng.random() < 0.5:
            words.append("deterministic")
            pm.Deterministic("total", total)
    method: dict[str, Any] = {"random_seed": int(rng.integers(1000))}
    asvi = bool(rng.random() < 0.12)
    if not asvi:
        choices = {
            "layers": [
                "iaf",
                "maf",
                "coupling",
                "affine",
                "low_rank",
                "lower_triangular",
                ["coupling", "affine"],
                None,
            ],
            "gate": ["element", "element", "variable", None],
            "embed": [True, True, True, True, False],
            "warm_start": ["auto", "auto", True, False],
            "gradient": ["path", "path", "reparameterised"],
        }
        method |= {option: _pick(rng, values) for option, values in choices.items()}
    fit = {"n": int(_pick(rng, [50, 100, 200])), "obj_n_mc": int(_pick(rng, [1, 5, 10]))}
    if rng.random() < 0.1:
        fit["total_grad_norm_constraint"] = 10.0
    return Case(number, model, words, asvi, method, fit, invalid)


def _add_likelihood(rng, name, variables, links, words) -> bool:
    """Add observed data; return whether they are invalid."""
    likelihood = _pick(rng, sorted(LIKELIHOODS))
    support, build = LIKELIHOODS[likelihood]
    oddity = _pick(rng, ["ordinary"] * 8 + list(ODDITIES))
    data, invalid = _data(rng, support, oddity)
    m, s = _location_and_scale(rng, [_pick(rng, variables), _pick(rng, variables)], links)
    words.append(f"{likelihood} of {oddity} data")
    model = pm.modelcontext(None)
    options: dict[str, Any] = {}
    if rng.random() < 0.4 and oddity != "empty":
        words.append("dims")
        model.add_coord(f"{name}_row", range(len(data)))
        options["dims"] = (f"{name}_row",)
        if data.ndim == 2:
            model.add_coord(f"{name}_column", range(data.shape[1]))
            options["dims"] += (f"{name}_column",)
    if rng.random() < 0.4:
        words.append("regression")
        row = {"dims": options["dims"][:1]} if options else {}
        regressor = pm.Data(f"{name}_x", rng.normal(size=len(data)), **row)
        m = m + _pick(rng, variables).mean() * regressor
        if rng.random() < 0.5:
            m = pm.Deterministic(f"{name}_mean", m, **row)
    if rng.random() < 0.2 and oddity not in ("masked", "NaN"):  # which pm.Data refuses
        words.append("pm.Data")
        data = pm.Data(f"{name}_data", data, **options)
    build(name, m, s, observed=data, **options)
    return invalid
