"""Spectra and traces of symmetric operators."""

from quotientnet.curvature.spectrum import Eigenpair, power_method
from quotientnet.curvature.traces import hutchinson_trace

__all__ = ["Eigenpair", "power_method", "hutchinson_trace"]
