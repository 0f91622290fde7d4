"""Models with variables of pymc.dims, against PyMC's own density and the same models in pm."""

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytensor.xtensor as ptx
import pytest
import xarray as xr

from numpy.testing import assert_allclose, assert_array_equal
from pymc.dims.distributions.transforms import DimTransform, IntervalTransform
from pymc.pytensorf import constant_fold

import pymc_emf as emf

from pymc_emf.exceptions import DiscreteVariableError
from pymc_emf.layers.structured import StructuredLayer
from pymc_emf.model.program import Program

COORDS = {"a": ["u", "v", "w"], "b": range(4), "c": range(4)}

#: A parameter of each distribution goes along the dim a, if PyMC can make such a variable.
A = np.array([0.3, 1.0, 2.0])
COV = np.eye(4) + 0.3

UNIVARIATE = {
    "Beta": {"alpha": A, "beta": 2.0},
    "Cauchy": {"alpha": A, "beta": 2.0},
    "Exponential": {"lam": A},
    "Flat": {},
    "Gamma": {"alpha": A, "beta": 2.0},
    "Gumbel": {"mu": A, "beta": 2.0},
    "HalfCauchy": {"beta": 2.0},
    "HalfFlat": {},
    "HalfNormal": {"sigma": A},
    "HalfStudentT": {"nu": 4.0, "sigma": 2.0},
    "InverseGamma": {"alpha": A, "beta": 2.0},
    "Kumaraswamy": {"a": A, "b": 2.0},
    "Laplace": {"mu": A, "b": 2.0},
    "LogNormal": {"mu": A, "sigma": 2.0},
    "Logistic": {"mu": A, "s": 2.0},
    "Normal": {"mu": A, "sigma": 2.0},
    "Pareto": {"alpha": A, "m": 2.0},
    "StudentT": {"nu": 4.0, "mu": A, "sigma": 2.0},
    "Triangular": {"lower": 0.0, "upper": 2.0, "c": 0.5},
    "TruncatedNormal": {"mu": A, "sigma": 2.0, "lower": 0.5},
    "Uniform": {"lower": np.array([-1.0, 0.0, 1.0]), "upper": 2.0},
    "VonMises": {"mu": A, "kappa": 2.0},
    "Weibull": {"alpha": A, "beta": 2.0},
}
#: Of pymc.dims, and of pm, whose last axis is the dim b.
MULTIVARIATE = {
    "Dirichlet": (
        {"a": ("b", A.sum() * np.ones(4)), "core_dims": "b"},
        {"a": A.sum() * np.ones(4)},
    ),
    "MvNormal": (
        {"mu": ("b", np.arange(4.0)), "cov": (("b", "c"), COV), "core_dims": ("b", "c")},
        {"mu": np.arange(4.0), "cov": COV},
    ),
    "ZeroSumNormal": ({"sigma": ("a", A), "core_dims": "b"}, {"sigma": A[:, None]}),
}
FAMILIES = [*UNIVARIATE, *MULTIVARIATE]
#: What plain pm does not embed either.
BYPASSED = {"Flat", "HalfFlat"}


def named(value):
    match value:
        case np.ndarray():
            return pmd.as_xtensor(value, dims="a")
        case (dims, np.ndarray() as array):
            return pmd.as_xtensor(array, dims=dims)
    return value


def named_model(dims, dims_of_vectors):
    """Every distribution of pymc.dims, with its dims in the order given.

    Those of a scalar with a parameter along a have the dims (b, a) of their own.
    """
    with pm.Model(coords=COORDS) as model:
        for name, parameters in UNIVARIATE.items():
            getattr(pmd, name)(name, **{k: named(v) for k, v in parameters.items()}, dims=dims)
        for name, (parameters, _) in MULTIVARIATE.items():
            getattr(pmd, name)(
                name, **{k: named(v) for k, v in parameters.items()}, dims=dims_of_vectors
            )
    return model


