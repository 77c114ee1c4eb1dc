"""Figures, for those who have matplotlib."""

from quotientnet.plot.comparisons import plot_against_gap, plot_changes, plot_matrix
from quotientnet.plot.curvature import plot_density, plot_layers
from quotientnet.plot.landscape import plot_lines, plot_plane

__all__ = [
    "plot_lines",
    "plot_plane",
    "plot_density",
    "plot_layers",
    "plot_changes",
    "plot_matrix",
    "plot_against_gap",
]
