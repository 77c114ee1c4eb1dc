"""Measures of sharpness, each of which says what it is invariant to."""

from quotientnet.sharpness.alternative import alternative_normalised_sharpness
from quotientnet.sharpness.ball import adaptive_sharpness, ball_sharpness
from quotientnet.sharpness.bn import (
    BNSharpness,
    bn_sharpness,
    bn_sharpness_limit,
    integral_diameter,
)
from quotientnet.sharpness.bn_bounds import (
    Inequality,
    ball_bound,
    generalisation_bound,
    power_bound,
    trace_bound,
)
from quotientnet.sharpness.box import VolumeFlatness, box_sharpness, volume_flatness
from quotientnet.sharpness.catalogue import MEASURES
from quotientnet.sharpness.euclidean import second_order_sharpness, spectral_norm, trace
from quotientnet.sharpness.fisher_rao import diagonal_fisher_rao_norm, fisher_rao_norm
from quotientnet.sharpness.geodesic import (
    average_riemannian_sharpness,
    riemannian_sharpness,
)
from quotientnet.sharpness.invariance import Cell, InvarianceMatrix, invariance_matrix
from quotientnet.sharpness.landscape import (
    Line,
    Plane,
    layer_normalised_direction,
    loss_along,
    loss_over,
)
from quotientnet.sharpness.matrix_normalised import matrix_normalised_sharpness
from quotientnet.sharpness.measure import Measure
from quotientnet.sharpness.minimum import MinimumSharpness, minimum_sharpness
from quotientnet.sharpness.neighbourhood import Ascent
from quotientnet.sharpness.normalised import NormalisedSharpness, normalised_sharpness
from quotientnet.sharpness.pac_bayes import (
    PacBayesTerms,
    gaussian_divergence,
    pac_bayes_terms,
)
from quotientnet.sharpness.relative import relative_flatness
from quotientnet.sharpness.report import Report, report
from quotientnet.sharpness.riemannian import riemannian_spectral_norm, riemannian_trace
from quotientnet.sharpness.row import Row
from quotientnet.sharpness.trials import Trial, digits_trials
from quotientnet.sharpness.variances import Variances

__all__ = [
    "spectral_norm", "trace", "second_order_sharpness", "ball_sharpness", "box_sharpness",
    "volume_flatness", "VolumeFlatness", "Ascent", "riemannian_spectral_norm", "riemannian_trace",
    "riemannian_sharpness", "average_riemannian_sharpness", "bn_sharpness", "bn_sharpness_limit",
    "integral_diameter", "BNSharpness", "Inequality", "ball_bound", "power_bound", "trace_bound",
    "generalisation_bound", "matrix_normalised_sharpness", "normalised_sharpness",
    "NormalisedSharpness", "Variances", "alternative_normalised_sharpness", "pac_bayes_terms",
    "PacBayesTerms", "gaussian_divergence", "minimum_sharpness", "MinimumSharpness",
    "fisher_rao_norm", "diagonal_fisher_rao_norm", "adaptive_sharpness", "relative_flatness",
    "report", "Report", "Row", "Measure", "MEASURES", "invariance_matrix", "InvarianceMatrix",
    "Cell", "Trial", "digits_trials", "layer_normalised_direction", "loss_along", "Line",
    "loss_over", "Plane",
]  # fmt: skip
