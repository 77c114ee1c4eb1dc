"""The loss along exact geodesics of a quotient: at worst, and on average."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.curvature.draws import Mean
from quotientnet.estimate import Estimate
from quotientnet.point import require_point
from quotientnet.sharpness.arguments import checked_loss, checked_radius
from quotientnet.sharpness.neighbourhood import Ascent, Neighbourhood
from quotientnet.sharpness.riemannian import group_of, require_quotient

__all__ = ["riemannian_sharpness", "average_riemannian_sharpness"]


def riemannian_sharpness(
    point,
    manifold,
    epsilon: float,
    *,
    restarts: int = 4,
    generator: torch.Generator | None = None,
    **options,
) -> Ascent:
    r"""The ε-sharpness of Definition 2 of [Dinh2017]_ with the metric of a quotient:

    .. math:: \max_{\|\xi\|_w \leq \epsilon} \frac{f(\exp_w \xi) - f(w)}{1 + f(w)},
              \qquad \xi \text{ horizontal}

    along exact geodesics. Found by ascents from the gradient's direction and from random ones,
    so that ``value`` is attained and a higher one may exist; the same random numbers give the same
    ascents at equivalent points.

    Invariant to the manifold's group.

    Args:
        point: A :class:`~quotientnet.Point` with a loss above −1.
        manifold: A quotient with geodesics in closed form.
        epsilon: The radius in the metric, which has no unit: 0.1 is a tenth of a weight's norm.
        restarts: Random starts.
        generator: Their source; a fresh one with seed 0 if omitted.
        options: Passed to :func:`~quotientnet.optimization.maximize`.

    Returns:
        The ascent, without a unit.

    Raises:
        TypeError: ``manifold`` is no quotient.
        NotImplementedError: Its geodesics have no closed form.
        ValueError: A radius that is not positive and finite; a loss of −1 or below; a loss that is
            NaN or infinite at a neighbour.
    """
    caller = "riemannian_sharpness"
    epsilon = checked_radius(epsilon, caller)
    near, horizontal, base = _along_geodesics(caller, point, manifold)
    ascent = near.worst_in_ball(
        epsilon, restarts=restarts, generator=generator, project=horizontal, **options
    )
    return ascent.over(base, group_of(manifold))


def average_riemannian_sharpness(
    point,
    manifold,
    epsilon: float,
    *,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The mean of :math:`(f(\exp_w \xi) - f(w))/(1 + f(w))` over horizontal ``ξ`` of length ε.

    Uniform on the sphere :math:`\|\xi\|_w = \epsilon`, by pairs ``±ξ``, in which the slope cancels.
    To second order it is :math:`\epsilon^2 / (2 \dim)` times the Riemannian trace over
    :math:`1 + f`. Invariant to the manifold's group.

    Args:
        point: A :class:`~quotientnet.Point` with a loss above −1.
        manifold: A quotient with geodesics in closed form.
        epsilon: The length in the metric.
        samples: Pairs of directions, at least 2.
        generator: Source of directions; a fresh one with seed 0 if omitted.

    Returns:
        The mean, without a unit, and one standard error.

    Raises:
        TypeError: ``manifold`` is no quotient.
        NotImplementedError: Its geodesics have no closed form.
        ValueError: Fewer than 2 samples, and as for :func:`riemannian_sharpness`.
    """
    caller = "average_riemannian_sharpness"
    if samples < 2:
        raise ValueError(f"{caller}: samples must be at least 2, got {samples}")
    epsilon = checked_radius(epsilon, caller)
    near, horizontal, base = _along_geodesics(caller, point, manifold)
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    draws = []
    for _ in range(samples):
        z = horizontal(near.draw(generator))
        z = z * (epsilon / z.norm())
        draws.append(float(near.rise(z) + near.rise(-z)) / (2 * base))
    mean = Mean(0.0, draws)
    return Estimate(mean.value, mean.error, True, 2 * samples, group_of(manifold))


def _along_geodesics(caller: str, point, manifold):
    """The neighbourhood in frame coordinates, their horizontal projection, and ``1 + f``."""
    require_point(point, caller)
    require_quotient(manifold, caller)
    operator = manifold.riemannian_hessian(
        point
    )  # refuses what does not belong together
    inverse_frame = 1 / manifold.frame(point.w)

    def chart(z: Tensor) -> Tensor:
        return manifold.expmap(point.w, manifold.proju(point.w, z * inverse_frame))

    near = Neighbourhood(caller, point, chart, len(point.w))
    return near, operator.project, 1 + checked_loss(point, caller)