def plain_model():
    with pm.Model(coords=COORDS) as model:
        for name, parameters in UNIVARIATE.items():
            columns = {k: v[:, None] if np.ndim(v) else v for k, v in parameters.items()}
            getattr(pm, name)(name, **columns, dims=("a", "b"))
        for name, (_, parameters) in MULTIVARIATE.items():
            getattr(pm, name)(name, **parameters, dims=("a", "b"))
    return model


def a_point(model, seed=0):
    rng = np.random.default_rng(seed)
    return {k: v + 0.3 * rng.normal(size=v.shape) for k, v in model.initial_point().items()}


def factors(model):
    return [*model.basic_RVs, *model.potentials]


def assert_same_terms(model):
    """The frozen model has PyMC's own density of the user's model, term by term."""
    frozen, point = Program(model).frozen, a_point(model)
    terms = dict(zip(factors(model), model.compile_logp(sum=False)(point), strict=True))
    lowered = dict(zip(factors(frozen), frozen.compile_logp(sum=False)(point), strict=True))
    lowered = {rv.name: term for rv, term in lowered.items()}
    for rv, term in terms.items():
        assert_allclose(lowered[rv.name], term, rtol=1e-10, err_msg=rv.name)
    return frozen, point


def assert_same_density(model, *, but=()):
    """And its gradient."""
    frozen, point = assert_same_terms(model)
    names = [rv.name for rv in model.free_RVs if rv.name not in but]
    gradient, own = (m.compile_dlogp([m[name] for name in names])(point) for m in (frozen, model))
    assert np.isfinite(gradient).all()
    assert_allclose(gradient, own, rtol=1e-10, atol=1e-12)


def image(program, noise):
    """Value of noise under the prior, and log|det|."""
    return emf.compile(StructuredLayer(program)).forward(noise)


@pytest.fixture(scope="module")
def programs():
    return Program(named_model(("a", "b"), ("a", "b"))), Program(plain_model())


class TestFamilies:
    def test_all_continuous_distributions_are_here(self):
        made = {
            name
            for name, of_dims in vars(pmd).items()
            if hasattr(of_dims, "xrv_op") and not issubclass(getattr(pm, name), pm.Discrete)
        }
        assert made - {"Censored"} == set(FAMILIES)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_is_embedded_as_that_of_pm(self, programs, name):
        sites = [next(s for s in program.sites if s.name == name) for program in programs]
        of_dims, of_pm = sites
        assert of_dims.value_name == of_pm.value_name
        assert of_dims.shape == of_pm.shape
        assert type(of_dims.transform) is type(of_pm.transform)
        # the same bijection of the same parameters
        ops = [site.rv.owner.op for site in sites]
        assert type(ops[0]) is type(ops[1])
        parameters = [op.dist_params(site.rv.owner) for op, site in zip(ops, sites, strict=True)]
        for ours, theirs in zip(*map(constant_fold, parameters), strict=True):
            assert_array_equal(*np.broadcast_arrays(ours, theirs))
        bijections = [emf.bijections.bijection_from_rv(s.rv, s.transform) for s in sites]
        assert type(bijections[0]) is type(bijections[1])
        assert (bijections[0] is None) == (name in BYPASSED)
        if bijections[0] is not None:
            assert bijections[0].gateable == bijections[1].gateable

    def test_is_bypassed_only_if_pm_bypasses_it(self, programs):
        assert StructuredLayer(programs[0]).bypassed == BYPASSED

    @pytest.mark.slow  # compiles two dozen densities and gradients twice; fits' models do below
    def test_density_and_gradient_are_those_of_pymc(self):
        # PyMC finds no gradient of a flat density of pymc.dims
        assert_same_density(named_model(("a", "b"), ("b", "a")), but={"Flat"})

    def test_law_with_the_axes_in_another_order(self):
        """Noise becomes the prior, as log densities tell, where no distribution of pm fits."""
        with pm.Model(coords=COORDS) as model:
            for name, (parameters, _) in MULTIVARIATE.items():
                given = {k: named(v) for k, v in parameters.items()}
                getattr(pmd, name)(name, **given, dims=("b", "a"))
            pmd.Weibull("Weibull", named(A), 2.0, dims=("a", "b"))
        program = Program(model)
        assert {site.name: site.rv_shape for site in program.sites} == {
            **dict.fromkeys(MULTIVARIATE, (4, 3)),
            "Weibull": (3, 4),
        }
        noise = np.random.default_rng(2).normal(size=program.size)
        value, log_det = image(program, noise)
        point = {site.value_name: value[site.noise].reshape(site.shape) for site in program.sites}
        log_q = -(noise**2).sum() / 2 - program.size * np.log(2 * np.pi) / 2 - log_det
        assert_allclose(model.compile_logp()(point), log_q, rtol=1e-8)
        assert not StructuredLayer(program).bypassed
        assert "ZeroSumNormal" in str(emf.describe(model))


