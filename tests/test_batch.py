"""Functions of one event, run over many."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import sleep

import jax.numpy as jnp
import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from pymc_emf.engine.batch import batch_jax, share
from pymc_emf.engine.jax import jaxify
from pymc_emf.engine.threads import side_by_side


@pytest.mark.parametrize("n", [0, 1, 3, 4, 21])
def test_batches_side_by_side_are_in_order(n):
    many = batch_jax(lambda values, x: (values[0] * x, x.sum()), size=4, block=2)
    events = np.arange(3.0 * n).reshape(n, 3)
    scaled, sums = many([np.array(2.0)], events)
    np.testing.assert_array_equal(scaled, 2 * events)
    np.testing.assert_array_equal(sums, events.sum(axis=1))


def test_threads_compile_together_what_they_share():
    """JAX lets whoever comes second wait for the first."""
    traced = []

    def slow(values, x):
        traced.append(sleep(0.2))
        return values[0] * x

    alone = batch_jax(slow, size=4)
    alone([np.array(2.0)], np.arange(3.0))
    n_alone, many = len(traced), batch_jax(slow, size=4)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(many, [np.array(2.0)], np.arange(3.0)) for _ in range(2)]
    for future in found:
        np.testing.assert_array_equal(future.result(), [0.0, 2.0, 4.0])
    assert len(traced) == 2 * n_alone


def test_what_has_begun_is_not_traced_again():
    traced = []

    def single(values, x):
        traced.append(x.dtype)
        return values[0] * x

    many, values = batch_jax(single, size=4, block=2), [np.array(2.0)]
    many.begin(values, np.zeros(1))
    n_begun = len(traced)
    assert n_begun > 0
    many.begin(values, np.zeros(1))
    np.testing.assert_array_equal(many(values, np.arange(9.0)), 2 * np.arange(9.0))
    assert len(traced) == n_begun


@pytest.mark.parametrize(
    ("n_events", "n_cores", "expected"),
    [(0, 2, 8), (9, 1, 16), (200, 2, 104), (512, 2, 256), (1000, 4, 256), (4000, 2, 504)],
)
def test_cores_get_as_many(n_events, n_cores, expected):
    """In whole blocks, and in as few calls of the compiled size as that allows."""
    assert share(n_events, 512, 8, n_cores) == expected
    assert share(n_events, 512, 512, n_cores) == 512  # of which none can be left out


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_results_side_by_side_are_in_order(n):
    assert side_by_side(lambda i: sleep(0.001 * (n - i)) or i**2, range(n)) == [
        i**2 for i in range(n)
    ]


def test_what_is_raised_side_by_side_is_raised():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda i: 1 / (5 - i), range(9))


class Alone(Op):
    """What must not run in two threads at once, and fails at large numbers."""

    itypes, otypes = [pt.dscalar], [pt.dscalar]

    def __init__(self):
        self.lock = Lock()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        assert self.lock.acquire(blocking=False)
        sleep(0.002)  # others come
        self.lock.release()
        if inputs[0] > 100:
            raise ArithmeticError("too large")
        outputs[0][0] = np.asarray(inputs[0])


def test_what_is_called_back_runs_alone_and_raises():
    x = pt.dscalar("x")
    function = jaxify([x], [Alone()(x)])
    many = batch_jax(lambda values, x: function(x)[0] + jnp.float64(1.0), size=4)
    np.testing.assert_array_equal(many([], np.arange(40.0)), np.arange(40.0) + 1)
    with pytest.raises(ArithmeticError, match="too large"):
        many([], np.arange(80.0, 120.0))
    np.testing.assert_array_equal(many([], np.arange(4.0)), np.arange(4.0) + 1)
