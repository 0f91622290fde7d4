"""Schedules and the rules by which a fit stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pymc_emf.engine.optimizers import Adam
from pymc_emf.engine.stopping import WINDOW, has_plateaued, is_exact, rounding_hides
from pymc_emf.engine.trainer import stop_when_settled


def rates(optimizer, state, n):
    """Size of each step along a constant gradient, which Adam makes one before the rates."""

    def step(state, _):
        gradient = {"float64": jnp.ones(2)}
        updates, state = optimizer.update(gradient, state, None, value=None, value_fn=None)
        return state, -updates["float64"]

    state, sizes = jax.lax.scan(step, state, length=n)
    return np.asarray(sizes), state


def begun(n, peaks):
    optimizer = Adam([np.zeros(2)])
    return optimizer, optimizer.init(optimizer.pack([np.zeros(2)]), n, [np.array(peaks)])


def test_schedule_rises_and_falls_to_zero():
    n = 2000
    optimizer, state = begun(n, [0.01, 0.001])
    sizes, state = rates(optimizer, state, n)
    np.testing.assert_allclose(sizes[:, 0], 10 * sizes[:, 1], rtol=1e-6)
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.01, 100, n)
    np.testing.assert_allclose(sizes[:, 0], [expected(i) for i in range(n)], atol=1e-8)
    more, _ = rates(optimizer, state, 3)
    np.testing.assert_allclose(more, 0.0, atol=1e-12)


@pytest.mark.parametrize("n", [2500, 10_000])
@pytest.mark.parametrize("done", [150, 1000, 2000])
@pytest.mark.parametrize("n_left", [50, 500])
def test_cool_down_goes_on_at_the_same_rate_and_ends_at_zero(n, done, n_left):
    optimizer, state = begun(n, [0.01, 0.01])
    before, state = rates(optimizer, state, done)
    after, state = rates(optimizer, optimizer.cool_down(state, n_left), n_left)
    np.testing.assert_allclose(after[0], before[-1], rtol=0.03, atol=1e-5)
    assert (np.diff(after[:, 0]) <= 1e-9).all()
    beyond, _ = rates(optimizer, state, 2)
    np.testing.assert_allclose(beyond, 0.0, atol=1e-6)


def test_plateau():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=3 * WINDOW)
    falling = flat - np.arange(3 * WINDOW) * 5e-4
    assert not has_plateaued(flat[: 2 * WINDOW - 1], 10.0)
    assert not has_plateaued(falling, 0.01)
    assert has_plateaued(falling, 0.5)  # which falls by a fifth of a nat in a window
    stopped = [has_plateaued(rng.normal(size=2 * WINDOW), 0.0) for _ in range(300)]
    assert 0.6 < np.mean(stopped) < 0.8  # within half a standard error, or rising
    assert not has_plateaued(np.append(flat, np.nan), 10.0)


class Going:
    """A run that is told to stop."""

    n, reason, has_climbed, more_since = 10_000, "steps", False, None
    optimizer = Adam

    def __init__(self, losses):
        self.losses_so_far, self.done, self.within = losses, len(losses), None

    def stop(self, reason, within):
        self.within = within

    def take_more(self):
        self.more_since = self.done


@pytest.mark.parametrize(
    ("sd", "exact", "share"), [(0.05, True, 0.5), (1.0, True, 1.0), (1.0, False, 0.5)]
)
def test_the_rates_fall_the_longer_the_more_their_noise_hides(sd, exact, share):
    """Unless it is the noise of minibatches."""
    run = Going(np.random.default_rng(0).normal(scale=sd, size=4000))
    stop_when_settled(8, 0.01, exact)(run)
    assert run.within == share * 4000


def test_more_draws_where_noise_hides_what_is_left():
    """Once, before the rates fall; losses of before do not count then."""
    losses = np.random.default_rng(0).normal(size=4000)
    run = Going(losses)
    stop_when_settled(8, 0.01, True, n_more=32)(run)
    assert (run.more_since, run.within) == (4000, None)
    # as much is left, and the losses still fall
    falling = np.random.default_rng(1).normal(scale=0.5, size=1200) - np.linspace(0, 5, 1200)
    run.losses_so_far, run.done = np.append(losses, falling), 5200
    stop_when_settled(8, 0.01, True, n_more=32)(run)
    assert (run.more_since, run.within) == (4000, None)
    run.losses_so_far, run.done = np.append(losses, losses[:1200] / 2), 5200
    stop_when_settled(8, 0.01, True, n_more=32)(run)
    assert (run.more_since, run.within) == (4000, 2600)

    close = Going(0.05 * losses)  # nothing is hidden
    stop_when_settled(8, 0.01, True, n_more=32)(close)
    assert (close.more_since, close.within) == (None, 2000)


def test_exactness():
    def exact(losses, window=100, dtype="float64"):
        return is_exact(np.asarray(losses), 50, window, np.dtype(dtype))

    assert exact(np.full(100, 3.0) + 1e-9 * np.arange(100))
    assert not exact(np.full(100, 3.0) + 1e-5 * np.arange(100))
    assert not exact([3.0], window=1)
    assert not exact([3.0, 3.0])  # too few to tell
    assert not exact(np.full(100, np.inf))
    assert not exact([-1e200, 1e200], window=2)


def test_rounding_does_not_pass_for_exactness():
    """The numbers of float32 near a million are a sixteenth apart."""
    losses = np.full(100, 1e6)
    assert is_exact(losses, 50, 100, np.dtype("float64"))
    assert not is_exact(losses, 50, 100, np.dtype("float32"))
    assert not rounding_hides(losses, 1e-3, np.dtype("float64"))
    assert rounding_hides(losses, 1e-3, np.dtype("float32"))