class TestTransforms:
    def test_bounds_along_a_dim(self):
        bounds = IntervalTransform(named(np.array([-2.0, -3.0, -np.inf])), 4.0)
        with pm.Model(coords=COORDS) as model:
            pmd.Normal("x", named(A), 2.0, dims=("b", "a"), transform=bounds)
            pmd.TruncatedNormal("above", named(A), 1.0, upper=3.0, dims=("a", "b"))
            pmd.TruncatedNormal("both", named(A), 1.0, lower=-1.0, upper=3.0)
            pmd.TruncatedNormal("none", named(A), 1.0)
        assert_same_density(model)
        assert not StructuredLayer(Program(model)).bypassed

    def test_own_transform(self):
        with pm.Model(coords=COORDS) as model:
            pmd.Normal("x", named(A), 2.0, dims=("b", "a"), transform=Cubic())
        assert_same_density(model)
        assert not StructuredLayer(Program(model)).bypassed

    def test_transform_after_the_default_one(self):
        """PyMC makes the variable, but fails to derive its density; that of pm is known."""
        with pm.Model(coords=COORDS) as model:
            pmd.HalfNormal("x", named(A), transform=Cubic())
        with pm.Model() as plain:
            log_x = pm.Flat("log_x", shape=3)
            pm.Potential("x", pm.logp(pm.HalfNormal.dist(A), pm.math.exp(log_x**3)))
            pm.Potential("jacobian", log_x**3 + pm.math.log(3 * log_x**2))
        value = np.array([0.7, -0.4, 0.9])
        frozen = Program(model).frozen
        (name,) = (value.name for value in frozen.value_vars)
        density = frozen.compile_logp()({name: value})
        assert_allclose(density, plain.compile_logp()({"log_x": value}), rtol=1e-10)


class Cubic(DimTransform):
    name = "cubic"

    def forward(self, value, *inputs):
        return ptx.math.sign(value) * abs(value) ** (1 / 3)

    def backward(self, value, *inputs):
        return value**3

    def log_jac_det(self, value, *inputs):
        return ptx.math.log(3 * value**2)


N = 24
GROUP = np.arange(N) % 3
X = np.random.default_rng(3).normal(size=N)
Y = 1 + 0.5 * X + np.array([-1.0, 0.0, 1.0])[GROUP] + 0.5 * np.random.default_rng(4).normal(size=N)


def regression():
    """Groups by name: data, an index, effects that broadcast, a deterministic."""
    with pm.Model(coords={"group": ["u", "v", "w"], "row": np.arange(N)}) as model:
        x = pmd.Data("x", X, dims="row")
        group = pmd.Data("group_of", GROUP, dims="row")
        mean = pmd.Normal("mean", 0.0, 2.0)
        effect = pmd.Normal("effect", 0.0, pmd.HalfNormal("spread", 1.0), dims="group")
        slope = pmd.Normal("slope", 0.0, 1.0)
        level = pmd.Deterministic("level", mean + effect)
        sigma = pmd.HalfNormal("sigma", 1.0)
        observed = pmd.Data("y_data", Y, dims="row")
        pmd.Normal("y", level.isel(group=group) + slope * x, sigma, observed=observed)
    return model


