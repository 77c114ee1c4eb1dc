"""What an optimisation returns, with its history."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quotientnet.optimization.problem import Evaluations

__all__ = ["History", "Optimum", "REASONS"]

REASONS = (
    "running",
    "gradient norm",
    "no further progress possible in this precision",
    "no finite value near the point",
    "maximum number of iterations",
)


@dataclass(frozen=True)
class History:
    """Every iteration, the start included; NaN for rows that had stopped before.

    Attributes:
        values: Shape ``(iterations + 1, starts)``.
        gradient_norms: Shape ``(iterations + 1, starts)``.
        evaluations: What had been spent, on all starts together.
    """

    values: Tensor = field(repr=False)
    gradient_norms: Tensor = field(repr=False)
    evaluations: tuple[Evaluations, ...] = field(repr=False)


@dataclass(frozen=True)
class Optimum:
    r"""The best point that was found, and how.

    Attributes:
        point: The best of the ends, shape ``(*point)``.
        value: The function there.
        gradient_norm: The length of the Riemannian gradient there, in the metric.
        converged: Whether the gradient norm there is below the tolerance.
        reason: Why the search from its start ended.
        iterations: How many there were from that start.
        points: The ends from all starts, shape ``(starts, *point)``.
        values: Shape ``(starts,)``.
        gradient_norms: Shape ``(starts,)``.
        reasons: One for each start.
        best: Which start led to ``point``.
        evaluations: What was spent on all starts together.
        history: Values and gradient norms of each iteration.
    """

    point: Tensor = field(repr=False)
    value: float
    gradient_norm: float
    converged: bool
    reason: str
    iterations: int
    points: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    gradient_norms: Tensor = field(repr=False)
    reasons: tuple[str, ...] = field(repr=False)
    best: int
    evaluations: Evaluations
    history: History = field(repr=False)

    def rates(self, start: int | None = None) -> tuple[Tensor, Tensor]:
        r"""How fast the gradient norm fell: ratios and observed orders of convergence.

        Args:
            start: Of which start; the best one if omitted.

        Returns:
            :math:`g_{k+1}/g_k` and :math:`\log(g_{k+1}/g_k) / \log(g_k/g_{k-1})`, both of shape
            ``(iterations,)``, the latter NaN at the first: about 1 where convergence is linear, 2
            where it is quadratic.
        """
        norms = self.history.gradient_norms[:, self.best if start is None else start]
        norms = norms[~torch.isnan(norms)].double()
        ratios = norms[1:] / norms[:-1]
        logs = ratios.log()
        orders = torch.full_like(ratios, torch.nan)
        orders[1:] = logs[1:] / logs[:-1]
        return ratios, orders

    def __str__(self) -> str:
        """The iterations from the best start, one a line, with the rates."""
        ratios, orders = (r.tolist() for r in self.rates())
        values = self.history.values[:, self.best].tolist()
        norms = self.history.gradient_norms[:, self.best].tolist()
        lines = [f"{'':>5}{'value':>24}{'gradient':>12}{'ratio':>10}{'order':>9}"]
        for k in range(self.iterations + 1):
            line = f"{k:5d}{values[k]:24.16g}{norms[k]:12.2e}"
            if k:
                line += f"{ratios[k - 1]:10.1e}"
            if k > 1:
                line += f"{orders[k - 1]:9.2f}"
            lines.append(line)
        e = self.evaluations
        lines.append(
            f"{self.reason}; {e.values} values, {e.gradients} gradients, "
            f"{e.hessian_products} Hessian products"
        )
        return "\n".join(lines)
