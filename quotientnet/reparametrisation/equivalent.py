"""What the constructions of sharper models share: the way in, the way out, the verdict."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup, as_group
from quotientnet.objective import Objective, Point
from quotientnet.reparametrisation.directions import Blocks, blocks_of
from quotientnet.symmetry import transform

__all__ = ["start_at", "equivalent", "require"]


def start_at(objective, group, caller: str, **amount: float) -> tuple[Blocks, Point]:
    """What the group can scale, and the point of the model; a positive amount is checked."""
    layout = as_group(group, caller).layout
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{caller}: objective must be an Objective, got {type(objective).__name__}"
        )
    for name, value in amount.items():
        if not 0 < value < inf:
            raise ValueError(
                f"{caller}: {name} must be positive and finite, got {value}"
            )
    if layout != objective.layout:
        raise ValueError(
            f"{caller}: the group acts on {layout}, the objective is a function on "
            f"{objective.layout}; derive both from one model"
        )
    blocks = blocks_of(group, caller)
    return blocks, objective.at(layout.flatten(objective.model))


def equivalent(
    point: Point, group: ScalingGroup, t: Tensor, caller: str
) -> tuple[nn.Module, Point]:
    """The model moved by ``t``, and its own objective at its parameters, of the same value."""
    own = point.objective.of(transform(point.objective.model, group, t))
    moved = own.at(group.layout.flatten(own.model))
    before, after = float(point.value), float(moved.value)
    tolerance = 1e-6 if point.w.dtype == torch.float64 else 1e-3
    same = abs(after - before) <= tolerance * (1 + abs(before))
    require(same, f"a loss of {after:g}, not {before:g}", caller)
    return own.model, moved


def require(reached: bool, found: str, caller: str) -> None:
    """Refuse a result that the transformation law excludes."""
    if not reached:
        raise RuntimeError(
            f"{caller}: the equivalent model has {found}, which the transformation law excludes: "
            "the loss is not invariant to the group (see verify_sound), an eps in the model is too "
            "large at these scales (lower it, or pass what discover returned, which knows of it), "
            "or the dtype is too narrow"
        )
