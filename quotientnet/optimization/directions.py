r"""Where to go next: steepest descent, and nonlinear conjugate gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, column

__all__ = ["Direction", "Steepest", "Conjugate"]


class Direction(ABC):
    """The next direction and first trial step, from the last ones."""

    @abstractmethod
    def following(
        self,
        problem: Problem,
        old: Iterate,
        new: Iterate,
        direction: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The direction at ``new``, reached from ``old`` by ``step`` along ``direction``.

        Returns:
            The direction, shape ``(rows, *point)``, and the first step to try along it.
        """


class Steepest(Direction):
    """The negative gradient, with the step of Barzilai and Borwein."""

    def following(
        self,
        problem: Problem,
        old: Iterate,
        new: Iterate,
        direction: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``-gradient``, and ``⟨s, s⟩ / |⟨s, y⟩|`` for the displacement and gradient change."""
        velocity = column(step, direction) * direction
        x, carry = new.point, problem.path.transport
        s = carry(old.point, velocity, x, velocity)
        change = new.gradient - carry(old.point, velocity, x, old.gradient)
        length = problem.inner(x, s, s)
        return -new.gradient, length / problem.inner(x, s, change).abs()


class Conjugate(Direction):
    r"""The directions of [HagerZhang2005]_, of descent whatever the line search.

    :math:`\beta = \langle y - 2 d \|y\|^2 / \langle d, y\rangle, g\rangle / \langle d, y\rangle`,
    with the last direction and gradient transported, and 0 where it is negative.
    """

    def following(
        self,
        problem: Problem,
        old: Iterate,
        new: Iterate,
        direction: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``-gradient + β direction``, and a step by the ratio of the slopes."""
        velocity = column(step, direction) * direction
        carry = problem.path.transport
        d = carry(old.point, velocity, new.point, direction)
        y = new.gradient - carry(old.point, velocity, new.point, old.gradient)

        def inner(u, v):
            return problem.inner(new.point, u, v)

        pairing, g = inner(d, y), new.gradient
        beta = (inner(y, g) - 2 * inner(y, y) * inner(d, g) / pairing) / pairing
        beta = beta.clamp(min=0)
        beta = torch.where(torch.isfinite(beta) & (pairing > 0), beta, 0)
        following = -g + column(beta, d) * d
        before = problem.inner(old.point, direction, old.gradient)
        return following, step * before / inner(following, g)
