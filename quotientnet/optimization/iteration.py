"""The loop around every method: which rows go on, which stop, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quotientnet.optimization.method import Method, Step
from quotientnet.optimization.optimum import REASONS, History, Optimum
from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate

__all__ = ["iterate"]

_PATIENCE = 50
"""Iterations without a smaller value or gradient after which rounding is to blame."""

_RUNNING, _GRADIENT, _PRECISION, _NOT_FINITE, _ITERATIONS = range(len(REASONS))


class _Progress:
    """The best iterate of each row, and how long ago it was found."""

    def __init__(self, start: Iterate):
        self.best, self.norm = start, start.norm
        self.waited = torch.zeros_like(start.norm)

    def update(self, rows: Tensor, there: Iterate) -> Tensor:
        """Take notice of new iterates; where none has been better for a long time."""
        best = self.best.take(rows)
        level = there.value <= best.value + there.noise
        lower = there.value < best.value - there.noise
        better = lower | level & (there.norm < best.norm)
        # A gradient that falls slowly is progress: count from its last fall by a tenth.
        clearly = lower | level & (there.norm < 0.9 * self.norm[rows])
        self.best = self.best.put(rows[better], there.take(better))
        self.norm = self.norm.index_put((rows[clearly],), there.norm[clearly])
        waited = torch.where(clearly, 0, self.waited[rows] + 1)
        self.waited = self.waited.index_put((rows,), waited)
        return waited >= _PATIENCE


def iterate(
    problem: Problem,
    method: Method,
    start: Iterate,
    tolerance: float,
    max_iterations: int,
    callback: Callable | None,
) -> Optimum:
    """Run a method from all rows until each has stopped."""
    here, progress = start, _Progress(start)
    reasons = torch.where(start.norm <= tolerance, _GRADIENT, _RUNNING)
    memory = method.begin(problem, start)
    record = [(start.value, start.norm, problem.evaluations)]
    for count in range(1, max_iterations + 1):
        rows = torch.nonzero(reasons == _RUNNING)[:, 0]
        if not len(rows):
            break
        step = method.step(problem, here.take(rows), memory.take(rows))
        there = step.there
        here, memory = here.put(rows, there), memory.put(rows, step.memory)
        stale = progress.update(rows, there)
        reasons = reasons.index_put((rows,), _reason(step, stale, tolerance))
        values = torch.full_like(start.value, torch.nan)
        norms = torch.full_like(start.norm, torch.nan)
        values[rows], norms[rows] = there.value, there.norm
        record.append((values, norms, problem.evaluations))
        if callback is not None:
            callback(count, here.point, problem.sign * here.value, here.norm)
    reasons = torch.where(reasons == _RUNNING, _ITERATIONS, reasons)
    # A row that converged ends where it is, others at the best point on their way.
    ends = here.where(reasons == _GRADIENT, progress.best)
    return _optimum(problem, ends, reasons, record, tolerance)


def _reason(step: Step, stale: Tensor, tolerance: float) -> Tensor:
    """Why each row stops, or that it goes on."""
    why = torch.where(step.stuck | stale, _PRECISION, _RUNNING)
    why = torch.where(step.stuck & ~step.finite, _NOT_FINITE, why)
    return torch.where(step.there.norm <= tolerance, _GRADIENT, why)


def _best(ends: Iterate) -> int:
    """The smallest value; of several within rounding, the one with the smallest gradient."""
    level = ends.value <= (ends.value + ends.noise).min()
    return int(torch.where(level, ends.norm, torch.inf).argmin())


def _optimum(problem, ends: Iterate, reasons: Tensor, record, tolerance) -> Optimum:
    values, norms, evaluations = zip(*record)
    history = History(
        problem.sign * torch.stack(values), torch.stack(norms), tuple(evaluations)
    )
    best = _best(ends)
    names = tuple(REASONS[code] for code in reasons.tolist())
    return Optimum(
        point=ends.point[best],
        value=float(problem.sign * ends.value[best]),
        gradient_norm=float(ends.norm[best]),
        converged=bool(ends.norm[best] <= tolerance),
        reason=names[best],
        iterations=int((~torch.isnan(history.gradient_norms[:, best])).sum()) - 1,
        points=ends.point,
        values=problem.sign * ends.value,
        gradient_norms=ends.norm,
        reasons=names,
        best=best,
        evaluations=problem.evaluations,
        history=history,
    )
