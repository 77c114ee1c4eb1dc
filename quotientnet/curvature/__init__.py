"""Spectra and traces of symmetric operators, and the traces of the Gauss-Newton matrix."""

from quotientnet.curvature.layers import (
    Cost,
    LayerTraces,
    ggn_cost,
    ggn_diagonal,
    ggn_traces,
)
from quotientnet.curvature.sketch import ggn_traces_estimate
from quotientnet.curvature.spectrum import Eigenpair, power_method
from quotientnet.curvature.traces import hutchinson_trace

__all__ = [
    "Eigenpair",
    "power_method",
    "hutchinson_trace",
    "LayerTraces",
    "Cost",
    "ggn_traces",
    "ggn_diagonal",
    "ggn_cost",
    "ggn_traces_estimate",
]
