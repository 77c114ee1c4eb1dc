"""The worst loss in a ball, Euclidean or scaled by the size of each weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quotientnet.losses import output_invariances
from quotientnet.options import require_number
from quotientnet.point import require_point
from quotientnet.sharpness.arguments import (
    checked_loss,
    checked_radius,
    parameter_names,
    translations,
)
from quotientnet.sharpness.neighbourhood import Ascent, Neighbourhood

__all__ = ["ball_sharpness", "adaptive_sharpness"]


def ball_sharpness(
    point,
    epsilon: float,
    *,
    layers: bool = False,
    restarts: int = 4,
    generator: torch.Generator | None = None,
    **options,
) -> Ascent:
    r"""The ε-sharpness of Definition 2 of [Dinh2017]_, Eq. (1) of [Yi2019]_:

    .. math:: \max_{\|\delta\| \leq \epsilon} \frac{f(w + \delta) - f(w)}{1 + f(w)}

    Found by ascents from the gradient's direction and from random ones, so that ``value`` is
    attained and a higher one may exist. Invariant to no scaling.

    Args:
        point: A :class:`~quotientnet.Point` with a loss above −1.
        epsilon: The radius, in units of the parameters.
        layers: Whether to find the same with only one tensor perturbed, too, for every tensor.
        restarts: Random starts.
        generator: Their source; a fresh one with seed 0 if omitted.
        options: Passed to :func:`~quotientnet.optimization.maximize`.

    Returns:
        The ascent, without a unit.

    Raises:
        ValueError: A radius that is not positive and finite; a loss of −1 or below; a loss that is
            NaN or infinite at a neighbour.

    Note:
        Tens of gradients a start.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), data)
        >>> point = objective.at(torch.tensor([3.0, 4.0]).double())  # f = |w|²/2
        >>> found = qn.sharpness.ball_sharpness(point, 1.0)
        >>> round(found.value, 9), round((6**2 - 5**2) / 2 / (1 + 5**2 / 2), 9)
        (0.407407407, 0.407407407)
    """
    caller = "ball_sharpness"
    require_point(point, caller)
    ball = _Ball(
        caller,
        point,
        torch.ones_like(point.w),
        checked_radius(epsilon, caller),
        generator,
    )
    found = ball.worst(layers, restarts=restarts, **options)
    return found.over(1 + checked_loss(point, caller), translations(point))


def adaptive_sharpness(
    point,
    rho: float,
    eta: float = 0.0,
    *,
    layers: bool = False,
    restarts: int = 4,
    generator: torch.Generator | None = None,
    **options,
) -> Ascent:
    r"""The adaptive sharpness of ASAM (Eq. (4) of [Kwon2021]_, elementwise):

    .. math:: \max_{\|T_w^{-1} \delta\| \leq \rho} f(w + \delta) - f(w), \qquad
              T_w = \operatorname{diag}(|w| + \eta)

    Invariant to every scaling group if ``eta`` is 0, as it is by default: weights that are zero
    then rest. Training with ASAM uses ``eta = 0.01``, which is not invariant.

    Args:
        point: A :class:`~quotientnet.Point`.
        rho: The radius, relative to the size of each weight.
        eta: Added to the size of each weight, in its units; 0 or more.
        layers: As in :func:`ball_sharpness`.
        restarts: Random starts.
        generator: Their source; a fresh one with seed 0 if omitted.
        options: Passed to :func:`~quotientnet.optimization.maximize`.

    Returns:
        The ascent, in units of loss.

    Raises:
        ValueError: A radius that is not positive and finite; a negative ``eta``; a loss that is NaN
            or infinite at a neighbour.
    """
    caller = "adaptive_sharpness"
    require_point(point, caller)
    rho = checked_radius(rho, caller, "rho")
    eta = require_number(eta, caller, "eta")
    ball = _Ball(caller, point, point.w.abs() + eta, rho, generator)
    found = ball.worst(layers, restarts=restarts, **options)
    ignored = output_invariances(point.objective.loss)
    claims = "layer scales", "unit scales", "filter scales"
    claims += ("output scale",) if "output scale" in ignored else ()
    return found.over(1.0, () if eta else claims)


@dataclass(frozen=True)
class _Ball:
    """The steps ``δ`` with ``‖δ/scales‖ ≤ radius``; those with a scale of 0 rest."""

    caller: str
    point: object
    scales: Tensor
    radius: float
    generator: torch.Generator | None

    def worst(self, layers: bool, **options) -> Ascent:
        """The largest rise, and that in the ball of every tensor alone if wanted."""
        names = parameter_names(self.point)
        whole = self._within(names, **options)
        if not layers:
            return whole
        parts = {name: self._within([name], **options) for name in names}
        cost = whole.cost + sum(part.cost for part in parts.values())
        return replace(whole, cost=cost, layers=parts)

    def _within(self, names: list[str], **options) -> Ascent:
        w = self.point.w
        chosen = self.point.layout.mask(*names).to(w.device) & (self.scales > 0)
        inside = torch.nonzero(chosen)[:, 0]
        chart = _chart(w, self.scales, inside)
        near = Neighbourhood(self.caller, self.point, chart, len(inside))
        return near.worst_in_ball(self.radius, generator=self.generator, **options)


def _chart(w: Tensor, scales: Tensor, inside: Tensor):
    """From coordinates of the chosen entries to points."""
    chosen, whole = scales[inside], len(inside) == len(w)

    def chart(z: Tensor) -> Tensor:
        if whole:
            return torch.addcmul(w, chosen, z)
        return w.index_add(0, inside, chosen * z)

    return chart
