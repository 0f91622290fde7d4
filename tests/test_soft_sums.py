"""Sums that a prior holds close to zero: ICAR, and what else would interact through them."""

from functools import partial

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.layers.held_sums import HeldSums
from pymc_emf.layers.parameters import store
from pymc_emf.model.program import Program
from pymc_emf.model.soft_sums import SoftSum, soft_sums
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.held_normal import HeldNormal, without_sums
from pymc_emf.variational.probing import find_structure
from pymc_emf.variational.regression import regress_scores

quiet = {"progressbar": False}

SIZE = 40
SUMS = [SoftSum(np.arange(5, 25), 0.05), SoftSum(np.arange(25, 40), 0.001)]


@pytest.fixture(scope="module")
def walks():
    """A normal of two walks with levels of their own, of which few elements interact, and a mean.

    The sums are not in it.
    """
    rng = np.random.default_rng(0)
    precision = np.diag(rng.uniform(0.5, 2.0, SIZE))
    for i in range(5, SIZE - 1):
        if i != 24:
            precision[i : i + 2, i : i + 2] += rng.uniform(1, 3) * np.array([[1, -1], [-1, 1]])
    precision[:2, 5:] = 0.2 * rng.normal(size=(2, SIZE - 5))  # common to all
    precision[5:, :2] = precision[:2, 5:].T
    precision[:2, :2] = 10 * np.eye(2)
    return precision, rng.normal(size=SIZE)


@pytest.fixture(scope="module")
def found(walks):
    """Mean and precision with the sums, and the normal that is found."""
    free, shift = walks
    rows = np.zeros((2, SIZE))
    for row, held in zip(rows, SUMS, strict=True):
        row[held.places] = 1 / held.sd
    precision = free + rows.T @ rows
    mean = np.linalg.solve(precision, shift)

    def score(points):
        centred = points - mean
        scores = -centred @ precision
        return (centred * scores).sum(axis=1) / 2, scores

    structure = find_structure(
        lambda closed: without_sums(score, SUMS), SIZE, [np.arange(2), np.arange(2, SIZE)], set()
    )
    isotropic = partial(
        HeldNormal.isotropic, factorisation=Factorisation(structure.order), sums=SUMS
    )
    regressed = regress_scores(score, np.zeros(SIZE), 1.0, np.random.default_rng(1), isotropic)
    return precision, mean, structure, regressed


def test_few_interact_without_the_sums(found):
    *_, structure, _ = found
    assert set(structure.order.core[: structure.order.n_common]) == {0, 1}
    assert structure.order.neighbours.shape[1] == 2


def test_it_is_the_normal(found):
    precision, mean, _, regressed = found
    size = SIZE * np.log(2 * np.pi) / 2
    assert regressed.elbo == pytest.approx(size - np.linalg.slogdet(precision)[1] / 2, abs=1e-3)
    assert regressed.sd < 0.03
    draws = regressed.normal.place(np.random.default_rng(2).normal(size=(200_000, SIZE)))
    covariance = np.linalg.inv(precision)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / sd, 0.0, atol=0.03)
    np.testing.assert_allclose(np.log(draws.std(axis=0) / sd), 0.0, atol=0.02)
    for held in SUMS:
        part = covariance[np.ix_(held.places, held.places)].sum()
        assert draws[:, held.places].sum(axis=1).var() == pytest.approx(part, rel=0.03)


def test_the_layer_is_the_same_map(found):
    *_, structure, regressed = found
    normal = regressed.normal
    layer = HeldSums(emf.ConditionalAffine(structure.order), SUMS)
    values = [v.get_value() for v in layer.variables]
    store(layer.variables, layer.set_frame(values, normal.loc, *normal.spread))
    noise = np.random.default_rng(3).normal(size=(4, SIZE))
    value, log_det = emf.compile(layer).forward(noise)
    np.testing.assert_allclose(value, normal.place(noise), atol=1e-8)
    np.testing.assert_allclose(log_det, normal.log_det(noise))


def ring(size):
    adjacency = np.roll(np.eye(size), 1, axis=1)
    return (adjacency + adjacency.T).astype(int)


def smoothed(size, zero_sum_stdev=0.001):
    """Normal data about an ICAR on a ring, and the mean, covariance and log evidence."""
    adjacency = ring(size)
    y = np.sin(np.arange(size) / 8) + np.random.default_rng(4).normal(0, 0.5, size)
    with pm.Model() as model:
        phi = pm.ICAR("phi", W=adjacency, sigma=1.0, zero_sum_stdev=zero_sum_stdev)
        pm.Normal("y", phi, 0.5, observed=y)
    prior = 2 * np.eye(size) - adjacency + np.ones((size, size)) / (0.001 * size) ** 2
    posterior = prior + 4 * np.eye(size)
    covariance = np.linalg.inv(posterior)
    mean = covariance @ (4 * y)
    evidence = model.compile_logp()({"phi": mean}) + size * np.log(2 * np.pi) / 2
    return model, mean, covariance, evidence - np.linalg.slogdet(posterior)[1] / 2


@pytest.fixture(scope="module")
def approx():
    return emf.fit(model=smoothed(250)[0], random_seed=1, **quiet)


@pytest.mark.slow  # its start and its layer are tested above
def test_a_fit_of_many_areas(approx):
    _, mean, covariance, evidence = smoothed(250)
    (*_, layer) = approx.objective.layers
    assert isinstance(layer, HeldSums)
    assert layer.elimination.neighbours.shape[1] == 2
    assert approx.stopping.step == 0
    assert approx.elbo(1000, random_seed=1).mean == pytest.approx(evidence, abs=0.05)
    phi = approx.sample(4000, random_seed=2).posterior["phi"].values[0]
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((phi.mean(axis=0) - mean) / sd, 0, atol=0.08)
    np.testing.assert_allclose(phi.std(axis=0), sd, rtol=0.06)
    assert phi.mean(axis=1).std() == pytest.approx(0.001, rel=0.1)


@pytest.mark.slow  # the file has what any has, see test_persistence.py
def test_a_file_has_it(approx, tmp_path):
    approx.save(tmp_path / "fit")
    again = emf.load(tmp_path / "fit", model=smoothed(250)[0])
    assert again.elbo(100, random_seed=1) == approx.elbo(100, random_seed=1)


def test_sums_of_a_model():
    with pm.Model() as model:
        pm.Normal("x", shape=3)
        pm.ICAR("phi", W=ring(6), zero_sum_stdev=0.01)
        pm.ICAR("psi", W=ring(4), zero_sum_stdev=pm.HalfNormal("sd"))
    (held,) = soft_sums(Program(model))
    assert held.places.tolist() == list(range(3, 9))
    assert held.sd == pytest.approx(0.06)
