"""The exactness law on models at random: families, shapes, transforms and parents."""

import jax
import numpy as np
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms as tr
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.engine.jax import jaxify
from tests.helpers import UNREWRITTEN
from tests.random_models import law_model


def check(model, seed):
    layer = emf.StructuredLayer(model, "element")
    assert not layer.bypassed
    (gates,) = layer.parameters or (None,)
    noise = pt.vector("noise", shape=(layer.size,))
    inputs = [*layer.parameters, noise]
    of_noise = jaxify(inputs, layer.forward(noise))

    def forward(noise, gates):
        value, log_det = of_noise(*gates, noise)
        return value, (value, log_det)

    derive = jax.jit(jax.jacfwd(forward, has_aux=True))
    inverse = jax.jit(jaxify(inputs, layer.inverse(noise)))
    rng = np.random.default_rng(seed)
    point = rng.normal(size=layer.size)

    def gated(raw):
        return [] if gates is None else [np.full(gates.get_value().shape, raw)]

    for raw in (10.0, 0.0):  # open, half open
        jacobian, (value, log_det) = derive(point, gated(raw))
        back, back_log_det = inverse(*gated(raw), value)
        np.testing.assert_allclose(back, point, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(back_log_det, -log_det, rtol=1e-6, atol=1e-6)
        sign, expected = np.linalg.slogdet(jacobian)
        assert sign == 1
        np.testing.assert_allclose(log_det, expected, rtol=1e-6, atol=1e-6)

    _, (value, log_det) = derive(point, gated(10.0))
    value = np.asarray(value)
    values = {
        site.value_name: value[site.noise].reshape(site.shape) for site in layer.program.sites
    }
    constant = sum(  # PyMC leaves out the number of permutations
        np.log(2.0) for site in layer.program.sites if isinstance(site.transform, tr.Ordered)
    )
    log_density = model.compile_fn(
        model.logp(), mode=UNREWRITTEN, point_fn=True, on_unused_input="ignore"
    )(values)
    np.testing.assert_allclose(
        norm.logpdf(point).sum() - log_det, log_density + constant, rtol=1e-6, atol=1e-6
    )


def test_law():
    check(law_model(np.random.default_rng(3), 6, 0), 3)


# one takes up to half a minute to compile
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_law_with_a_quadrature(seed):
    check(law_model(np.random.default_rng(seed), 8, 1), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_law_of_large_models(seed):
    check(law_model(np.random.default_rng(seed), 30, 2), seed)
