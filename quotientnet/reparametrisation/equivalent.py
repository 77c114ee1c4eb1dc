"""What the constructions of sharper models share: the way in, the way out, the verdict."""

from __future__ import annotations

import copy
from math import inf

from torch import Tensor, nn

from quotientnet.group import ScalingGroup, as_group
from quotientnet.objective import Objective, Point
from quotientnet.symmetry import transform

__all__ = ["start_at", "equivalent", "require"]


def start_at(
    objective, group, caller: str, **amount: float
) -> tuple[ScalingGroup, Tensor]:
    """The group and the point of the model, and a positive amount, checked."""
    group = as_group(group, caller)
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{caller}: objective must be an Objective, got {type(objective).__name__}"
        )
    for name, value in amount.items():
        if not 0 < value < inf:
            raise ValueError(
                f"{caller}: {name} must be positive and finite, got {value}"
            )
    if group.layout != objective.layout:
        raise ValueError(
            f"{caller}: the group acts on {group.layout}, the objective is a function on "
            f"{objective.layout}; derive both from one model"
        )
    return group, objective.layout.flatten(objective.model)


def equivalent(
    objective: Objective, group: ScalingGroup, t: Tensor
) -> tuple[nn.Module, Point]:
    """The model moved by ``t``, and its own objective at its parameters."""
    own = copy.copy(objective)
    own.model = transform(objective.model, group, t)
    return own.model, own.at(group.layout.flatten(own.model))


def require(reached: bool, found: str, caller: str) -> None:
    """Refuse a result that the transformation law excludes."""
    if not reached:
        raise RuntimeError(
            f"{caller}: the equivalent model has {found}, which the transformation law excludes: "
            "the loss is not invariant to the group (see verify_sound), an eps in the model is too "
            "large at these scales, or its dtype too narrow"
        )
