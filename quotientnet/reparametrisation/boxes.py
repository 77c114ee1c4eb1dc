"""Disjoint boxes of one loss whose volumes add up without limit: dinh2017 Theorem 2."""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, inf, log

import torch
from torch import Tensor

from quotientnet.group import ScalingGroup, as_group
from quotientnet.options import require_number
from quotientnet.reparametrisation.exact_part import exact_part
from quotientnet.reparametrisation.scales import coordinates_of
from quotientnet.symmetry import Symmetry, layer_scale_group

__all__ = ["disjoint_boxes", "Box", "DisjointBoxes"]


@dataclass(frozen=True)
class Box:
    """An axis-parallel box of parameter space.

    Attributes:
        centre: Shape ``(size,)``; ``layout.unflatten`` gives it by tensor.
        half_widths: Shape ``(size,)``; 0 on running statistics, which are not parameters.
        log_volume: The logarithm of the volume, over the parameters.
    """

    centre: Tensor
    half_widths: Tensor
    log_volume: float

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Points drawn uniformly from the box, shape ``(count, size)``.

        Args:
            count: The number of points.
            generator: Source of randomness; torch's global one if omitted.
        """
        shape = (count, len(self.centre))
        options = {"dtype": self.centre.dtype, "device": self.centre.device}
        unit = 2 * torch.rand(shape, generator=generator, **options) - 1
        return self.centre + unit * self.half_widths

    def contains(self, w: Tensor) -> Tensor:
        """Whether points, shape ``(..., size)``, are in the closed box; shape ``(...)``."""
        return ((w - self.centre).abs() <= self.half_widths).all(-1)


@dataclass(frozen=True)
class DisjointBoxes:
    r"""The boxes :math:`T^k(B_\infty(r', \theta))`, ``k = 0, 1, 2, …``, images of one.

    Attributes:
        group: The group, whose coordinates ``t`` has.
        centre: ``θ``, shape ``(size,)``.
        radius: ``r'``.
        t: The element ``T``, shape ``(dimension,)``.
        alpha: The factor by which ``T`` multiplies the coordinate that keeps the boxes apart.
        tensor: The parameter that has this coordinate.
        log_growth: The logarithm of the volume of a box over that of the one before, 0 or more.
    """

    group: ScalingGroup
    centre: Tensor
    radius: float
    t: Tensor
    alpha: float
    tensor: str
    log_growth: float

    def box(self, k: int) -> Box:
        """The ``k``-th box.

        Raises:
            ValueError: ``k`` is negative or no integer; its bounds leave the range of the dtype.
        """
        if k != int(k) or k < 0:
            raise ValueError(f"DisjointBoxes.box: k must be 0, 1, 2, …, got {k}")
        scales = self.group.exponents(k * self.t).to(self.centre).exp()
        ones = torch.ones_like(self.centre)
        ones[self.group.layout.parameter_size :] = 0.0
        centre, half_widths = scales * self.centre, self.radius * scales * ones
        lost = ~torch.isfinite(centre + half_widths) | ((half_widths == 0) & (ones > 0))
        if lost.any():
            raise ValueError(
                f"DisjointBoxes.box: box {k} leaves the range of {self.centre.dtype}; volumes and "
                "disjointness are known for every k, bounds only for smaller ones"
            )
        return Box(centre, half_widths, self._first() + k * self.log_growth)

    def log_volume(self, count: int) -> float:
        """The logarithm of the volume of the first ``count`` boxes together.

        A lower bound of the volume ε-flatness (Definition 1 of [Dinh2017]_) wherever the loss stays
        within ε on the first box; it grows without limit.
        """
        if count < 1:
            raise ValueError(
                f"DisjointBoxes.log_volume: count must be 1 or more, got {count}"
            )
        g = self.log_growth
        if g == 0:
            return self._first() + log(count)
        # The geometric series, from its largest term down.
        below = log(-expm1(-g * count)) - log(-expm1(-g))
        return self._first() + g * (count - 1) + below

    def are_disjoint(self, j: int, k: int) -> bool:
        """Whether boxes ``j`` and ``k`` have no point in common, exactly, for any numbers.

        Boxes meet unless their intervals are apart on some coordinate. Those on one coordinate are
        multiples of each other, so that the answer depends on logarithms alone.
        """
        size = self.centre.abs().double().cpu()
        size = size[: self.group.layout.parameter_size]
        steps = (j - k) * self.group.exponents(self.t)[: len(size)]
        gap = torch.log((size + self.radius) / (size - self.radius).clamp(min=0.0))
        return bool((steps.abs() > gap).any())

    def _first(self) -> float:
        return self.group.layout.parameter_size * log(2 * self.radius)


def disjoint_boxes(
    w: Tensor,
    group: ScalingGroup | Symmetry,
    radius: float,
    *,
    direction: Tensor | None = None,
) -> DisjointBoxes:
    r"""Infinitely many disjoint boxes, none smaller than the first, on which the loss is the same.

    Theorem 2 of [Dinh2017]_: where the loss stays within ε of ``f(w)`` on the cube of half width
    ``radius``, it does so on all boxes and on a connected region that contains them, whose volume
    is therefore infinite. As there :math:`r' = \min(r, \tfrac{1}{2} \|\theta_1\|_\infty)` and
    :math:`\alpha = 2 (\|\theta_1\|_\infty + r') / (\|\theta_1\|_\infty - r')`, where ``θ₁`` is
    what grows; with one hidden layer that is the layer with more weights (the paper's
    :math:`n_1 \geq n_2`, otherwise ``1/α`` and ``θ₂``).

    Args:
        w: The point, shape ``(size,)``.
        group: Any scaling group, or what :func:`~quotientnet.discover` returned, which also knows
            where the ``eps`` of a normalisation makes scales approximate: the default direction
            then leaves them out.
        radius: ``r``, positive.
        direction: Group coordinates, of any length, along which the boxes lie; by default the one
            of the layer-scale group along which volumes grow fastest (of the whole group where no
            element scales whole tensors).

    Raises:
        TypeError: ``radius`` is no number, ``w`` no tensor.
        ValueError: A point of another shape, or so large that its double is no number; a radius
            that is not positive and finite; a group without generators; a direction along which
            volumes fall, or along which no nonzero parameter grows.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import disjoint_boxes
        >>> layout = qn.ParameterLayout({"first": (3, 2), "second": (1, 3)})
        >>> unit = qn.Unit("layer", 1, (qn.Scale("first", None), qn.Scale("second", None, -1)))
        >>> group = qn.ScalingGroup.from_units(layout, [unit])
        >>> boxes = disjoint_boxes(torch.ones(9), group, 0.5)
        >>> round(boxes.alpha, 6), round(boxes.log_growth / torch.tensor(6.0).log().item(), 6)
        (6.0, 3.0)
        >>> boxes.are_disjoint(0, 1), boxes.are_disjoint(7, 7), boxes.log_volume(10**6) > 1e6
        (True, False, True)
    """
    part, group = exact_part(group, "disjoint_boxes"), as_group(group, "disjoint_boxes")
    group.layout.check(w, "disjoint_boxes")
    require_number(radius, "disjoint_boxes", "radius", least=-inf, most=inf)
    if w.ndim != 1 or not torch.isfinite(w).all() or not 0 < radius < inf:
        raise ValueError(
            "disjoint_boxes: needs one finite point and a positive, finite radius, got shape "
            f"{tuple(w.shape)} and radius {radius}"
        )
    t = _fastest(group, part) if direction is None else direction.double().cpu()
    count = group.layout.parameter_size
    exponents = group.exponents(t)[:count]
    size = torch.where(exponents > 0, w.detach()[:count].abs().cpu().double(), 0.0)
    if exponents.sum() < -1e-9 * exponents.abs().sum() or not size.any():
        raise ValueError(
            "disjoint_boxes: along this direction volumes fall, or no nonzero parameter grows; "
            "pass the opposite direction"
        )
    place = int(size.argmax())
    largest = float(size[place])
    if 2 * largest == inf:
        raise ValueError(
            f"disjoint_boxes: w is as large as {largest:.1e}, and the next box lies beyond all "
            "numbers; choose a smaller equivalent point, such as canonical(w, group)"
        )
    inner = min(radius, largest / 2)
    alpha = 2 * (largest + inner) / (largest - inner)
    t = t * (log(alpha) / exponents[place])
    growth = max(float(group.exponents(t)[:count].sum()), 0.0)
    mask = torch.arange(group.layout.size) == place
    (tensor,) = group.layout.count(mask)
    return DisjointBoxes(group, w.detach().clone(), inner, t, alpha, tensor, growth)


def _fastest(group: ScalingGroup, part: ScalingGroup) -> Tensor:
    """The direction of layer scales of a part along which the volume grows fastest."""
    if part.dimension == 0:
        raise ValueError(
            "disjoint_boxes: the group has no generators, so the model has no other equivalent "
            "point"
        )
    coarse = layer_scale_group(part)
    coarse = coarse if coarse.dimension else part
    ones = torch.zeros(group.layout.size, dtype=torch.float64)
    ones[: group.layout.parameter_size] = 1.0
    rate = coarse.adjoint(ones)
    if not rate.any():
        rate[0] = 1.0  # equal numbers on both sides: the boxes have equal volumes
    return coordinates_of(group, coarse.exponents(rate))
