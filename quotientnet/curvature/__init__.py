"""Spectra, spectral densities, traces and diagonals of symmetric operators."""

from quotientnet.curvature.lanczos import Eigenpairs, lanczos
from quotientnet.curvature.spectrum import Eigenpair, power_method
from quotientnet.curvature.traces import hutchinson_trace

__all__ = ["Eigenpair", "Eigenpairs", "hutchinson_trace", "lanczos", "power_method"]
