"""Spectra, spectral densities, traces and diagonals of symmetric operators."""

from quotientnet.curvature.density import SpectralDensity, spectral_density
from quotientnet.curvature.lanczos import Eigenpairs, lanczos
from quotientnet.curvature.spectrum import Eigenpair, power_method
from quotientnet.curvature.traces import (
    DiagonalEstimate,
    hutch_plus_plus_trace,
    hutchinson_diagonal,
    hutchinson_trace,
)

__all__ = [
    "DiagonalEstimate",
    "Eigenpair",
    "Eigenpairs",
    "SpectralDensity",
    "hutch_plus_plus_trace",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "lanczos",
    "power_method",
    "spectral_density",
]
