"""Spectra, densities, traces and diagonals of symmetric operators and of networks' curvature."""

from quotientnet.curvature.density import SpectralDensity, spectral_density
from quotientnet.curvature.finite_differences import finite_difference_diagonal
from quotientnet.curvature.hessian import hessian_diagonal, hessian_traces
from quotientnet.curvature.lanczos import Eigenpairs, lanczos
from quotientnet.curvature.layers import (
    Cost,
    LayerTraces,
    ggn_cost,
    ggn_diagonal,
    ggn_traces,
)
from quotientnet.curvature.sketch import ggn_traces_estimate
from quotientnet.curvature.slopes import sample_slopes, squared_gradients
from quotientnet.curvature.spectrum import Eigenpair, power_method
from quotientnet.curvature.traces import (
    DiagonalEstimate,
    hutch_plus_plus_trace,
    hutchinson_diagonal,
    hutchinson_trace,
)

__all__ = [
    "lanczos", "Eigenpairs", "power_method", "Eigenpair", "spectral_density", "SpectralDensity",
    "ggn_traces", "LayerTraces", "ggn_diagonal", "ggn_cost", "Cost", "ggn_traces_estimate",
    "hessian_traces", "hessian_diagonal", "finite_difference_diagonal",
    "squared_gradients", "sample_slopes",
    "hutchinson_trace", "hutch_plus_plus_trace", "hutchinson_diagonal", "DiagonalEstimate",
]  # fmt: skip
