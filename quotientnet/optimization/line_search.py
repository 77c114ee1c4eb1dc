r"""How far to go along a curve: sufficient decrease, and slopes where values are all rounding.

With :math:`\varphi(t) = f(R_x(t d))`, a step is accepted by Armijo's condition
:math:`\varphi(t) \le \varphi(0) + c_1 t \varphi'(0)`, and by the strong Wolfe conditions if also
:math:`|\varphi'(t)| \le c_2 |\varphi'(0)|` ((3.7) of [NocedalWright2006]_). Close to an optimum the
decrease drowns in the rounding of :math:`\varphi`, at a distance of the square root of the
precision. There :math:`\varphi'(t) \le (2 \delta - 1) \varphi'(0)`, the same condition for a
quadratic, takes its place ((4.1) of [HagerZhang2005]_).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.optimization.problem import Problem, Trial
from quotientnet.optimization.rows import Iterate, Rows

__all__ = ["LineSearch", "Found"]

_TRIALS = 40
_DECREASE = 1e-4  # c_1
_APPROXIMATE = 0.1  # δ


@dataclass(frozen=True)
class Found(Rows):
    """The end of a line search.

    Attributes:
        step: The accepted step; 0 where there is none.
        finite: Whether any trial that moved had a finite value.
    """

    step: Tensor
    finite: Tensor


@dataclass(frozen=True)
class _Bracket(Rows):
    """An interval with an acceptable step: the slope is negative at ``low``; at ``high`` it is
    positive, or the value is too large, or not finite."""

    low: Tensor
    low_value: Tensor
    low_slope: Tensor
    high: Tensor
    high_value: Tensor
    high_slope: Tensor


class LineSearch:
    """Bracketing and interpolation, all rows at once.

    Args:
        curvature: ``c_2`` of the strong Wolfe conditions, or None for Armijo's alone.
    """

    def __init__(self, curvature: float | None):
        self.curvature = curvature

    def __call__(
        self,
        problem: Problem,
        start: Iterate,
        direction: Tensor,
        slope: Tensor,
        step: Tensor,
    ) -> tuple[Iterate, Found]:
        """Search from ``start`` along descent directions, with ``step`` as the first trial.

        Returns:
            The new iterates, unchanged where nothing was found, and the steps.
        """
        zero, far = torch.zeros_like(step), torch.full_like(step, torch.inf)
        unknown = torch.full_like(step, torch.nan)
        bracket = _Bracket(zero, start.value, slope, far, unknown, unknown)
        best, found = start, Found(zero, torch.zeros_like(step, dtype=torch.bool))
        rows = torch.arange(len(step), device=step.device)
        for count in range(_TRIALS):
            here, first, t = start.take(rows), slope[rows], step[rows]
            trial = problem.trial(here.point, direction[rows], t)
            good, accepted = self._judge(here, first, t, trial)
            better = good & (
                accepted | (found.step[rows] == 0) | (trial.value < best.value[rows])
            )
            kept = rows[better]
            best = best.put(kept, trial.after(here).take(better))
            result = Found(
                torch.where(better, t, found.step[rows]),
                found.finite[rows] | _finite(trial) & _moved(here, trial),
            )
            found = found.put(rows, result)
            outer = bracket.take(rows)
            inner = _narrowed(outer, here, first, t, trial)
            bracket = bracket.put(rows, inner)
            step = step.index_put((rows,), _next_step(outer, inner, count))
            wide = inner.high - inner.low > torch.finfo(step.dtype).eps * inner.high
            rows = rows[~accepted & (wide | torch.isinf(inner.high))]
            if not len(rows):
                break
        return best, found

    def _judge(
        self, start: Iterate, slope: Tensor, step: Tensor, trial: Trial
    ) -> tuple[Tensor, Tensor]:
        """Which trials decrease the function enough, and which of them end the search."""
        decrease = trial.value <= start.value + _DECREASE * step * slope
        # Where values cannot show a change, equal ones pass by luck: ask the slope alone.
        decrease &= -step * slope > start.noise
        level = trial.value <= start.value + start.noise
        level &= trial.slope <= (2 * _APPROXIMATE - 1) * slope
        good = _finite(trial) & _moved(start, trial) & (decrease | level)
        if self.curvature is None:
            return good, good
        return good, good & (trial.slope.abs() <= self.curvature * slope.abs())


def _moved(start: Iterate, trial: Trial) -> Tensor:
    return (trial.point != start.point).flatten(1).any(1)


def _finite(trial: Trial) -> Tensor:
    return torch.isfinite(trial.value + trial.norm + trial.slope)


def _narrowed(
    bracket: _Bracket, start: Iterate, slope: Tensor, step: Tensor, trial: Trial
) -> _Bracket:
    """The part of the bracket on this or the other side of the trial."""
    decreased = start.value + _DECREASE * step * slope
    bound = torch.maximum(decreased, start.value + start.noise)
    low = _finite(trial) & (trial.value <= bound) & (trial.slope < 0)
    new = (step, trial.value, trial.slope)
    nearer = _Bracket(*new, bracket.high, bracket.high_value, bracket.high_slope)
    farther = _Bracket(bracket.low, bracket.low_value, bracket.low_slope, *new)
    return nearer.where(low, farther)


def _next_step(outer: _Bracket, inner: _Bracket, count: int) -> Tensor:
    """The next trial: inside the bracket, or farther out while it has no end."""
    low, slope = inner.low, inner.low_slope
    gained = (slope - outer.low_slope) / (low - outer.low)
    farther = torch.where(gained > 0, low - slope / gained, torch.inf)
    farther = torch.minimum(torch.maximum(farther, 1.5 * low), 10 * low)
    between = low + _share(inner, count) * (inner.high - low)
    return torch.where(torch.isinf(inner.high), farther, between)


def _share(bracket: _Bracket, count: int) -> Tensor:
    """Where in the bracket to look: by slopes where both are known, else by values."""
    slope, width = bracket.low_slope, bracket.high - bracket.low
    secant = slope / (slope - bracket.high_slope)
    excess = bracket.high_value - bracket.low_value - slope * width
    parabola = -slope * width / (2 * excess)
    share = torch.where(bracket.high_slope > 0, secant, parabola)
    share = torch.where(torch.isfinite(share), share.clamp(0.02, 0.9), 0.2)
    # Interpolation can shrink a bracket from one side only; every third trial halves it.
    return torch.full_like(share, 0.5) if count % 3 == 2 else share
