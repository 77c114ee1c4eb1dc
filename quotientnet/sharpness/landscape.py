"""The loss along geodesics: lines and planes through a point, in directions of equal layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.manifolds.base import QuotientManifold
from quotientnet.point import require_point

__all__ = ["Line", "Plane", "layer_normalised_direction", "loss_along", "loss_over"]


@dataclass(frozen=True)
class Line:
    """The loss along a curve.

    Attributes:
        steps: Multiples of the direction, shape ``(s,)``.
        losses: The loss at each, shape ``(s,)``; NaN or infinite where it is.
    """

    steps: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)


@dataclass(frozen=True)
class Plane:
    """The loss over two directions.

    Attributes:
        first: Multiples of the first direction, shape ``(a,)``.
        second: Multiples of the second, shape ``(b,)``.
        losses: The loss at each pair, shape ``(a, b)``.
    """

    first: Tensor = field(repr=False)
    second: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)


def layer_normalised_direction(
    w: Tensor, manifold: QuotientManifold, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""A random direction in which every tensor moves by its own size, as in Figure 2 of
    [Rangamani2019]_.

    .. math:: \xi_l = \frac{\|w_l\|}{\|v_l\|} v_l, \qquad v \sim N(0, I)

    in the layer-scale metric. In any other, each tensor's part has norm 1 in that metric. The
    horizontal part is returned: along an orbit the loss does not change.

    Args:
        w: A point of the manifold, shape ``(n,)``.
        manifold: The quotient, whose metric measures the tensors.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        A horizontal vector, shape ``(n,)``. In distribution it is the same at every equivalent
        point: the same random numbers give the image of the same direction, for log-polar
        quotients on tensors.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
        >>> manifold = qn.LayerScaleQuotient(qn.discover(model, torch.randn(5, 4).double()))
        >>> w = manifold.layout.flatten(model)
        >>> xi = qn.sharpness.layer_normalised_direction(w, manifold)
        >>> bool(manifold.norm(w, xi) <= 2)  # four tensors of norm 1, less the vertical part
        True
    """
    _require_manifold(manifold, "layer_normalised_direction")
    manifold.layout.check(w, "layer_normalised_direction")
    if w.ndim != 1:
        raise ValueError(
            f"layer_normalised_direction: needs one point, got shape {tuple(w.shape)}"
        )
    generator = generator or torch.Generator(w.device).manual_seed(0)
    frame, layout = manifold.frame(w), manifold.layout
    noise = normal(*w.shape, like=w, generator=generator)
    pieces = [
        torch.zeros_like(piece) if entry.passive else _unit(piece)
        for entry, piece in zip(layout.entries, layout.split(noise))
    ]
    return manifold.proju(w, torch.cat(pieces) / frame)


def loss_along(
    point,
    manifold: QuotientManifold,
    direction: Tensor,
    steps: Tensor,
    *,
    straight=False,
) -> Line:
    """The loss along the geodesic ``exp_w(t ξ)``.

    Args:
        point: A :class:`~quotientnet.Point`.
        manifold: The quotient.
        direction: A tangent vector ``ξ``, shape ``(n,)``.
        steps: The ``t``, shape ``(s,)``.
        straight: Whether to go along ``w + t ξ`` instead, as [Rangamani2019]_ does.

    Returns:
        The losses. Those along a geodesic do not depend on the representative; the same direction
        at an equivalent point gives the same line.

    Raises:
        ValueError: Another shape.
        TypeError: ``manifold`` is no quotient.
        NotImplementedError: The manifold has no geodesics in closed form; use ``straight=True``.

    Note:
        ``s`` forward passes.
    """
    _require_manifold(manifold, "loss_along")
    _require_directions(point, "loss_along", direction=direction)
    steps = _as_steps(steps, point.w, "loss_along", "steps")
    losses = [_at(point, manifold, t * direction, straight) for t in steps]
    return Line(steps, torch.stack(losses))


def loss_over(
    point,
    manifold: QuotientManifold,
    first: Tensor,
    second: Tensor,
    steps: Tensor,
    *,
    straight=False,
) -> Plane:
    """The loss on ``exp_w(s ξ + t η)``.

    Args:
        point: A :class:`~quotientnet.Point`.
        manifold: The quotient.
        first: A tangent vector ``ξ``, shape ``(n,)``.
        second: Another, ``η``.
        steps: The values of ``s`` and of ``t``, shape ``(a,)``.
        straight: Whether to go along straight lines instead.

    Returns:
        The losses at all pairs.

    Raises:
        ValueError: Another shape.
        TypeError: ``manifold`` is no quotient.

    Note:
        ``a²`` forward passes.
    """
    _require_manifold(manifold, "loss_over")
    _require_directions(point, "loss_over", first=first, second=second)
    steps = _as_steps(steps, point.w, "loss_over", "steps")
    rows = [
        torch.stack(
            [_at(point, manifold, s * first + t * second, straight) for t in steps]
        )
        for s in steps
    ]
    return Plane(steps, steps, torch.stack(rows))


@torch.no_grad()
def _at(point, manifold, xi: Tensor, straight: bool) -> Tensor:
    y = point.w + xi if straight else manifold.expmap(point.w, xi)
    return point.objective(y)


def _unit(piece: Tensor) -> Tensor:
    norm = piece.norm()
    return piece / norm if norm else piece


def _require_manifold(manifold, caller: str) -> None:
    if not isinstance(manifold, QuotientManifold):
        raise TypeError(
            f"{caller}: manifold must be a QuotientManifold, such as LayerScaleQuotient(symmetry), "
            f"got {type(manifold).__name__}"
        )


def _require_directions(point, caller: str, **directions) -> None:
    require_point(point, caller)
    for name, xi in directions.items():
        if isinstance(xi, Tensor) and xi.shape == point.w.shape:
            point.layout.check(xi, caller, name)
        else:
            got = tuple(xi.shape) if isinstance(xi, Tensor) else type(xi).__name__
            raise ValueError(
                f"{caller}: {name} must be a tangent vector of shape {tuple(point.w.shape)}, got "
                f"{got}; layer_normalised_direction(point.w, manifold) makes one"
            )


def _as_steps(steps, w: Tensor, caller: str, name: str) -> Tensor:
    steps = torch.as_tensor(steps, dtype=w.dtype, device=w.device)
    if steps.ndim != 1 or not len(steps) or not torch.isfinite(steps).all():
        raise ValueError(
            f"{caller}: {name} must be a list of finite numbers, got shape {tuple(steps.shape)}"
        )
    return steps
