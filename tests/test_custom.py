"""The exactness law of ``pm.CustomDist(dist=...)``."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms

from pymc_emf.bijections import bijection_from_rv
from pymc_emf.bijections.core.elementwise import Elementwise
from tests.helpers import parametrize
from tests.laws import Family, custom, parametric


def stacked(mu, size):
    parent = pm.Normal.dist(mu, 1.0)
    return pt.stack([pm.Normal.dist(parent, pt.exp(parent)), parent])


def concatenated(mu, size):
    parent = pm.Normal.dist(mu, 1.0, size=2)
    return pt.concatenate([parent, pm.Laplace.dist(parent.sum(), 2.0, size=3)])


def positive_stacked(mu, size):
    parent = pm.LogNormal.dist(mu, 1.0)
    return pt.stack([parent, pm.HalfNormal.dist(parent)])


DISTS = {
    "one": lambda: custom(lambda mu, size: pm.Normal.dist(mu, 2, size=size), 0.5, size=3),
    "random walk": lambda: custom(
        lambda mu, size: pm.GaussianRandomWalk.dist(mu, 2, init_dist=pm.Normal.dist(), steps=4),
        0.5,
        ndim_supp=1,
    ),
    "decreasing": lambda: custom(
        lambda mu, s, size: mu - s * pm.Gumbel.dist(0, 1, size=size), 0.5, 2.0, size=3
    ),
    "scale of either sign": lambda: custom(
        lambda mu, s, size: mu + s * pm.Normal.dist(0, 1, size=size), 0.5, [2.0, 1.0, -1.0], size=3
    ),
    "exp": lambda: custom(
        lambda mu, size: pt.exp(mu + pm.Normal.dist(0, 1, size=size)),
        0.5,
        size=3,
        transform=transforms.log,
    ),
    "shifted exp": lambda: custom(
        lambda mu, size: 1 + pt.exp(mu + pm.Normal.dist(0, 1, size=size)),
        0.5,
        size=3,
        transform=transforms.Interval(1, None),
    ),
    "sigmoid": lambda: custom(
        lambda mu, size: pt.sigmoid(mu + pm.Logistic.dist(0, 1, size=size)),
        0.5,
        size=3,
        transform=transforms.logodds,
    ),
    "softplus": lambda: custom(
        lambda mu, size: pt.softplus(mu + pm.Normal.dist(0, 1, size=size)),
        0.5,
        size=3,
        transform=transforms.log,
    ),
    "softplus cancelled": lambda: custom(
        lambda mu, size: pt.softplus(mu + pm.Normal.dist(0, 1, size=size)),
        0.5,
        size=3,
        transform=transforms.log_exp_m1,
    ),
    "sqrt": lambda: custom(
        lambda b, size: pt.sqrt(pm.Exponential.dist(b, size=size)),
        0.5,
        size=3,
        transform=transforms.log,
    ),
    "square": lambda: custom(
        lambda b, size: pm.Exponential.dist(b, size=size) ** 2,
        0.5,
        size=3,
        transform=transforms.log,
    ),
    "reciprocal": lambda: custom(
        lambda b, size: 1 / pm.Exponential.dist(b, size=size),
        0.5,
        size=3,
        transform=transforms.log,
    ),
    "sinh": lambda: custom(
        lambda mu, size: pt.sinh(pm.Normal.dist(mu, size=size)), 0.5, size=(2, 3)
    ),
    "transposed": lambda: custom(
        lambda mu, size: pm.Normal.dist(mu, [1.0, 2.0, 3.0], size=(2, 3)).T, 0.5, ndim_supp=2
    ),
    "exp of MvNormal": lambda: custom(
        lambda mu, size: pt.exp(pm.MvNormal.dist(mu * np.ones(3), np.eye(3) + 0.3)),
        0.5,
        ndim_supp=1,
        transform=transforms.log,
    ),
    "sinh of MvNormal": lambda: custom(
        lambda mu, size: pt.sinh(pm.MvNormal.dist(mu * np.ones(3), np.eye(3) + 0.3)),
        0.5,
        ndim_supp=1,
    ),
    "stacked": lambda: custom(stacked, 0.5, ndim_supp=1),
    "concatenated": lambda: custom(concatenated, 0.5, ndim_supp=1),
    "positive stacked": lambda: custom(
        positive_stacked, 0.5, ndim_supp=1, transform=transforms.log
    ),
}

#: A function of a whole vector is gated inside: a closed gate leaves the function.
GATED_INSIDE = ("sinh of MvNormal",)

#: Root finding takes Python half a minute.
ROOT_FINDING = (
    "decreasing",
    "shifted exp",
    "sigmoid",
    "softplus",
    "softplus cancelled",
    "sqrt",
    "square",
    "reciprocal",
    "sinh",
    "concatenated",
    "positive stacked",
)


@cache
def family(name):
    dist, transform = DISTS[name]()
    return Family(dist, transform)


# two of the same functions, and scales that are searched for
@parametrize(DISTS, slow=["shifted exp", "softplus cancelled", "positive stacked"])
def test_ungated_bijection_is_the_prior(name):
    family(name).check_prior()


#: Other functions of one variable, which are gated by the same code as softplus is.
FUNCTIONS = (
    "decreasing",
    "shifted exp",
    "sigmoid",
    "softplus cancelled",
    "sqrt",
    "square",
    "reciprocal",
    "sinh",
    "concatenated",
    "positive stacked",
)


@parametrize(DISTS, slow=FUNCTIONS)
def test_gated_bijection(name):
    assert family(name).site.gateable
    family(name).check_gated(identity=name not in GATED_INSIDE)


@pytest.mark.parametrize("name", [name for name in DISTS if name not in ROOT_FINDING])
def test_backends_agree(name):
    family(name).check_backends()


@parametrize(DISTS, quick=[])  # numba takes up to half a minute
def test_numba_agrees(name):
    family(name).check_backends("NUMBA")


PARAMETRIC = {
    "function": (
        (0.5, np.array([2.0, -1.0])),
        lambda mu, s: custom(
            lambda mu, s, size: mu + s * pm.Normal.dist(0, 1, size=size), mu, s, size=2
        ),
    ),
    "joined": ((0.5,), lambda mu: custom(stacked, mu, ndim_supp=1)),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameter_gradients(name):
    at, dist = PARAMETRIC[name]
    parametric(at, lambda *p: dist(*p)[0], transform=None).check_parameter_gradients()


def test_bounded_values_without_a_transform_are_not_gated():
    dist, _ = custom(lambda mu, size: pt.exp(pm.Normal.dist(mu, 1, size=size)), 0.5, size=3)
    site = Family(dist, None)
    assert not site.site.gateable
    site.check_prior()


def sum_of_two(mu, size):
    return pm.Normal.dist(mu, 1.0, size=size) + pm.Normal.dist(0.0, 1.0, size=size)


def random_scale(mu, size):
    return pm.Normal.dist(mu, pm.HalfNormal.dist(1.0), size=size)


@pytest.mark.parametrize("dist", [sum_of_two, random_scale])
def test_other_graphs_are_not_embedded(dist):
    assert bijection_from_rv(pm.CustomDist.dist(0.5, dist=dist, size=2), None) is None


def test_a_function_that_is_not_monotone_is_embedded_by_its_density():
    dist, transform = custom(
        lambda mu, size: pm.Normal.dist(mu, 1.0, size=size) ** 2,
        0.5,
        size=2,
        transform=transforms.log,
    )
    assert isinstance(bijection_from_rv(dist, transform), Elementwise)
