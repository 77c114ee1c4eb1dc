"""An equivalent model next to a constant one: dinh2017 §4.3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup
from quotientnet.objective import Objective, Point
from quotientnet.reparametrisation.directions import Blocks, shrinking_direction
from quotientnet.reparametrisation.equivalent import equivalent, require, start_at
from quotientnet.symmetry import Symmetry

__all__ = ["exceed_sharpness", "SharpNeighbour"]


@dataclass(frozen=True)
class SharpNeighbour:
    """An equivalent model from which a ball of given radius reaches a far worse model.

    Attributes:
        model: The equivalent model, a copy.
        t: The element that leads to it.
        point: The objective at its parameters.
        radius: Of the ball.
        neighbour: A point of the ball, where some tensors are zero; shape ``(size,)``.
        loss: The loss at ``point``.
        neighbour_loss: The loss at ``neighbour``.
        sharpness: ``(neighbour_loss − loss)/(1 + loss)``: a lower bound of the ε-sharpness.
        tensors: Those with coordinates that are zero in ``neighbour``.
    """

    model: nn.Module
    t: Tensor
    point: Point
    radius: float
    neighbour: Tensor
    loss: float
    neighbour_loss: float
    sharpness: float
    tensors: tuple[str, ...]


def exceed_sharpness(
    objective: Objective, group: ScalingGroup | Symmetry, radius: float
) -> SharpNeighbour:
    """An equivalent model from which a step of length ``radius`` removes a whole tensor.

    §4.3 of [Dinh2017]_, where ``T_α`` brings the norm of a weight down to ε. Without one of its
    weights a network without shortcuts is constant, so its ε-sharpness is at least that of the best
    constant. Of all tensors that the group can shrink, and of all coordinates that shrink together
    along one direction, those are taken without which the loss is largest. A ball of this radius
    lies in the box of Keskar et al., so that the same point bounds their full-space sharpness.

    Args:
        objective: The loss, not negative; its model is taken as it is.
        group: As for :func:`~quotientnet.reparametrisation.exceed_spectral_norm`.
        radius: ε, positive.

    Raises:
        ValueError: A radius that is not positive and finite; a group of another layout or without
            generators; nothing that can shrink and whose removal raises the loss; scales that leave
            the range of the dtype.
        RuntimeError: The loss changes: it is not invariant to the group.

    Note: one evaluation of the loss a tensor, and an integer program.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import exceed_sharpness
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> x = torch.randn(9, 2).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, model(x).detach()))
        >>> sharp = exceed_sharpness(objective, qn.discover(model, x), 1e-3)
        >>> bool((sharp.neighbour - sharp.point.w).norm() <= 1e-3), sharp.sharpness > 0
        (True, True)
    """
    caller = "exceed_sharpness"
    blocks, point = start_at(objective, group, caller, radius=radius)
    w, loss, best = point.w, float(point.value), None
    for mask, direction in _candidates(w, blocks):
        value = _loss(objective, w.masked_fill(mask, 0.0))
        if value > (loss if best is None else best[0]):  # not so where it is NaN
            best = (value, mask, direction)
    if best is None:
        raise ValueError(
            f"{caller}: setting to zero what the group can shrink never raises the loss "
            f"({loss:g}); is the model trained?"
        )
    _, mask, direction = best
    # A little shorter than the radius, against rounding.
    shrink = max(log(float(w[mask].norm())) - log(radius) + 1e-6, 0.0)
    t = direction * shrink
    model, moved = equivalent(point, blocks.parent, t, caller)
    neighbour = moved.w.masked_fill(mask, 0.0)
    reached, there = _loss(moved.objective, neighbour), float(moved.value)
    distance = float((neighbour - moved.w).norm())
    found = f"losses of {there:g} and, at distance {distance:g}, {reached:g}"
    require(reached > there and distance <= radius, found, caller)
    sharpness = (reached - there) / (1 + there)
    tensors = tuple(point.layout.count(mask))
    return SharpNeighbour(
        model, t, moved, radius, neighbour, there, reached, sharpness, tensors
    )


def _candidates(w: Tensor, blocks: Blocks) -> Iterator[tuple[Tensor, Tensor]]:
    """Coordinates, and the element of the group that shrinks them by a factor of e.

    Each tensor by itself, and all that can shrink together.
    """
    for entry in blocks.group.layout.entries:
        numbers = blocks.index[entry.slice].unique()
        if len(numbers) != 1 or numbers[0] < 0:
            continue
        row = blocks.rows[numbers[0]]
        if row.any() and w[entry.slice].any():
            mask = torch.zeros_like(w, dtype=torch.bool)
            mask[entry.slice] = True
            yield mask, blocks.lift(-row / (row @ row))
    direction, shrunk = shrinking_direction(blocks)
    mask = blocks.coordinates(shrunk).to(w.device)
    if w[mask].any():
        yield mask, blocks.lift(direction)


@torch.no_grad()
def _loss(objective: Objective, w: Tensor) -> float:
    return float(objective(w))
