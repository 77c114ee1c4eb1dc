"""Measures of sharpness, each of which says what it is invariant to."""

from quotientnet.sharpness.catalogue import MEASURES, Measure
from quotientnet.sharpness.euclidean import spectral_norm, trace
from quotientnet.sharpness.invariance import (
    Cell,
    InvarianceMatrix,
    invariance_matrix,
)
from quotientnet.sharpness.report import Report, Row, report
from quotientnet.sharpness.riemannian import riemannian_spectral_norm
from quotientnet.sharpness.trials import Trial, digits_trials

__all__ = [
    "spectral_norm",
    "trace",
    "riemannian_spectral_norm",
    "report",
    "Report",
    "Row",
    "Measure",
    "MEASURES",
    "invariance_matrix",
    "InvarianceMatrix",
    "Cell",
    "Trial",
    "digits_trials",
]
