import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_emf.bijections.time_series import linear_recurrence
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
