"""The exactness law, as checks that every multivariate and sequential family goes through."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.transforms import _default_transform
from scipy.stats import norm

from pymc_emf.bijections import bijection_from_rv
from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.compose import ComposedElementwise, Function
from tests.helpers import UNREWRITTEN, Functions


class Family:
    """A distribution and its bijection, gated and not, each compiled once.

    Parameters
    ----------
    dist : TensorVariable
        May depend on ``parameters``, variables whose values are given by ``at``.
    transform : Transform, None or "default"
    """

    def __init__(self, dist, transform="default", parameters=(), at=()):
        if transform == "default":
            transform = _default_transform(dist.owner.op, dist)
        self.dist, self.transform = dist, transform
        self.parameters = list(parameters)
        self.at = [np.asarray(a, dtype=float) for a in at]
        unconstrained = dist if transform is None else transform.forward(dist, *dist.owner.inputs)
        given = dict(zip(self.parameters, self.at, strict=True))
        self.shape = tuple(int(n) for n in unconstrained.shape.eval(given))
        self.site = bijection_from_rv(dist, transform)
        assert self.site is not None
        self.gate = pt.tensor("gate", shape=self.shape)
        self._compiled = {}

    def functions(self, gated):
        if gated not in self._compiled:
            site = self.site.gated(self.gate) if gated else self.site
            arguments = [*self.parameters, *([self.gate] if gated else [])]
            self._compiled[gated] = Functions(site, arguments, self.shape)
        return self._compiled[gated]

    def noise(self, seed, scale=1.0):
        return np.random.default_rng(seed).normal(scale=scale, size=self.shape)

    def log_density(self, value):
        """PyMC's log density of the value, with the Jacobian of the transform."""
        v = pt.tensor("v", shape=self.shape)
        inputs = self.dist.owner.inputs
        x = v if self.transform is None else self.transform.backward(v, *inputs)
        log_density = pm.logp(self.dist, x).sum()
        if self.transform is not None:
            log_density += self.transform.log_jac_det(v, *inputs).sum()
        given = dict(zip(self.parameters, self.at, strict=True))
        return float(log_density.eval({v: value, **given}, on_unused_input="ignore"))

    def check_prior(self, scale=1.0, normalized=True, jacobian=True, rtol=1e-7):
        """Ungated, the bijection's density is PyMC's; up to a constant if that is not one."""
        compiled = self.functions(False)
        residuals = []
        for seed in (1, 5):
            noise = self.noise(seed, scale)
            if jacobian:
                value, log_det = compiled.check_laws(self.at, noise)
            else:
                value, log_det = (np.asarray(x) for x in compiled.forward(*self.at, noise))
            ours = norm.logpdf(noise).sum() - log_det
            residuals.append((ours, self.log_density(value)))
        ours, theirs = np.transpose(residuals)
        if not normalized:
            ours, theirs = np.diff(ours), np.diff(theirs)
        # PyMC computes with float32 constants where a Python number fits in one
        np.testing.assert_allclose(ours, theirs, rtol=rtol)

    def check_gated(self, identity=True):
        compiled = self.functions(True)
        noise, rng = self.noise(2), np.random.default_rng(2)
        compiled.check_laws([*self.at, rng.uniform(size=self.shape)], noise)
        value, _ = compiled.check_laws([*self.at, np.zeros(self.shape)], noise)
        if identity:
            np.testing.assert_allclose(value, noise, rtol=1e-12, atol=1e-12)
        # all gates one is the ungated bijection
        value, _ = compiled.forward(*self.at, np.ones(self.shape), noise)
        expected = self.functions(False).forward(*self.at, noise)[0]
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)

    def check_backends(self, mode=UNREWRITTEN):
        gate = np.random.default_rng(3).uniform(size=self.shape)
        self.functions(True).check_backends([*self.at, gate], self.noise(3), mode)

    def check_parameter_gradients(self, rtol=1e-5):
        """Derivatives in the parameters, of value and log|det|, are those of differences."""
        compiled = self.functions(True)
        gate = np.random.default_rng(4).uniform(size=self.shape)
        noise, step = self.noise(4), 1e-6
        gradients = compiled.parameter_jacobian(*self.at, gate, noise)
        for i, at in enumerate(self.at):
            direction = np.random.default_rng(i).normal(size=at.shape)
            if at.ndim == 2:  # a matrix parameter is symmetric or a factor of one
                direction = np.tril(direction) + np.tril(direction, -1).T
            ends = []
            for sign in (1, -1):
                moved = list(self.at)
                moved[i] = at + sign * step * direction
                ends.append(compiled.forward(*moved, gate, noise))
            for k in range(2):
                difference = (np.asarray(ends[0][k]) - np.asarray(ends[1][k])) / (2 * step)
                gradient = np.asarray(gradients[k][i])
                axes = (tuple(range(gradient.ndim - at.ndim, gradient.ndim)), tuple(range(at.ndim)))
                actual = (
                    np.tensordot(gradient, direction, axes) if at.ndim else gradient * direction
                )
                assert np.isfinite(gradient).all()
                np.testing.assert_allclose(actual, difference, rtol=rtol, atol=rtol)


def simple_quantile(*parameters):
    """A cheap increasing function with a parameter, in the place of a quantile by quadrature.

    Every law but that of the density holds for any of them.
    """
    site = LocScale(pt.zeros(()), pt.sqrt(parameters[0]))
    return ComposedElementwise(site, Function(pt.sinh, pt.arcsinh, lambda v: pt.log(pt.cosh(v))))


def parametric(at, dist, **kwargs):
    """Family of a distribution of symbolic parameters, with numbers for them."""
    parameters = [pt.tensor(f"parameter_{i}", shape=np.shape(a)) for i, a in enumerate(at)]
    return Family(dist(*parameters), parameters=parameters, at=at, **kwargs)


def custom(dist, *parameters, transform=None, ndim_supp=0, **kwargs):
    """CustomDist of a function, and the transform to test it under."""
    if "signature" not in kwargs:
        kwargs["ndim_supp"] = ndim_supp
    return pm.CustomDist.dist(*parameters, dist=dist, **kwargs), transform
