"""Measures of sharpness, each of which says what it is invariant to."""

from quotientnet.sharpness.alternative import alternative_normalised_sharpness
from quotientnet.sharpness.euclidean import spectral_norm, trace
from quotientnet.sharpness.fisher_rao import diagonal_fisher_rao_norm, fisher_rao_norm
from quotientnet.sharpness.matrix_normalised import matrix_normalised_sharpness
from quotientnet.sharpness.minimum import MinimumSharpness, minimum_sharpness
from quotientnet.sharpness.normalised import NormalisedSharpness, normalised_sharpness
from quotientnet.sharpness.pac_bayes import (
    PacBayesTerms,
    gaussian_divergence,
    pac_bayes_terms,
)
from quotientnet.sharpness.relative import relative_flatness
from quotientnet.sharpness.riemannian import riemannian_spectral_norm
from quotientnet.sharpness.variances import Variances

__all__ = [
    "spectral_norm", "trace", "riemannian_spectral_norm", "matrix_normalised_sharpness",
    "alternative_normalised_sharpness",
    "normalised_sharpness", "NormalisedSharpness", "Variances", "minimum_sharpness",
    "MinimumSharpness", "fisher_rao_norm", "diagonal_fisher_rao_norm", "relative_flatness",
    "pac_bayes_terms", "PacBayesTerms", "gaussian_divergence",
]  # fmt: skip
