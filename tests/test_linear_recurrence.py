import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_emf.bijections.families import time_series
from pymc_emf.bijections.families.time_series import linear_recurrence
from tests.helpers import UNREWRITTEN


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_linear_recurrence(order, length):
    rng = np.random.default_rng(length)
    coefficients = rng.normal(size=(order, length, 2))
    start, drive = rng.normal(size=(order, 2)), rng.normal(size=(length, 2))
    expected = list(start)
    for t in range(length):
        past = [coefficients[i, t] * expected[-1 - i] for i in range(order)]
        expected.append(sum(past) + drive[t])
    actual = linear_recurrence(
        [pt.constant(c) for c in coefficients], pt.constant(start), pt.constant(drive)
    )
    np.testing.assert_allclose(actual.eval(mode=UNREWRITTEN), expected, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 9, 10, 35])
# a batch is in the AR families of test_time_series.py, too
@pytest.mark.parametrize("rest", [(), pytest.param((2,), marks=pytest.mark.slow)])
def test_by_blocks(length, rest, monkeypatch):
    rng = np.random.default_rng(length)
    shapes = (length, *rest), (1, *rest), (length, *rest)
    at = [rng.normal(size=shape) for shape in shapes]
    coefficient, start, drive = (pt.tensor(shape=shape) for shape in shapes)
    compute = {}
    for longest in (256, 1):
        monkeypatch.setattr(time_series, "MAX_DOUBLED", longest)
        value = linear_recurrence([coefficient], start, drive)
        gradients = pt.grad((value**2).sum(), [coefficient, start, drive])
        given = dict(zip((coefficient, start, drive), at, strict=True))
        outputs = [value, *gradients]
        compute[longest] = [output.eval(given, mode=UNREWRITTEN) for output in outputs]
    for actual, expected in zip(compute[1], compute[256], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_length_may_be_unknown(order):
    rng = np.random.default_rng(1)
    at = rng.normal(size=(order, 7)), rng.normal(size=order), rng.normal(size=7)
    coefficients, start, drive = (pt.tensor(shape=(None,) * np.ndim(a)) for a in at)
    unknown = linear_recurrence([coefficients[i] for i in range(order)], start, drive)
    known = linear_recurrence([pt.constant(c) for c in at[0]], *map(pt.constant, at[1:]))
    given = dict(zip((coefficients, start, drive), at, strict=True))
    np.testing.assert_allclose(unknown.eval(given, mode=UNREWRITTEN), known.eval(mode=UNREWRITTEN))
