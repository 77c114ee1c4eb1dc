"""The worst loss in a box, and how large a box the loss allows."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from numbers import Integral

import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.estimate import Estimate
from quotientnet.options import require_count, require_number
from quotientnet.point import require_point
from quotientnet.reparametrisation import DisjointBoxes, disjoint_boxes
from quotientnet.sharpness.arguments import checked_loss, checked_radius
from quotientnet.sharpness.neighbourhood import Ascent, Neighbourhood

__all__ = ["box_sharpness", "volume_flatness", "VolumeFlatness"]


def box_sharpness(
    point,
    epsilon: float,
    subspace: int | Tensor | None = None,
    *,
    restarts: int = 4,
    generator: torch.Generator | None = None,
    **options,
) -> Ascent:
    r"""The sharpness of [Keskar2017]_, Metric 2.1, in per cent:

    .. math:: 100 \, \max_z \frac{f(w + A z) - f(w)}{1 + f(w)}, \qquad
              |z_i| \leq \epsilon \left(|(A^+ w)_i| + 1\right)

    with :math:`A = I` in the full space. Found by ascents from the gradient's direction and from
    random ones, so that ``value`` is attained and a higher one may exist. Invariant to nothing.

    Args:
        point: A :class:`~quotientnet.Point` with a loss above −1.
        epsilon: The relative half width; the paper takes 1e-3 and 5e-4.
        subspace: The columns of a random ``A``, normal entries, each column of length 1 (100 in the
            paper); or ``A`` itself, shape ``(parameters, columns)``. Full space if omitted.
        restarts: Random starts.
        generator: Their source, and that of ``A``; a fresh one with seed 0 if omitted.
        options: Passed to :func:`~quotientnet.optimization.maximize`.

    Returns:
        The ascent, in per cent.

    Raises:
        ValueError: A half width that is not positive and finite; a subspace of another shape; a
            loss of −1 or below; a loss that is NaN or infinite at a neighbour.
    """
    caller = "box_sharpness"
    require_point(point, caller)
    epsilon = checked_radius(epsilon, caller)
    base = 1 + checked_loss(point, caller)
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    count = point.layout.parameter_size
    own = point.w[:count]
    if subspace is None:
        centre, columns = own, None
    else:
        columns = _columns(caller, point, subspace, generator)
        # The default driver on CPUs is not repeatable to the bit.
        driver = "gelsd" if own.device.type == "cpu" else "gels"
        solved = torch.linalg.lstsq(columns, own[:, None], driver=driver)
        centre = solved.solution[:, 0]

    def chart(z: Tensor) -> Tensor:
        step = z if columns is None else columns @ z
        return torch.cat([own + step, point.w[count:]])

    near = Neighbourhood(caller, point, chart, len(centre))
    half_widths = epsilon * (centre.abs() + 1)
    ascent = near.worst_in_box(
        half_widths, restarts=restarts, generator=generator, **options
    )
    return ascent.over(base / 100, ())


def _columns(caller: str, point, subspace, generator: torch.Generator) -> Tensor:
    count, w = point.layout.parameter_size, point.w
    if not isinstance(subspace, (Tensor, Integral)):
        raise TypeError(
            f"{caller}: subspace must be a number of columns or a tensor, got "
            f"{type(subspace).__name__}"
        )
    if isinstance(subspace, Tensor):
        if subspace.ndim != 2 or len(subspace) != count or not subspace.shape[1]:
            raise ValueError(
                f"{caller}: subspace must have shape ({count}, columns), one row a parameter, got "
                f"{tuple(subspace.shape)}"
            )
        return subspace.to(w)
    if not 1 <= subspace <= count:
        raise ValueError(
            f"{caller}: subspace must have 1 to {count} columns, got {subspace}"
        )
    drawn = normal(count, subspace, like=w, generator=generator)
    return drawn / drawn.norm(dim=0)


@dataclass(frozen=True, kw_only=True)
class VolumeFlatness(Estimate):
    """A lower bound of the logarithm of the volume of a set of nearly constant loss.

    Attributes:
        boxes: The disjoint boxes whose volumes are added.
        radius: The half width of the cube around the point in which no rise above ε was found.
    """

    boxes: DisjointBoxes
    radius: float


def volume_flatness(
    point,
    group,
    epsilon: float,
    *,
    boxes: int = 1,
    tolerance: float = 0.05,
    restarts: int = 2,
    generator: torch.Generator | None = None,
    **options,
) -> VolumeFlatness:
    r"""The volume ε-flatness (Definition 1 of [Dinh2017]_) from below, as a logarithm.

    A cube around the point in which the loss rises by less than ε, and its images under the group,
    disjoint as in Theorem 2: the more of them, the larger the bound, without limit. That is why the
    volume measures nothing. The cube is found by ascents, which can miss a rise.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: The scaling group, or what :func:`~quotientnet.discover` returned.
        epsilon: The rise of the loss that is allowed.
        boxes: How many images to count.
        tolerance: The relative accuracy of the cube's half width, at least 1e-6.
        restarts: Random starts of each ascent.
        generator: Their source; a fresh one with seed 0 if omitted.
        options: Passed to :func:`~quotientnet.optimization.maximize`.

    Returns:
        The logarithm of the volume, in units of the parameters; its ``error`` is what the accuracy
        of the half width makes of it. Not invariant.

    Raises:
        ValueError: A rise or tolerance that is not positive; fewer than 1 box; a loss that never
            rises so much; what
            :func:`~quotientnet.reparametrisation.disjoint_boxes` refuses.
    """
    caller = "volume_flatness"
    require_point(point, caller)
    epsilon = checked_radius(epsilon, caller)
    require_number(tolerance, caller, "tolerance", least=1e-6)
    require_count(boxes, caller, "boxes")
    disjoint_boxes(point.w, group, 1.0)  # refuses what has no boxes at all
    options |= {"restarts": restarts, "generator": generator}
    radius, cost = _cube(caller, point, epsilon, tolerance, options)
    found = disjoint_boxes(point.w, group, radius)
    error = point.layout.parameter_size * tolerance
    return VolumeFlatness(
        found.log_volume(boxes), error, True, cost, (), boxes=found, radius=radius
    )


def _cube(caller: str, point, epsilon: float, tolerance: float, options):
    """The half width of the largest cube in which no rise above epsilon was found, and the cost.

    Raises:
        ValueError: There is none, as the loss never rises so much.
    """
    count = point.layout.parameter_size
    own, passive = point.w[:count], point.w[count:]
    near = Neighbourhood(caller, point, lambda z: torch.cat([own + z, passive]), count)
    cost, size = 0, float(point.w.abs().max())

    def allowed(radius: float) -> bool:
        nonlocal cost
        found = near.worst_in_box(own.new_full((count,), radius), **options)
        cost += found.cost
        return found.value < epsilon

    start = _guess(point, epsilon, size)
    radius = _largest(allowed, start, tolerance, 1e6 * size)
    if radius is None:
        raise ValueError(
            f"{caller}: no rise of epsilon={epsilon:g} was found in cubes up to a million times "
            "the size of the weights, so that no volume bounds it; use a smaller epsilon"
        )
    return radius, cost


def _guess(point, epsilon: float, size: float) -> float:
    """The half width that the slope alone would allow."""
    slope = float(point.gradient.abs().sum())
    return min(epsilon / slope, size) if slope > 0 else size


def _largest(allowed, start: float, tolerance: float, most: float) -> float | None:
    """The largest allowed radius, doubled or halved and then bisected in the logarithm; None if it
    is more than ``most``."""
    low, high = start, start
    if allowed(start):
        while allowed(high := 2 * high):
            low = high
            if high > most:
                return None
    else:
        while not allowed(low := low / 2):
            high = low
    while high > (1 + tolerance) * low:
        middle = exp((log(low) + log(high)) / 2)
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