def plain_regression():
    with pm.Model(coords={"group": ["u", "v", "w"], "row": np.arange(N)}) as model:
        x = pm.Data("x", X, dims="row")
        group = pm.Data("group_of", GROUP, dims="row")
        mean = pm.Normal("mean", 0.0, 2.0)
        effect = pm.Normal("effect", 0.0, pm.HalfNormal("spread", 1.0), dims="group")
        slope = pm.Normal("slope", 0.0, 1.0)
        level = pm.Deterministic("level", mean + effect, dims="group")
        sigma = pm.HalfNormal("sigma", 1.0)
        observed = pm.Data("y_data", Y, dims="row")
        pm.Normal("y", level[group] + slope * x, sigma, observed=observed, dims="row")
    return model


def fit(model, n=300, **kwargs):
    return emf.fit(n, model=model, layers="affine", random_seed=1, progressbar=False, **kwargs)


@pytest.fixture(scope="module")
def model():
    return regression()


@pytest.fixture(scope="module")
def approx(model):
    return fit(model)


@pytest.fixture(scope="module")
def draws(approx):
    return approx.sample(200, random_seed=2)


@pytest.fixture(scope="module")
def trace(model):
    """Of PyMC's own sampler, for its labels."""
    with model:
        return pm.sample(
            10,
            tune=10,
            chains=1,
            random_seed=1,
            progressbar=False,
            nuts_sampler="pymc",
            compute_convergence_checks=False,
        )


class TestFit:
    def test_density_is_that_of_pymc(self, model):
        assert_same_density(model)

    @pytest.mark.slow  # a second fit, of what is the same density above
    def test_is_the_fit_of_the_same_model_in_pm(self, approx, draws):
        plain = fit(plain_regression())
        assert_array_equal(approx.hist, plain.hist)
        expected = plain.sample(200, random_seed=2)
        xr.testing.assert_identical(
            draws.posterior.to_dataset().drop_attrs(), expected.posterior.to_dataset().drop_attrs()
        )

    @pytest.mark.parametrize("group", ["posterior", "observed_data", "constant_data"])
    def test_labels_are_those_of_nuts(self, draws, trace, group):
        ours, theirs = draws[group].to_dataset(), trace[group].to_dataset()
        assert set(ours) == set(theirs)
        for name in theirs:
            assert ours[name].dims == theirs[name].dims
        for dim in set(theirs.coords) - {"chain", "draw"}:
            assert_array_equal(ours[dim], theirs[dim])
        if group != "posterior":
            xr.testing.assert_equal(ours, theirs)

    def test_posterior_predictive_of_the_own_model(self, model, draws):
        with model:
            predicted = pm.sample_posterior_predictive(draws, random_seed=1, progressbar=False)
        y = predicted.posterior_predictive["y"]
        assert y.dims == ("chain", "draw", "row")
        level = draws.posterior["level"].isel(group=xr.DataArray(GROUP, dims="row"))
        expected = level + draws.posterior["slope"] * xr.DataArray(X, dims="row")
        assert abs(y - expected).mean() < draws.posterior["sigma"].mean()

    def test_log_likelihood(self, model, draws):
        with model:
            given = pm.compute_log_likelihood(draws.copy(), progressbar=False)
        assert given.log_likelihood["y"].dims == ("chain", "draw", "row")

    def test_symbolic_interface(self, model, approx, draws):
        nodes = [model["level"] + model["mean"], model["effect"].sum("group").values * 2]
        level, total = approx.sample_node(nodes, size=500)
        level, total = level.eval(), total.eval()
        posterior = draws.posterior
        assert level.shape == (500, 3)
        for drawn, expected in (
            (level, posterior["level"] + posterior["mean"]),
            (total, 2 * posterior["effect"].sum("group")),
        ):
            by_draw = expected.squeeze("chain")
            tolerance = 0.3 * by_draw.std("draw").max()
            assert_allclose(drawn.mean(axis=0), by_draw.mean("draw"), atol=tolerance)
        assert approx.sample_node(model["mean"]).eval().shape == ()

    def test_prior_beside_posterior(self, approx):
        axes = emf.plot_prior_posterior(approx, "effect", random_seed=1)
        assert [ax.get_title() for ax in axes] == ["effect[u]", "effect[v]", "effect[w]"]

    def test_other_data(self):
        model = regression()
        with model:
            pm.set_data(
                {"x": X[:9], "group_of": GROUP[:9], "y_data": Y[:9]}, coords={"row": range(9)}
            )
        given = emf.EMFApprox(model, layers="affine").approx.sample(5, random_seed=1)
        assert_array_equal(given.observed_data["y"], Y[:9])
        assert_array_equal(given.constant_data["row"], np.arange(9))


