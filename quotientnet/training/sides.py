r"""The loss on both sides of a point, and the direction in which it differs the most.

The slope along ``v`` over a distance, :math:`s(v) = (f(w + tv) - f(w - tv)) / 2t`, has the
derivatives :math:`(\nabla f_+ + \nabla f_-) / 2` in ``v`` and
:math:`(\nabla f_+ - \nabla f_-) / 2t` in ``w``: two gradients of the loss give both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.manifolds.partition import Partition
from quotientnet.optimization import maximize
from quotientnet.training.neighbours import Neighbours

__all__ = ["Probe", "Sides", "sharpest"]


@dataclass(frozen=True)
class Sides:
    """What two gradients tell about a direction.

    Attributes:
        rise: The slope ``s(v)``, shape ``()``.
        difference: :math:`\nabla f_+ - \nabla f_-`, shape ``(n,)``.
        mean: :math:`(\nabla f_+ + \nabla f_-) / 2`, shape ``(n,)``; None where only the search
            needed it.
        along: The inner product of ``mean`` and ``v`` on each block, float64.
    """

    rise: Tensor
    difference: Tensor
    mean: Tensor | None
    along: Tensor


@dataclass(frozen=True)
class Probe:
    """Where to look for the loss on both sides of the parameters.

    Attributes:
        near: The parameters.
        blocks: Of directions.
        shift: How far to go, ``t``.
        plus: The closure of the one side.
        minus: That of the other.
    """

    near: Neighbours
    blocks: Partition
    shift: float
    plus: Callable
    minus: Callable

    def __call__(self, scale: Tensor, vector: Tensor) -> Sides:
        """Both sides along ``vector`` times one number a block.

        Args:
            scale: Shape ``(count,)``.
            vector: Shape ``(n,)``.
        """
        ahead, plus = self._at(self.shift * scale, vector, self.plus)
        behind, difference = self._at(-self.shift * scale, vector, self.minus)
        torch.sub(plus, difference, out=difference)
        mean = plus.sub_(difference, alpha=0.5)
        along = self.blocks.dot(mean, vector) * scale
        if self.plus is self.minus:
            rise = (ahead.double() - behind.double()) / (2 * self.shift)
        else:  # losses of different batches tell nothing of a slope
            rise = along.sum()
        return Sides(rise, difference, mean, along)

    def _at(self, step: Tensor, vector: Tensor, closure: Callable):
        return self.near.at(self._moved(step, vector), closure)

    def _moved(self, step: Tensor, vector: Tensor) -> Tensor:
        w = self.near.w
        return self.blocks.combine(None, w, step, vector, out=torch.empty_like(w))


def sharpest(
    probe: Probe, manifold: ProductOblique, start: Tensor, kept: Tensor, steps: int
) -> tuple[Tensor, Sides]:
    """The sharpest direction that a search finds, and both of its sides.

    Args:
        probe: The loss.
        manifold: The directions.
        start: Where to begin, shape ``(n,)``.
        kept: 0 for each block in which nothing is to be moved, else 1, shape ``(count,)``.
        steps: As many pairs of gradients may follow the first.

    Returns:
        The direction with the largest slope of those tried, which has 1 to ``steps`` + 1 pairs.
    """
    rise = _Rise(probe, kept, steps + 1)
    try:
        maximize(
            rise, manifold, start, method="power", batched=False, tolerance=0.0,
            max_iterations=steps,
        )  # fmt: skip
    except _Spent:
        pass
    return rise.best


class _Spent(Exception):
    """No more gradients are to be spent."""


class _Rise:
    """``s(v)`` as a differentiable function that keeps the best direction."""

    def __init__(self, probe: Probe, kept: Tensor, budget: int):
        self._probe, self._kept, self._left = probe, kept, budget
        self._every = bool(kept[: probe.blocks.passive].all())
        self.best = None

    def __call__(self, v: Tensor) -> Tensor:
        return _Known.apply(v, self)

    def at(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative."""
        if not self._left:
            raise _Spent
        self._left -= 1
        sides = self._probe(self._kept, v)
        if self.best is None or sides.rise > self.best[1].rise:
            self.best = v, replace(sides, mean=None)
        slope = sides.mean  # nobody else's
        if not self._every:
            slope = slope * self._probe.blocks.expand(self._kept).to(v)
        return sides.rise.to(v.dtype), slope


class _Known(torch.autograd.Function):
    """A value whose derivative is known."""

    @staticmethod
    def forward(ctx, v, rise):
        value, ctx.slope = rise.at(v.detach())
        return value.clone()  # autograd marks what it is given

    @staticmethod
    def backward(ctx, upward):
        return ctx.slope.mul_(upward), None  # it is asked for once
