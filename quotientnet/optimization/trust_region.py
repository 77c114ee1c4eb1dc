"""Riemannian trust regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.optimization.method import Method, Step
from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, Rows
from quotientnet.optimization.second_order import exact, require_second_derivative
from quotientnet.optimization.truncated_cg import truncated_cg

__all__ = ["TrustRegion"]

_KAPPA = 0.1
_ACCEPTED = 0.1


@dataclass(frozen=True)
class _Memory(Rows):
    """The radius, the first gradient norm, which sets the unit of the forcing, and whether a trial
    since the last step had a finite value."""

    radius: Tensor
    first: Tensor
    finite: Tensor


class TrustRegion(Method):
    r"""Newton steps inside a ball whose radius follows the model's success (Algorithm 10 of
    [Absil2008]_).

    The inner iteration stops at the relative residual :math:`\min(0.1, \|g\| / \|g_0\|)`, so that
    convergence is quadratic where the Hessian is positive definite.

    Args:
        hessian: One of :data:`~quotientnet.optimization.second_order.HESSIANS`.
    """

    def __init__(self, hessian: Callable):
        self.hessian = hessian

    def begin(self, problem: Problem, start: Iterate) -> _Memory:
        """A radius of unit length."""
        if self.hessian is exact:
            require_second_derivative(problem, start)
        no = torch.zeros_like(start.norm, dtype=torch.bool)
        return _Memory(torch.ones_like(start.norm), start.norm, no)

    def step(self, problem: Problem, here: Iterate, memory: _Memory) -> Step:
        """One model, and the step to its minimum, taken where the function agrees."""
        radius, x = memory.radius, here.point
        forcing = (here.norm / memory.first).clamp(max=_KAPPA)
        model = truncated_cg(
            problem, here, self.hessian(problem, here), radius, forcing
        )
        trial = problem.trial(x, model.step, torch.ones_like(radius))
        linear = problem.inner(x, here.gradient, model.step)
        quadratic = problem.inner(x, model.step, model.product)
        rounding = 100 * here.noise
        gain = here.value - trial.value + rounding
        ratio = gain / (rounding - linear - 0.5 * quadratic)
        finite = torch.isfinite(trial.value + trial.norm)
        ratio = torch.where(finite, ratio, -torch.inf)
        # Where values are all rounding, the gradient must not grow either.
        level = (trial.value - here.value).abs() <= here.noise
        accepted = (ratio > _ACCEPTED) & ~(level & (trial.norm > 2 * here.norm))
        good = accepted & (ratio > 0.75) & model.boundary
        length = problem.norm(x, model.step)
        radius = torch.where(good, 2 * radius, radius)
        radius = torch.where(accepted & (ratio >= 0.25), radius, 0.25 * length)
        there = trial.after(here).where(accepted, here)
        still = (trial.point == x).flatten(1).all(1)
        seen = finite & ~still | memory.finite & ~accepted
        return Step(there, _Memory(radius, memory.first, seen), still, seen)