def test_mixed_with_plain_variables():
    with pm.Model(coords=COORDS) as model:
        x = pmd.Normal("x", named(A), 1.0, dims=("b", "a"))
        z = pm.Normal("z", x.values[0], 1.0, dims="a")
        scale = pm.HalfNormal("scale", 1.0)
        w = pmd.Uniform("w", 0.5, 2.0, dims="b")
        zero_sum = pmd.ZeroSumNormal("zero_sum", 1.0, core_dims=("a", "b"))
        product = pmd.as_xtensor(z, dims="a") * x + zero_sum
        pmd.Deterministic("product", product, dims=("a", "b"))
        pm.Deterministic("sums", x.sum("b").values + z, dims="a")
        pmd.Potential("named", -((x - w) ** 2))
        pm.Potential("plain", -(z**2).sum() * scale)
        data = pmd.as_xtensor(np.arange(12.0).reshape(4, 3), dims=("b", "a"))
        sigma = pmd.as_xtensor(scale, dims=())
        pmd.Normal("transposed", product, sigma, observed=data, dims=("a", "b"))
        pm.Normal("y", z + w.values[:3], scale, observed=[1.0, 2.0, 3.0])
        integers = pmd.Data("integers", np.arange(3), dims="a")
        pmd.StudentT("cast", 4.0, x.sum("b"), sigma, observed=integers)
        pmd.Poisson("counts", ptx.math.exp(w), observed=pmd.as_xtensor([1, 0, 2, 1], dims="b"))
    frozen, point = assert_same_terms(model)
    # PyMC finds no gradient of a potential of pymc.dims
    density, gradient = frozen.compile_logp(), frozen.compile_dlogp(frozen.free_RVs)(point)
    step = {k: 1e-5 * np.random.default_rng(1).normal(size=v.shape) for k, v in point.items()}
    ends = [density({k: v + sign * step[k] for k, v in point.items()}) for sign in (1, -1)]
    along = np.concatenate([step[value.name].ravel() for value in frozen.value_vars])
    assert_allclose((ends[0] - ends[1]) / 2, gradient @ along, rtol=1e-6)
    assert not StructuredLayer(Program(model)).bypassed
    given = emf.EMFApprox(model, layers="affine", random_seed=1).approx.sample(5, random_seed=1)
    posterior = given.posterior
    assert posterior["product"].dims == ("chain", "draw", "a", "b")
    assert posterior["sums"].dims == ("chain", "draw", "a")
    product = posterior["z"] * posterior["x"] + posterior["zero_sum"]
    xr.testing.assert_allclose(posterior["product"], product.transpose(..., "a", "b"))
    assert_allclose(posterior["zero_sum"].sum("a"), 0, atol=1e-12)
    assert_array_equal(given.observed_data["transposed"], np.arange(12.0).reshape(4, 3).T)
    changing = Program(model, data_may_change=True)
    assert_array_equal(changing.data["transposed"].get_value(), np.arange(12.0).reshape(4, 3).T)
    assert_array_equal(changing.data["cast"].get_value(), np.arange(3.0))


