"""Measures of the Euclidean Hessian, which rescaling moves at will (dinh2017 Thm. 4)."""

from __future__ import annotations

from quotientnet.curvature.lanczos import lanczos
from quotientnet.curvature.traces import hutchinson_trace
from quotientnet.estimate import Estimate

__all__ = ["spectral_norm", "trace"]


def spectral_norm(point, *, which: str = "magnitude", **options) -> Estimate:
    """The dominant eigenvalue of ``∇²f``, by default the largest in magnitude, with its sign.

    Invariant to nothing: an equivalent network can have any larger value.

    Args:
        point: A :class:`~quotientnet.Point`.
        which: ``"magnitude"``, ``"algebraic"`` or ``"smallest"``.
        options: Passed to :func:`~quotientnet.curvature.lanczos`.

    Returns:
        The estimate in units of loss per squared parameter; ``error`` bounds the distance to some
        eigenvalue.
    """
    return as_estimate(lanczos(point.hessian, which=which, **options))


def trace(point, *, samples: int = 100, generator=None) -> Estimate:
    """The trace of ``∇²f``, estimated with its standard error. Invariant to nothing.

    Args:
        point: A :class:`~quotientnet.Point`.
        samples: Number of random sign vectors.
        generator: Source of randomness; a fresh one with seed 0 if omitted.
    """
    return hutchinson_trace(point.hessian, samples=samples, generator=generator)


def as_estimate(pairs, invariant_to: tuple[str, ...] = ()) -> Estimate:
    """The first eigenvalue and its residual as a measure's result."""
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    return Estimate(value, residual, pairs.converged, pairs.products, invariant_to)
