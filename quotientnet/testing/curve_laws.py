"""Laws of curves on a manifold: metric, retractions and transports by slope, geodesics by energy.

Orders are fitted over a range of steps, see :func:`~quotientnet.testing.fit_slope`; none of these
laws needs more than the methods it is about.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from quotientnet.testing.laws import registry, worst
from quotientnet.testing.riemannian_laws import EXP, RIEMANNIAN_LAWS, TRANSPORT
from quotientnet.testing.slopes import STEPS, Slope, measure_slope

__all__ = ["retraction_slope"]

law = registry(RIEMANNIAN_LAWS)

ORDER = 0.1
"""What may be missing of an order."""


# -- the metric ---


@law()
def metric_is_bilinear(s):
    """``⟨u, v⟩`` is symmetric and linear in ``u``, and positive for ``u = v``."""
    inner, (u, v, w) = s.manifold.inner, (s.tangent(key) for key in (4, 5, 6))
    scale = s.norm(s.x, u) * s.norm(s.x, v) + s.norm(s.x, w) * s.norm(s.x, v)
    symmetry = inner(s.x, u, v) - inner(s.x, v, u)
    sums = inner(s.x, 2 * u - w, v) - 2 * inner(s.x, u, v) + inner(s.x, w, v)
    if not (inner(s.x, u) > 0).all():
        return torch.inf
    return worst((symmetry.abs() / scale).max(), (sums.abs() / scale).max())


@law()
def metric_has_the_shape_of_the_batch(s):
    """``inner`` and ``norm`` of three vectors are three numbers, ``norm²`` is ``inner``, and
    ``keepdim`` keeps the point's dimensions."""
    m, n = s.manifold, s.manifold.layout.size
    x, u = (t.reshape(-1, n)[0].repeat(3, 1) for t in (s.x, s.tangent(4)))
    u = u * torch.arange(1.0, 4.0).to(u).unsqueeze(-1)
    if hasattr(m, "rolled"):
        m, (x, u) = m.on(x), m.rolled(x, u)
    v, squares, norms = 2 * u, m.inner(x, u), m.norm(x, u)
    kept = [m.inner(x, u, v, keepdim=True).shape, m.norm(x, u, keepdim=True).shape]
    shapes = [squares.shape, norms.shape, m.inner(x, u, v).shape]
    if shapes != [(3,)] * 3 or kept != [(3, *[1] * m.ndim)] * 2:
        raise ValueError(
            f"shapes {[tuple(shape) for shape in shapes + kept]} for a batch of 3"
        )
    return s.gap(norms**2, squares)


# -- retractions and transports ---


@law(double=ORDER, single=None)
def retraction_starts_with_its_vector(s):
    """``retr(x, h u)`` departs from ``x + h u`` as the square of ``h``."""
    u, m = s.direction(4), s.manifold
    return _slope(s, lambda h: m.retr(s.x, h * u) - s.x - h * u, 2)


@law(double=ORDER, single=None, requires=EXP)
def retraction_is_first_order(s):
    """``retr`` departs from ``exp`` as the square of the step or faster."""
    return retraction_slope(s, 2)


@law(double=ORDER, single=None, requires=TRANSPORT)
def transport_starts_at_the_identity(s):
    """A transport over a distance ``h`` changes a vector by no more than the order of ``h``."""
    u, v, m = s.direction(4), s.direction(5), s.manifold
    return _slope(s, lambda h: m.transp(s.x, m.retr(s.x, h * u), v) - v, 1, STEPS[:16])


def retraction_slope(s, wanted: float = 3) -> Slope:
    """How fast ``retr`` and ``exp`` part: order 2 for every retraction, 3 for one of second order.

    Args:
        s: A :class:`~quotientnet.testing.Sample`; its manifold must have ``expmap``.
        wanted: The order that is called none missing.
    """
    u, m = s.direction(4), s.manifold
    return _slope(s, lambda h: m.retr(s.x, h * u) - m.expmap(s.x, h * u), wanted)


def _slope(s, difference, wanted: float, steps=STEPS) -> Slope:
    """The order of the worst of a batch of differences, in the frame's coordinates."""
    size = float((s.x * s.frame).norm(dim=-1).max())
    rounding = 100 * torch.finfo(s.dtype).eps * max(size, 1.0)

    def error(h: float) -> float:
        return float((difference(h) * s.frame).norm(dim=-1).max())

    return measure_slope(error, wanted, steps=steps, rounding=rounding)


# -- geodesics ---


@law(double=1e-6, single=None, requires=EXP)
def geodesics_have_critical_energy(s):
    """The energy of a geodesic between its ends does not change to first order when it is bent;
    that of ``retr`` in the place of ``exp`` does."""
    m, u, times = s.manifold, 0.5 * s.direction(4), _chebyshev()[0]
    curve = [m.expmap(s.x, t * u) for t in times]
    bends = [t * (1 - t) * m.proju(c, s.vector(6)) for t, c in zip(times, curve)]

    def energy(epsilon):
        bent = torch.stack([m.retr(c, epsilon * b) for c, b in zip(curve, bends)])
        _, derivative, weights = (torch.as_tensor(a).to(bent) for a in _chebyshev())
        velocity = torch.tensordot(derivative, bent, 1)
        return torch.tensordot(weights, m.inner(bent, velocity), 1)

    h = 1e-2
    near, far = (energy(k * h) - energy(-k * h) for k in (1, 2))
    size = s.norm(s.x, m.proju(s.x, s.vector(6)))
    return float(((8 * near - far).abs() / (12 * h * size)).max())


@cache
def _chebyshev(count: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of [0, 1], the matrix that differentiates polynomials given there, and the weights
    that integrate them."""
    x = np.cos(np.pi * np.arange(count) / (count - 1))
    powers = np.polynomial.chebyshev.chebvander(x, count - 1)
    derivatives = np.zeros_like(powers)
    for k in range(count):
        series = np.polynomial.chebyshev.chebder(np.eye(count)[k])
        derivatives[:, k] = np.polynomial.chebyshev.chebval(x, series)
    inverse = np.linalg.inv(powers)
    even = np.array([2 / (1 - k * k) if k % 2 == 0 else 0.0 for k in range(count)])
    return (1 + x) / 2, 2 * derivatives @ inverse, even @ inverse / 2
