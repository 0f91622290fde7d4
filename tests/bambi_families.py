"""A small data set for every family that Bambi has, with predictors far from mean zero."""

import bambi as bmb
import numpy as np
import pandas as pd

N = 150
TRIALS = 12


def _counts(rng, mean):
    return rng.poisson(mean)


def _with_zeros(rng, y, share=0.3):
    return np.where(rng.random(N) < share, 0, y)


def _positive_counts(rng, mean):
    return 1 + rng.poisson(mean)


def _ordered(rng, eta):
    latent = eta + rng.logistic(size=N)
    return pd.Categorical(
        pd.cut(latent, [-np.inf, -1.0, 1.0, np.inf], labels=["low", "middle", "high"]),
        ordered=True,
    )


def _multinomial(rng, eta):
    weights = np.exp(np.stack([np.zeros(N), eta, -eta], axis=1))
    counts = [rng.multinomial(TRIALS, p) for p in weights / weights.sum(1, keepdims=True)]
    return dict(zip(["y1", "y2", "y3"], np.transpose(counts), strict=True))


def _dirichlet_multinomial(rng, eta):
    chances = [rng.dirichlet(a) for a in np.exp(np.stack([0 * eta, eta, -eta], axis=1) + 1.0)]
    counts = [rng.multinomial(TRIALS, p) for p in chances]
    return dict(zip(["y1", "y2", "y3"], np.transpose(counts), strict=True))


def _categories(rng, eta):
    weights = np.exp(np.stack([np.zeros(N), eta, -eta], axis=1))
    noise = rng.gumbel(size=weights.shape)
    return np.array(["one", "two", "three"])[(np.log(weights) + noise).argmax(1)]


def _chance(eta):
    return 1 / (1 + np.exp(-eta))


def _binomial(rng, eta):
    return rng.binomial(TRIALS, _chance(eta))


#: From the family's name to its formula, the response given (rng, eta), and options of the model.
#: The default links of positive means, inverse and inverse squared, have no value where eta < 0,
#: which the sampler's first steps visit: they get the log.
LOG = {"link": "log"}
FAMILIES = {
    "asymmetriclaplace": ("y ~ x + z", lambda rng, eta: eta + rng.laplace(size=N), {}),
    "bernoulli": ("y ~ x + z", lambda rng, eta: rng.binomial(1, _chance(eta)), {}),
    "beta": (
        "y ~ x + z",
        lambda rng, eta: rng.beta(8 * _chance(eta), 8 * _chance(-eta)).clip(1e-3, 1 - 1e-3),
        {},
    ),
    "beta_binomial": (
        "p(y, trials) ~ x + z",
        lambda rng, eta: rng.binomial(TRIALS, rng.beta(5 * _chance(eta), 5 * _chance(-eta))),
        {},
    ),
    "binomial": ("p(y, trials) ~ x + z", _binomial, {}),
    "categorical": ("y ~ x + z", _categories, {}),
    "cumulative": ("y ~ 0 + x + z", _ordered, {}),
    "dirichlet_multinomial": ("counts(y1, y2, y3) ~ x + z", _dirichlet_multinomial, {}),
    "exgaussian": (
        "y ~ x + z",
        lambda rng, eta: eta + rng.normal(size=N) + rng.exponential(size=N),
        {},
    ),
    "exponential": ("y ~ x + z", lambda rng, eta: rng.exponential(np.exp(eta)), LOG),
    "gamma": ("y ~ x + z", lambda rng, eta: rng.gamma(3.0, np.exp(eta) / 3), LOG),
    "lognormal": ("y ~ x + z", lambda rng, eta: np.exp(eta + rng.normal(size=N)), {}),
    "gaussian": ("y ~ x + z", lambda rng, eta: eta + rng.normal(size=N), {}),
    "hurdle_gamma": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, rng.gamma(3.0, np.exp(eta) / 3)),
        LOG,
    ),
    "hurdle_lognormal": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, np.exp(eta + rng.normal(size=N))),
        {},
    ),
    "hurdle_negativebinomial": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, _positive_counts(rng, rng.gamma(2.0, np.exp(eta)))),
        {},
    ),
    "hurdle_poisson": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, _positive_counts(rng, np.exp(eta))),
        {},
    ),
    "multinomial": ("counts(y1, y2, y3) ~ x + z", _multinomial, {}),
    "negativebinomial": (
        "y ~ x + z",
        lambda rng, eta: _counts(rng, rng.gamma(2.0, np.exp(eta))),
        {},
    ),
    "laplace": ("y ~ x + z", lambda rng, eta: eta + rng.laplace(size=N), {}),
    "poisson": ("y ~ x + z", lambda rng, eta: _counts(rng, np.exp(eta)), {}),
    "sratio": ("y ~ 0 + x + z", _ordered, {}),
    "t": ("y ~ x + z", lambda rng, eta: eta + rng.standard_t(4, size=N), {}),
    "vonmises": (
        "y ~ x + z",
        lambda rng, eta: rng.vonmises(2 * np.arctan(eta), 4.0),
        {},
    ),
    "wald": ("y ~ x + z", lambda rng, eta: rng.wald(np.exp(eta), 3.0), LOG),
    "weibull": ("y ~ x + z", lambda rng, eta: np.exp(eta) * rng.weibull(2.0, size=N), {}),
    "zero_inflated_binomial": (
        "p(y, trials) ~ x + z",
        lambda rng, eta: _with_zeros(rng, _binomial(rng, eta)),
        {},
    ),
    "zero_inflated_negativebinomial": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, _counts(rng, rng.gamma(2.0, 2 * np.exp(eta)))),
        {},
    ),
    "zero_inflated_poisson": (
        "y ~ x + z",
        lambda rng, eta: _with_zeros(rng, _counts(rng, 2 * np.exp(eta))),
        {},
    ),
}


def family_model(name):
    """Bambi model of a family, and new data for predictions."""
    formula, response, options = FAMILIES[name]
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"x": rng.normal(8.0, 1.0, size=N), "z": rng.normal(-15.0, 1.0, size=N)})
    y = response(rng, 0.6 * (data["x"].to_numpy() - 8.0) - 0.4 * (data["z"].to_numpy() + 15.0))
    data = data.assign(trials=TRIALS, **(y if isinstance(y, dict) else {"y": y}))
    new = data.head(20).assign(x=lambda d: d["x"] + 1.0)
    return bmb.Model(formula, data, family=name, **options), new
