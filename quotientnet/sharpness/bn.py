"""BN-sharpness: the integral of the loss's change along the sharpest direction (yi2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from quotientnet.estimate import Estimate
from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.optimization import maximize
from quotientnet.sharpness.euclidean import checked_radius, translations
from quotientnet.sharpness.quadrature import power_rule

__all__ = ["bn_sharpness", "bn_sharpness_limit", "integral_diameter", "BNSharpness"]


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
    _check(p, delta, nodes)
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
    that ``value`` is attained and a higher one may exist.

    Invariant to the scales of normalised filters, and to nothing else: the rest has a norm of its
    own.

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
        the difference that twice the nodes make.

    Raises:
        ValueError: ``p`` below 1 or infinite, ``δ`` not positive and finite; a loss that is NaN or
            infinite at a neighbour.

    Note:
        ``2 nodes`` gradients a step.
    """
    value = integral_diameter(point, p, delta, nodes=nodes)
    manifold = ProductOblique.at(point.w, group)
    starts = [*_along_gradient(point, manifold)]
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    w = point.w
    starts += [
        manifold.random(dtype=w.dtype, device=w.device, generator=generator)
        for _ in range(restarts)
    ]
    with torch.no_grad():
        scale = max(float(value(v)) for v in starts)
    if scale == 0:
        return BNSharpness(
            0.0,
            0.0,
            True,
            0,
            _invariant_to(point),
            direction=starts[0],
            reason="flat",
            values=(),
        )
    found = maximize(
        lambda v: value(v) / scale, manifold, torch.stack(starts), batched=False,
        method=method, **{"tolerance": 1e-5, "max_iterations": 100} | options,
    )  # fmt: skip
    with torch.no_grad():
        best = float(value(found.point))
        finer = integral_diameter(point, p, delta, nodes=2 * nodes)(found.point)
    return BNSharpness(
        best,
        abs(best - float(finer)) + scale * float(found.gradient_norm),
        found.converged,
        2 * nodes * (found.evaluations.values + found.evaluations.gradients),
        _invariant_to(point),
        direction=found.point,
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
    _check(p, 1.0, 1)
    manifold = ProductOblique.at(point.w, group)
    factor = (2 / (p + 1)) ** (1 / p)
    steepest = next(_along_gradient(point, manifold), point.gradient)
    value = factor * float(steepest @ point.gradient)
    return Estimate(value, 0.0, True, 1, _invariant_to(point))


def _invariant_to(point) -> tuple[str, ...]:
    return ("filter scales", *translations(point))


def _along_gradient(point, manifold):
    """The direction of steepest ascent, if there is a slope: where a block has none, along the
    block itself."""
    gradient = point.gradient
    if gradient.any():
        squares = manifold.blocks.expand(manifold.blocks.dot(gradient, gradient))
        yield manifold.projx(torch.where(squares > 0, gradient, point.w))


def _check(p: float, delta: float, nodes: int) -> None:
    if not 1 <= p < inf:
        raise ValueError(f"bn_sharpness: p must be at least 1 and finite, got {p}")
    checked_radius(delta, "bn_sharpness", "delta")
    if nodes < 1:
        raise ValueError(f"bn_sharpness: nodes must be at least 1, got {nodes}")
