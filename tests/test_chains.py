"""Short chains from draws that are close to a posterior."""

from itertools import islice

import numpy as np
import pytest

from pymc_emf.variational.chains import chains

SIZE = 40


def normal(loc, sd):
    """Log weights of a normal against the standard one."""

    def weigh(z):
        asked.append(len(z))
        log_weights = (z**2 - ((z - loc) / sd) ** 2).sum(axis=1) / 2
        return log_weights, z - (z - loc) / sd**2

    asked = []
    return weigh, asked


def test_chains_come_to_the_posterior():
    rng = np.random.default_rng(0)
    loc, sd = rng.normal(size=SIZE) / 3, np.exp(rng.normal(size=SIZE) / 5)
    weigh, asked = normal(loc, sd)
    start = rng.normal(size=(2000, SIZE))
    states = np.array([z for z, _ in islice(chains(weigh, start, rng), 8, 12)])
    drawn = states.reshape(-1, SIZE)
    np.testing.assert_allclose((drawn.mean(axis=0) - loc) / sd, 0, atol=0.08)
    np.testing.assert_allclose(drawn.std(axis=0), sd, rtol=0.06)
    assert np.corrcoef(start[:, 0], states[-1, :, 0])[0, 1] < 0.1
    assert len(asked) < 80  # for twelve transitions


def test_the_noise_itself_takes_one_step():
    """However many elements there are, as it is known how it moves."""
    rng = np.random.default_rng(1)
    weigh, asked = normal(np.zeros(5000), 1.0)
    start = rng.normal(size=(50, 5000))
    states = [z for z, _ in islice(chains(weigh, start, rng), 30)]
    assert not (states[-1] == states[-2]).all(axis=1).any()
    before = len(asked)
    next(chains(weigh, states[-1], rng))
    assert len(asked) - before < 6
    assert abs((states[-1] ** 2).mean() - 1) < 0.02


@pytest.mark.parametrize("beside", [-np.inf, np.nan])
def test_no_chain_goes_where_there_is_no_density(beside):
    def weigh(z):
        inside = z[:, 0] < 0.5
        pull = np.where(inside[:, None], np.zeros_like(z), np.nan)
        return np.where(inside, 0.0, beside), pull

    rng = np.random.default_rng(2)
    start = rng.normal(size=(4000, 3))
    start[:, 0] = -np.abs(start[:, 0])
    *_, (last, _) = islice(chains(weigh, start, rng), 12)
    assert (last[:, 0] < 0.5).all()
    expected = -np.exp(-(0.5**2) / 2) / np.sqrt(2 * np.pi) / 0.6915  # of the truncated normal
    assert last[:, 0].mean() == pytest.approx(expected, abs=0.04)


def test_a_posterior_that_is_far_from_normal_costs_no_more():
    rng = np.random.default_rng(3)
    asked = []

    def weigh(z):
        asked.append(len(z))
        return -(1e8 * z**4).sum(axis=1), -4e8 * z**3

    *_, (last, _) = islice(chains(weigh, rng.normal(size=(20, 30)), rng), 20)
    assert np.isfinite(last).all()
    assert len(asked) < 20 * 13
