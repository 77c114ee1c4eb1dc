"""Means of points on a manifold."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.optimization.optimum import Optimum
from quotientnet.optimization.solve import minimize

__all__ = ["frechet_mean"]


def frechet_mean(
    manifold,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-11,
    max_iterations: int = 500,
) -> Optimum:
    if points.ndim != manifold.ndim + 1:
        raise ValueError()
    mean = torch.ones_like(points.flatten(1)[:, 0]) if weights is None else weights
    mean = mean / mean.sum()

    def half_spread(x: Tensor) -> Tensor:
        # The gradient is minus the mean logarithm; the term with it has the value 0.
        here = x.detach()
        with torch.no_grad():
            logs = manifold.logmap(here.expand_as(points), points)
            squares = manifold.inner(here.expand_as(points), logs)
            shape = (-1,) + (1,) * manifold.ndim
            pull = -(mean.reshape(shape) * logs).sum(0)
        return 0.5 * (mean * squares).sum() + manifold.inner(here, pull, x - here)

    return minimize(
        half_spread,
        manifold,
        points[0] if start is None else start,
        along="geodesic",
        tolerance=tolerance,
        max_iterations=max_iterations,
        batched=False,
    )
