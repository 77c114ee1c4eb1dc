"""Optimisation on manifolds: one function and one manifold, many starting points at once."""

from quotientnet.optimization.means import frechet_mean
from quotientnet.optimization.optimum import History, Optimum
from quotientnet.optimization.problem import Evaluations
from quotientnet.optimization.solve import maximize, minimize

__all__ = ["maximize", "minimize", "frechet_mean", "Optimum", "History", "Evaluations"]