def test_vectors_observed_with_their_axes_in_another_order():
    with pm.Model(coords=COORDS) as model:
        mu = pmd.Normal("mu", 0.0, 1.0, dims="b")
        cov = pmd.as_xtensor(COV, dims=("b", "c"))
        data = pmd.as_xtensor(np.arange(12.0).reshape(4, 3), dims=("b", "a"))
        pmd.MvNormal("y", mu, cov, core_dims=("b", "c"), observed=data, dims=("b", "a"))
        censored = pmd.Normal.dist(mu, 1.0)
        pmd.Censored("z", censored, lower=0.0, observed=abs(data), dims=("b", "a"))
    assert_same_density(model)


class TestPoints:
    @pytest.mark.parametrize("kind", ["array", "labelled", "symbolic"])
    def test_initval(self, kind):
        value = np.arange(1.0, 13.0).reshape(3, 4)
        initval = {
            "array": value,
            "labelled": xr.DataArray(value.T, dims=("b", "a")),
            "symbolic": pmd.as_xtensor(value.T, dims=("b", "a")),
        }[kind]
        with pm.Model(coords=COORDS) as model:
            pmd.HalfNormal("x", named(A), dims=("a", "b"), initval=initval)
        point = emf.variational.points.user_point(Program(model), None)
        assert_allclose(point["x_log__"], np.log(value), rtol=1e-14)
        assert model.rvs_to_initial_values[model["x"]] is not None

    def test_start(self):
        value = np.arange(1.0, 13.0).reshape(3, 4)
        with pm.Model(coords=COORDS) as model:
            pmd.HalfNormal("x", named(A), dims=("a", "b"))
        start = {"x": xr.DataArray(value.T, dims=("b", "a"))}
        point = emf.variational.points.user_point(Program(model), start)
        assert_allclose(point["x_log__"], np.log(value), rtol=1e-14)

    def test_start_in_value_space(self):
        with pm.Model(coords=COORDS) as model:
            ones = pmd.as_xtensor(np.ones(4), dims="b")
            pmd.Dirichlet("w", ones, core_dims="b", dims=("b", "a"))
            pmd.Normal("x", named(A), 1.0, dims=("b", "a"), transform=Cubic())
        start = {
            "w_simplex__": np.linspace(-1.0, 1.0, 9).reshape(3, 3),
            "x_cubic__": np.linspace(0.5, 2.0, 12).reshape(4, 3),
        }
        point = emf.variational.points.user_point(Program(model), start)
        for name, value in start.items():
            assert_allclose(point[name], value, rtol=1e-12)

    def test_initval_that_depends_on_variables(self):
        with pm.Model() as model:
            mu = pm.Normal("mu")
            pm.Normal("x", initval=mu + 1)
        with pytest.raises(ValueError, match="initval of x depends on other random variables"):
            emf.variational.points.user_point(Program(model), None)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: pmd.Poisson("n", named(A)), DiscreteVariableError, "n; marginalise"),
        (
            lambda: pmd.Censored("x", pmd.Normal.dist(named(A), 1.0), lower=0.0, dims=("a", "b")),
            DiscreteVariableError,
            "x is censored",
        ),
        (
            lambda: pmd.Normal(
                "y",
                pmd.Normal("x", dims="a"),
                observed=pmd.as_xtensor([[1.0, 2.0, np.nan]], dims=("b", "a")),
                dims=("a", "b"),
            ),
            ValueError,
            "observed variable y contain NaN",
        ),
    ],
)
def test_refused(build, error, match):
    with pm.Model(coords={**COORDS, "b": [0]}) as model:
        build()
    with pytest.raises(error, match=match):
        Program(model)


@pytest.mark.slow
def test_against_nuts(compiled_by_numba):
    model = regression()
    draws = emf.fit(model=model, random_seed=1, progressbar=False).sample(4000, random_seed=1)
    with model:
        trace = pm.sample(4000, tune=2000, chains=2, cores=1, random_seed=1, progressbar=False)
    for name, truth in trace.posterior.data_vars.items():
        distance = draws.posterior[name].mean(("chain", "draw")) - truth.mean(("chain", "draw"))
        assert (abs(distance) < 0.1 * truth.std(("chain", "draw"))).all(), name
