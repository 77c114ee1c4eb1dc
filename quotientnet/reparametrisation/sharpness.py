"""An equivalent model next to a constant one: dinh2017 §4.3."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log

import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup
from quotientnet.objective import Objective, Point
from quotientnet.reparametrisation.directions import Blocks, blocks_of
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
        neighbour: A point of the ball, where one tensor is zero; shape ``(size,)``.
        loss: The loss at ``point``.
        neighbour_loss: The loss at ``neighbour``.
        sharpness: ``(neighbour_loss − loss)/(1 + loss)``: a lower bound of the ε-sharpness.
        tensor: The tensor that is zero in ``neighbour``.
    """

    model: nn.Module
    t: Tensor
    point: Point
    radius: float
    neighbour: Tensor
    loss: float
    neighbour_loss: float
    sharpness: float
    tensor: str


def exceed_sharpness(
    objective: Objective, group: ScalingGroup | Symmetry, radius: float
) -> SharpNeighbour:
    """An equivalent model from which a step of length ``radius`` sets a whole tensor to zero.

    §4.3 of [Dinh2017]_, where ``T_α`` brings the norm of a weight down to ε. Without one of its
    weights a network without shortcuts is constant, so its ε-sharpness is at least that of the best
    constant. Of all tensors that the group can shrink, the one is taken without which the loss is
    largest. A ball of this radius lies in the box of Keskar et al., so that the same point bounds
    their full-space sharpness.

    Args:
        objective: The loss, not negative; its model is taken as it is.
        group: A group of its model, or what :func:`~quotientnet.discover` returned.
        radius: ε, positive.

    Raises:
        ValueError: A radius that is not positive and finite; a group of another layout or without
            generators; no tensor whose removal raises the loss; scales that leave the range of
            the dtype.
        RuntimeError: The loss changes: it is not invariant to the group.

    Note: one evaluation of the loss a tensor.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import exceed_sharpness
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> x = torch.randn(9, 2).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, model(x).detach()))
        >>> sharp = exceed_sharpness(objective, qn.discover(model, x), 1e-3)
        >>> bool((sharp.neighbour - sharp.point.w).norm() <= 1e-3), sharp.sharpness > 0
        (True, True)
    """
    caller = "exceed_sharpness"
    group, w = start_at(objective, group, caller, radius=radius)
    blocks, loss = blocks_of(group, caller), float(objective.at(w).value)
    losses = _losses_without(objective, w, blocks)
    name = max(losses, key=losses.get, default=None)
    if name is None or losses[name] <= loss:
        raise ValueError(
            f"{caller}: setting a tensor to zero that the group can shrink never raises the loss "
            f"({loss:g}); is the model trained?"
        )
    place = group.layout[name].slice
    shrink = min(log(radius) - log(float(w[place].norm())) - 1e-6, 0.0)
    row = blocks.rows[blocks.index[place.start]]
    t = blocks.lift(shrink * row / (row @ row))
    model, moved = equivalent(objective, group, t)
    neighbour = _without(moved.w, place)
    reached, there = _loss(objective, neighbour), float(moved.value)
    same = abs(there - loss) <= 1e-4 * (1 + abs(loss)) and reached > there
    distance = float((neighbour - moved.w).norm())
    found = f"losses of {there:g} and, at distance {distance:g}, {reached:g}"
    require(same and distance <= radius, found, caller)
    sharpness = (reached - there) / (1 + there)
    return SharpNeighbour(
        model, t, moved, radius, neighbour, there, reached, sharpness, name
    )


def _losses_without(
    objective: Objective, w: Tensor, blocks: Blocks
) -> dict[str, float]:
    """The loss without each tensor that is one block, moves and is not zero."""
    losses = {}
    for entry in objective.layout.entries:
        numbers = blocks.index[entry.slice]
        whole = (
            len(numbers) > 0
            and not entry.passive
            and bool((numbers == numbers[0]).all())
        )
        if not whole or not blocks.rows[numbers[0]].any() or not w[entry.slice].any():
            continue
        value = _loss(objective, _without(w, entry.slice))
        if isfinite(value):
            losses[entry.name] = value
    return losses


def _without(w: Tensor, place: slice) -> Tensor:
    """``w`` with zeros at some coordinates."""
    result = w.clone()
    result[place] = 0.0
    return result


@torch.no_grad()
def _loss(objective: Objective, w: Tensor) -> float:
    return float(objective(w))
