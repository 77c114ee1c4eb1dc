"""Whether a loss is constant along the orbits of a group, as every invariant measure assumes."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.group import ScalingGroup

__all__ = ["moves_statistics", "require_flat_orbit", "require_invariant"]

_INVARIANCE = 0.02
"""The change along an orbit put down to a normalisation's ``eps``, relative to its terms."""

_REMEDY = (
    "Is the group the module's own, discovered in the mode that it is in? (In eval mode running "
    "statistics hold the scales of filters. Where a normalisation's eps is not small, the symmetry "
    "is approximate: take a smaller eps.)"
)


def require_flat_orbit(
    group: ScalingGroup, w: Tensor, gradient: Tensor, value: Tensor, caller: str
) -> None:
    """Refuse a loss whose slope along an orbit does not vanish.

    At a critical point every slope vanishes, whatever the group: :func:`require_invariant` sees
    more.

    Args:
        group: The group.
        w: The point, shape ``(size,)``.
        gradient: That of the loss, shape ``(size,)``.
        value: The loss.
        caller: Who says so.

    Raises:
        ValueError: The slope along a generator, named, is more than 2 % of what its terms add up
            to.
    """
    products = (w * gradient).to(torch.float64)
    slopes = group.adjoint(products).abs()
    bounds = group.magnitudes().adjoint(products.abs())
    floor = torch.finfo(w.dtype).eps ** 0.5 * float(abs(value))
    excess = slopes - (_INVARIANCE * bounds).clamp(min=floor)
    if len(excess) and excess.max() > 0:
        worst = int(excess.argmax())
        raise ValueError(
            f"{caller}: the loss is not invariant under the group: along generator "
            f"{group.names[worst]!r} its slope is {float(slopes[worst]):.1e}, "
            f"{float(slopes[worst] / bounds[worst]):.0%} of what its terms add up to. {_REMEDY}"
        )


def require_invariant(
    point,
    group: ScalingGroup,
    caller: str,
    *,
    spread: float = 0.5,
    generator: torch.Generator | None = None,
) -> None:
    """Refuse a group that the loss does not have.

    The loss must have no slope along the orbit, neither at the point nor at its image under one
    random element of the group, which is critical only if the point is and the group is the
    loss's; and its value there must be the same. Slopes along generators that move running
    statistics are not looked at: the gradient has no part there, so that a wrong exponent of a
    statistic is seen only if it changes the loss by 2 %.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: The group.
        caller: Who says so.
        spread: Standard deviation of the random element's coordinates.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Raises:
        ValueError: A group of another layout; or a slope, or a change of the loss, of more than
            2 %, which is more than the ``eps`` of a normalisation explains.

    Note:
        Two gradients, of which the point keeps one.
    """
    if point.layout != group.layout:
        raise ValueError(
            f"{caller}: the point has another layout than the group; build both from the same "
            "module"
        )
    if not group.dimension:
        return
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    t = group.random(spread=spread, generator=generator, device=point.w.device)
    y = group.act(point.w, t)
    value, gradient = point.objective.value_and_gradient(y)
    eps = torch.finfo(point.w.dtype).eps
    size = float(abs(point.value))
    gap = float(abs(value - point.value))
    if not gap <= _INVARIANCE * size + 1e3 * eps:
        raise ValueError(
            f"{caller}: the loss is not invariant under the group: at a random equivalent point "
            f"it is {float(value):.6g} instead of {float(point.value):.6g}. {_REMEDY}"
        )
    still = group.without(moves_statistics(group))
    require_flat_orbit(still, point.w, point.gradient, point.value, caller)
    require_flat_orbit(still, y, gradient, value, caller)


def moves_statistics(group: ScalingGroup):
    """The generators that scale running statistics, a boolean array of shape ``(dimension,)``."""
    passive = torch.zeros(group.layout.size, dtype=torch.float64)
    passive[group.layout.parameter_size :] = 1.0
    return (group.magnitudes().adjoint(passive) > 0).numpy()
