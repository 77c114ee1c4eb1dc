"""Measures of sharpness, each of which says what it is invariant to."""

from quotientnet.sharpness.euclidean import spectral_norm, trace
from quotientnet.sharpness.matrix_normalised import matrix_normalised_sharpness
from quotientnet.sharpness.minimum import MinimumSharpness, minimum_sharpness
from quotientnet.sharpness.normalised import NormalisedSharpness, normalised_sharpness
from quotientnet.sharpness.riemannian import riemannian_spectral_norm
from quotientnet.sharpness.variances import Variances

__all__ = [
    "spectral_norm", "trace", "riemannian_spectral_norm", "matrix_normalised_sharpness",
    "normalised_sharpness", "NormalisedSharpness", "Variances", "minimum_sharpness",
    "MinimumSharpness",
]  # fmt: skip
