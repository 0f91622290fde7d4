r"""Scalar functions of the standard normal that stay accurate in both tails, on every backend.

:math:`\Phi(\varepsilon)` alone rounds to one beyond 8.3 and its complement is lost; everything
here works with :math:`\log\Phi(\varepsilon)` and :math:`\log\Phi(-\varepsilon)` instead.
"""

from typing import cast

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
import pytensor.tensor as pt

from pytensor.link.jax.dispatch import jax_funcify
from pytensor.scalar.basic import (
    UnaryScalarOp,
    exp,
    same_out,
    upgrade_to_float_no_complex,
)
from pytensor.scalar.math import NdtriExp as PyTensorNdtriExp
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.variable import TensorVariable
from scipy import special

__all__ = [
    "as_one",
    "log_mills",
    "log_ndtr",
    "ndtri_exp",
    "noise_from_tails",
    "normal_logpdf",
    "stop_gradient",
    "tails",
]


class LogNdtr(UnaryScalarOp):
    """Log of the standard normal distribution function, accurate in both tails."""

    monotonic_increasing = True
    nfunc_spec = ("scipy.special.log_ndtr", 1, 1)

    def impl(self, x):
        return special.log_ndtr(x)

    def pullback(self, inputs, outputs, gradients):
        (x,), (log_cdf,), (gradient,) = inputs, outputs, gradients
        scale = np.asarray(1 / np.sqrt(2 * np.pi), dtype=gradient.type.dtype)
        return [gradient * scale * exp(-(x * x) / 2 - log_cdf)]

    def c_code(self, *args, **kwargs):
        raise NotImplementedError("log_ndtr has no C implementation")


class NdtriExp(PyTensorNdtriExp):
    """PyTensor's ``ndtri_exp`` with a JAX implementation that does not underflow."""


class AsOne(UnaryScalarOp):
    """The identity, which is kept when a graph is rewritten.

    PyTensor gathers sums: ``(x - m) + s`` becomes ``(x + s) - m``, which loses the digits of a
    small difference.
    """

    nfunc_spec = ("positive", 1, 1)  # for numba, whose import would take long

    def impl(self, x):
        return x

    def pullback(self, inputs, outputs, gradients):
        return gradients

    def c_code(self, node, name, inputs, outputs, sub):
        return f"{outputs[0]} = {inputs[0]};"


class StopGradient(AsOne):
    """The identity, constant under differentiation by PyTensor and by JAX alike.

    PyTensor's own ``disconnected_grad``, like every view and every identity, is dropped when a
    graph is rewritten, and JAX then differentiates what was meant to be held fixed.
    """

    def pullback(self, inputs, outputs, gradients):
        return [inputs[0].zeros_like()]


@jax.custom_jvp
def _jax_log_ndtr(x):
    """From one ``erfc``; JAX's own takes the log of a number rounded to one above zero."""
    far = x < (-30 if x.dtype == jnp.float64 else -10)
    tail = jsp.erfc(jnp.where(far, 1.0, jnp.abs(x)) / np.sqrt(2)) / 2
    series = jnp.where(far, x, -30.0)
    asymptotic = jnp.log(_mills(series)) - series**2 / 2 - np.log(2 * np.pi) / 2
    return jnp.where(far, asymptotic, jnp.where(x > 0, jnp.log1p(-tail), jnp.log(tail)))


@_jax_log_ndtr.defjvp
def _jax_log_ndtr_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    log_cdf = _jax_log_ndtr(x)
    far = x < -30
    near = jnp.exp(-(jnp.where(far, 0.0, x) ** 2) / 2 - jnp.where(far, 0.0, log_cdf))
    ratio = jnp.where(far, 1 / _mills(jnp.where(far, x, -30.0)), near / np.sqrt(2 * np.pi))
    return log_cdf, tangent * ratio


def _tabulate_ndtri_exp(n_pieces, degree):
    r"""Piecewise polynomials in 1/t of :math:`t (t + z) - \log t`, highest power first.

    Here :math:`t = \sqrt{-2 \log p}`, and z, the noise at p, tends to -t.
    """
    nodes = (1 + np.polynomial.chebyshev.chebpts1(degree + 1)) / 2
    t = n_pieces / (_FARTHEST * (np.arange(n_pieces)[:, None] + nodes))
    values = t * (t + special.ndtri_exp(-(t**2) / 2)) - np.log(t)
    return np.linalg.solve(np.vander(nodes), values.T)


#: Largest 1/t, that of the median.
_FARTHEST = 1 / np.sqrt(2 * np.log(2))
_PIECES = 32
_NDTRI_EXP = _tabulate_ndtri_exp(_PIECES, 8)


