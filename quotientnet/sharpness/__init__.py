"""Measures of sharpness, each of which says what it is invariant to."""

from quotientnet.sharpness.ball import adaptive_sharpness, ball_sharpness
from quotientnet.sharpness.bn import bn_sharpness, bn_sharpness_limit
from quotientnet.sharpness.box import box_sharpness, volume_flatness
from quotientnet.sharpness.catalogue import MEASURES
from quotientnet.sharpness.euclidean import second_order_sharpness, spectral_norm, trace
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
from quotientnet.sharpness.measure import Measure
from quotientnet.sharpness.report import Report, Row, report
from quotientnet.sharpness.riemannian import riemannian_spectral_norm, riemannian_trace
from quotientnet.sharpness.trials import Trial, digits_trials

__all__ = [
    "spectral_norm", "trace", "second_order_sharpness", "ball_sharpness", "box_sharpness",
    "volume_flatness", "riemannian_spectral_norm", "riemannian_trace", "riemannian_sharpness",
    "average_riemannian_sharpness", "bn_sharpness", "bn_sharpness_limit", "adaptive_sharpness",
    "report", "Report", "Row", "Measure", "MEASURES", "invariance_matrix", "InvarianceMatrix",
    "Cell", "Trial", "digits_trials", "layer_normalised_direction", "loss_along", "Line",
    "loss_over", "Plane",
]  # fmt: skip
