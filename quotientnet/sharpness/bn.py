"""BN-sharpness: the integral of the loss's change along the sharpest direction (yi2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.estimate import Estimate
from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.optimization import maximize
from quotientnet.options import require_count
from quotientnet.point import require_point
from quotientnet.sharpness.arguments import (
    checked_power,
    checked_radius,
    checked_restarts,
    translations,
)
from quotientnet.sharpness.quadrature import power_rule
from quotientnet.symmetry.normalised import normalised_blocks

__all__ = ["bn_sharpness", "bn_sharpness_limit", "integral_diameter", "BNSharpness"]

_MOST = 1000.0
"""The largest exponent for which there are rules of quadrature."""


@dataclass(frozen=True, kw_only=True)
class BNSharpness(Estimate):
    """A BN-sharpness, its direction, and how the ascent went.

    Attributes:
        direction: The sharpest direction found, shape ``(size,)``.
        reason: Why the ascent stopped.
        values: The value at the end of the ascent from each start, the gradient's first.
    """

    direction: Tensor
    reason: str
    values: tuple[float, ...]


def integral_diameter(
    point, p: float = 2.0, delta: float = 1e-3, *, nodes: int = 3
) -> Callable[[Tensor], Tensor]:
    r"""The function of a direction whose supremum is the BN-sharpness (Eq. (5) of [Yi2019]_):

    .. math:: v \mapsto \left(\frac{1}{\delta} \int_{-\delta}^{\delta}
              \left|\frac{f(w + t v) - f(w)}{\delta}\right|^p dt\right)^{1/p}

    Args:
        point: A :class:`~quotientnet.Point`.
        p: At least 1.
        delta: ``δ``, positive.
        nodes: Of the quadrature on each side of zero. The weight :math:`|t|^p` is taken out, so
            that few will do where the loss is smooth along the line.

    Returns:
        A function from ``v``, shape ``(size,)``, to a scalar, once differentiable; it costs two
        gradients a node, and raises ``ValueError`` where the loss is NaN or infinite.

    Raises:
        ValueError: ``p`` below 1 or infinite, ``δ`` not positive and finite, no nodes.
    """
    require_point(point, "integral_diameter")
    _check(p, delta, nodes, "integral_diameter")
    point.require_modes()
    s, weights = (
        torch.as_tensor(each, dtype=point.w.dtype, device=point.w.device)
        for each in power_rule(p, nodes)
    )
    weights = weights ** (1 / p)

    def value(v: Tensor) -> Tensor:
        rises = [
            point.objective.streamed(point.w + t * v) - point.value for t in s * delta
        ]
        slopes = torch.stack(rises) / (s * delta)
        if not torch.isfinite(slopes).all():
            raise ValueError(
                f"bn_sharpness: the loss is NaN or infinite at a neighbour within delta={delta}, "
                "where the integral is not defined; use a smaller one"
            )
        return torch.linalg.vector_norm(weights * slopes, ord=p)

    return value


def bn_sharpness(
    point,
    group,
    p: float = 2.0,
    delta: float = 1e-3,
    *,
    nodes: int = 3,
    restarts: int = 2,
    generator: torch.Generator | None = None,
    method: str = "power",
    **options,
) -> BNSharpness:
    r"""The :math:`\delta`-:math:`L^p` BN-sharpness (Definition 3.1 of [Yi2019]_):

    .. math:: \sup_v \left(\frac{1}{\delta} \int_{-\delta}^{\delta}
              \left|\frac{f(w + t v) - f(w)}{\delta}\right|^p dt\right)^{1/p}

    over directions ``v`` with :math:`\|v_i\| = \|w_i\|` for each filter that is normalised and norm
    1 for all the rest together: a :class:`~quotientnet.ProductOblique` manifold. Found by ascents
    from the gradient's direction, which is the answer for small ``δ``, and from random ones, so
    that ``value`` is attained and a higher one may exist. They run on spheres of radius 1, and are
    the same at all scales of the filters.

    Invariant to the scales of normalised filters, and to shifts of the outputs where the loss is;
    not to other scales, as the rest has a norm of its own.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: The scaling group, or what :func:`~quotientnet.discover` returned. Filters count
            that have a scale of their own.
        p: At least 1.
        delta: ``δ``, positive, relative to the filters.
        nodes: Of the quadrature, see :func:`integral_diameter`.
        restarts: Random starts beside the gradient's direction.
        generator: Their source; a fresh one with seed 0 if omitted.
        method: Of :func:`~quotientnet.optimization.maximize`.
        options: Passed on to it.

    Returns:
        The sharpness in units of loss; its ``error`` is the slope left at the end, per radian, and
        the difference that twice the nodes make, plus the rounding of differences of the loss over
        ``δ``.

    Raises:
        ValueError: ``p`` below 1 or infinite, ``δ`` not positive and finite; a loss that is NaN or
            infinite at a neighbour.

    Note:
        ``2 nodes`` gradients a step.
    """
    require_point(point, "bn_sharpness")
    _check(p, delta, nodes, "bn_sharpness")
    value = integral_diameter(point, p, delta, nodes=nodes)
    radii, spheres = _directions(point, group)
    w = point.w
    generator = generator or torch.Generator(w.device).manual_seed(0)
    slopes = point.gradient * radii
    starts = [spheres.steepest(slopes)] * bool(slopes.any()) + [
        spheres.random(dtype=w.dtype, device=w.device, generator=generator)
        for _ in range(checked_restarts(restarts, "bn_sharpness"))
    ]
    with torch.no_grad():
        scale = max((float(value(radii * u)) for u in starts), default=0.0)
    if scale == 0:
        return BNSharpness(
            0.0, 0.0, bool(starts), len(starts), _invariant_to(point),
            direction=radii * spheres.origin(dtype=w.dtype).to(w), reason="flat", values=(),
        )  # fmt: skip
    found = maximize(
        lambda u: value(radii * u) / scale, spheres, torch.stack(starts), batched=False,
        method=method, **{"tolerance": 1e-5, "max_iterations": 100} | options,
    )  # fmt: skip
    direction = radii * found.point
    with torch.no_grad():
        best = float(value(direction))
        finer = integral_diameter(point, p, delta, nodes=2 * nodes)(direction)
    differences = 4 * torch.finfo(w.dtype).eps * abs(float(point.value)) / delta
    rounding = 2 ** (1 / p) * differences
    return BNSharpness(
        best,
        abs(best - float(finer)) + scale * float(found.gradient_norm) + rounding,
        found.converged,
        2 * nodes * (found.evaluations.values + found.evaluations.gradients),
        _invariant_to(point),
        direction=direction,
        reason=found.reason,
        values=tuple(scale * float(each) for each in found.values),
    )


def bn_sharpness_limit(point, group, p: float = 2.0) -> Estimate:
    r"""The limit of the BN-sharpness as :math:`\delta \to 0`, exactly:

    .. math:: \left(\frac{2}{p+1}\right)^{1/p}
              \left(\sum_i \|w_i\| \|g_i\| + \|g_{\text{rest}}\|\right)

    with ``g`` the gradient; from Eq. (6) of [Yi2019]_. Invariant to the scales of normalised
    filters.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: As for :func:`bn_sharpness`.
        p: At least 1.

    Returns:
        The limit in units of loss.

    Raises:
        ValueError: ``p`` below 1 or infinite.
    """
    caller = "bn_sharpness_limit"
    require_point(point, caller)
    _check(p, 1.0, 1, caller)
    radii, spheres = _directions(point, group)
    slopes = radii * point.gradient
    value = (2 / (p + 1)) ** (1 / p) * float(spheres.steepest(slopes) @ slopes)
    return Estimate(value, 0.0, True, 1, _invariant_to(point))


def _invariant_to(point) -> tuple[str, ...]:
    return ("filter scales", *translations(point))


def _directions(point, group) -> tuple[Tensor, ProductOblique]:
    """Directions as ``radii * u`` with ``u`` on spheres of radius 1, the same at all scales of the
    filters."""
    manifold = ProductOblique.at(point.w, group)
    blocks, ones = normalised_blocks(group).index, torch.ones_like(manifold.radii)
    spheres = ProductOblique(manifold.layout, ones, blocks)
    ends = manifold.origin(dtype=torch.float64), spheres.origin(dtype=torch.float64)
    ratio = torch.where(ends[1] != 0, ends[0] / ends[1], 0.0)
    return ratio.to(point.w), spheres


def _check(p: float, delta: float, nodes: int, caller: str) -> None:
    checked_power(p, caller)
    checked_radius(delta, caller, "delta")
    require_count(nodes, caller, "nodes")
    if p > _MOST:
        raise ValueError(f"{caller}: p must be at most {_MOST:g}, got {p}: |t|^p is no number")