@jax.custom_jvp
def _jax_ndtri_exp(log_p):
    """Solve ``log_ndtr(z) = log_p`` by piecewise polynomials, a far smaller graph than JAX's."""
    dtype = log_p.dtype
    above = log_p > -np.log(2)
    nearer = jnp.where(above, jnp.log(-jnp.expm1(jnp.where(above, log_p, -1.0))), log_p)
    t = np.sqrt(2) * jnp.sqrt(-jnp.maximum(nearer, jnp.finfo(dtype).min))
    position = _PIECES / (_FARTHEST * t)
    piece = jnp.clip(jnp.floor(position), 0, _PIECES - 1)
    coefficients = jnp.asarray(_NDTRI_EXP, dtype)[:, piece.astype(int)]
    rest = jnp.polyval(coefficients, position - piece)
    z = (rest + jnp.log(t)) / t - t
    return jnp.where(above, -z, z)


@_jax_ndtri_exp.defjvp
def _jax_ndtri_exp_jvp(primals, tangents):
    (log_p,), (tangent,) = primals, tangents
    z = _jax_ndtri_exp(log_p)
    far = z < -30
    near = jnp.exp(jnp.where(far, 0.0, log_p + z**2 / 2)) * np.sqrt(2 * np.pi)
    return z, tangent * jnp.where(far, _mills(jnp.where(far, z, -30.0)), near)


def _mills(z):
    """Ratio of distribution function and density far below zero, an asymptotic series."""
    w = 1 / z**2
    return -(1 - w * (1 - 3 * w * (1 - 5 * w * (1 - 7 * w)))) / z


@jax_funcify.register(LogNdtr)
def _jax_funcify_log_ndtr(op, **kwargs):
    return _jax_log_ndtr


@jax_funcify.register(NdtriExp)
def _jax_funcify_ndtri_exp(op, **kwargs):
    return _jax_ndtri_exp


@jax_funcify.register(StopGradient)
def _jax_funcify_stop_gradient(op, **kwargs):
    return jax.lax.stop_gradient


@jax_funcify.register(AsOne)
def _jax_funcify_as_one(op, **kwargs):
    return lambda x: x


_log_ndtr = Elemwise(LogNdtr(upgrade_to_float_no_complex, name="log_ndtr"))
_ndtri_exp = Elemwise(NdtriExp(upgrade_to_float_no_complex, name="ndtri_exp"))
_as_one = Elemwise(AsOne(same_out, name="as_one"))
_stop_gradient = Elemwise(StopGradient(same_out, name="stop_gradient"))


def log_ndtr(x: TensorVariable) -> TensorVariable:
    """Log of the standard normal distribution function, elementwise."""
    return cast(TensorVariable, _log_ndtr(x))


def ndtri_exp(log_p: TensorVariable) -> TensorVariable:
    """Inverse of :func:`log_ndtr`."""
    return cast(TensorVariable, _ndtri_exp(log_p))


def log_mills(x: TensorVariable) -> TensorVariable:
    r"""Log of :math:`\Phi(x) / e^{-x^2/2}`, without cancellation far below zero."""
    far = x < -30
    w = 1 / pt.where(far, x, -30.0) ** 2
    series = -0.5 * pt.log(2 * np.pi / w) + pt.log1p(-w * (1 - 3 * w * (1 - 5 * w)))
    near = pt.where(far, 0.0, x)
    return pt.where(far, series, log_ndtr(near) + near**2 / 2)


def as_one(x: TensorVariable) -> TensorVariable:
    """Keep a difference from being taken apart when the graph is rewritten for JAX."""
    return cast(TensorVariable, _as_one(x))


def stop_gradient(x: TensorVariable) -> TensorVariable:
    """Hold ``x`` constant under differentiation, by PyTensor and by JAX."""
    return cast(TensorVariable, _stop_gradient(x))


def normal_logpdf(noise: TensorVariable) -> TensorVariable:
    """Log density of the standard normal, elementwise, in nats."""
    return -0.5 * noise**2 - 0.5 * float(np.log(2 * np.pi))


def tails(noise: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
    r"""Log probabilities below and above the noise: :math:`\log\Phi(\pm\varepsilon)`."""
    return log_ndtr(noise), log_ndtr(-noise)


def noise_from_tails(log_cdf: TensorVariable, log_sf: TensorVariable) -> TensorVariable:
    r"""Noise at the given tail probabilities, read from the smaller of the two.

    The inverse of :func:`tails`. The branch not taken is fed a harmless constant, so that its
    derivative, infinite where the probability is one, never meets a zero as NaN.
    """
    lower = log_cdf < log_sf
    # keeps the noise finite
    least = pt.constant(np.finfo(log_cdf.dtype).min / 1e8, dtype=log_cdf.dtype)
    from_below = ndtri_exp(pt.where(lower, pt.maximum(log_cdf, least), -1.0))
    from_above = -ndtri_exp(pt.where(lower, -1.0, pt.maximum(log_sf, least)))
    return pt.where(lower, from_below, from_above)
