"""Descent: a direction and a line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.optimization.directions import Direction
from quotientnet.optimization.line_search import LineSearch
from quotientnet.optimization.method import Method, Step
from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, Rows, column

__all__ = ["Descent"]


@dataclass(frozen=True)
class _Memory(Rows):
    """The next direction, the first step along it, and whether it is the steepest."""

    direction: Tensor
    step: Tensor
    steepest: Tensor


class Descent(Method):
    """Steepest descent or conjugate gradients.

    Args:
        direction: Where to go next.
        search: How far.
    """

    def __init__(self, direction: Direction, search: LineSearch):
        self.direction, self.search = direction, search

    def begin(self, problem: Problem, start: Iterate) -> _Memory:
        """The steepest direction, and a step of unit length."""
        yes = torch.ones_like(start.norm, dtype=torch.bool)
        return _Memory(-start.gradient, 1 / start.norm, yes)

    def step(self, problem: Problem, here: Iterate, memory: _Memory) -> Step:
        """One line search; after a failure the next one is along the steepest direction."""
        d = memory.direction
        slope = problem.inner(here.point, d, here.gradient)
        length = problem.norm(here.point, d)
        descends = slope < -1e-8 * length * here.norm
        d = torch.where(column(descends, d), d, -here.gradient)
        slope = torch.where(descends, slope, -here.norm.square())
        steepest = memory.steepest | ~descends
        first = memory.step
        usable = descends & torch.isfinite(first) & (first > 0)
        first = torch.where(usable, first, 1 / here.norm)
        there, found = self.search(problem, here, d, slope, first)
        moved = found.step > 0
        following, step = self.direction.following(problem, here, there, d, found.step)
        following = torch.where(column(moved, d), following, -here.gradient)
        step = torch.where(moved, step, 1 / here.norm)
        memory = _Memory(following, step, ~moved)
        return Step(there, memory, ~moved & steepest, found.finite)
