"""The worst loss in a neighbourhood, by ascent on a manifold that covers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, inf, sin

import geoopt
import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.estimate import Estimate
from quotientnet.layout import ParameterLayout
from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.optimization import maximize
from quotientnet.sharpness.arguments import checked_restarts

__all__ = ["Ascent", "Neighbourhood"]

_INWARD = 0.4
"""The angle above the boundary, in radians, at which an ascent in a ball begins."""

_TOLERANCE = 1e-5
"""The slope per radian, relative to the rise, at which an ascent ends: its square is the error."""

_ITERATIONS = 100
"""Of each method at most."""


@dataclass(frozen=True, kw_only=True)
class Ascent(Estimate):
    """A supremum that was looked for by ascent: ``value`` is attained, a higher one may exist.

    ``error`` is the slope left at the end, per radian of the sphere that covers the neighbourhood,
    plus the rounding of differences of the loss; ``converged`` says that it is small. Both are
    about the maximum that was found, which may be a local one: ``values`` shows how far the ends
    differ.

    Attributes:
        neighbour: The worst point found, shape ``(size,)``.
        reason: Why the ascent stopped.
        values: The value at the end of the ascent from each start, the gradient's first.
    """

    neighbour: Tensor
    reason: str
    values: tuple[float, ...] = ()

    def over(self, divisor: float, invariant_to: tuple[str, ...]) -> Ascent:
        """The same in another unit, its parts, too."""
        parts = {n: part.over(divisor, invariant_to) for n, part in self.layers.items()}
        return replace(
            self, value=self.value / divisor, error=self.error / divisor,
            values=tuple(value / divisor for value in self.values), layers=parts,
            invariant_to=invariant_to,
        )  # fmt: skip


class Neighbourhood:
    """A loss near a point, in coordinates ``z`` that are 0 there.

    Args:
        caller: The measure, for errors.
        point: The point.
        chart: From coordinates, shape ``(count,)``, to points, shape ``(size,)``; differentiable.
        count: The number of coordinates.
    """

    def __init__(
        self, caller: str, point, chart: Callable[[Tensor], Tensor], count: int
    ):
        self.caller, self.point, self.chart, self.count = caller, point, chart, count
        point.require_modes()

    def rise(self, z: Tensor) -> Tensor:
        """``f(chart(z)) − f(w)``, a scalar.

        Raises:
            ValueError: The loss is NaN or infinite there.
        """
        value = self.point.objective.streamed(self.chart(z))
        if not torch.isfinite(value):
            raise ValueError(
                f"{self.caller}: the loss is {float(value)} at a neighbour within this radius, "
                "where the supremum is not defined; use a smaller one"
            )
        return value - self.point.value

    def slope(self) -> Tensor:
        """The gradient at ``z = 0``, shape ``(count,)``."""
        with torch.enable_grad():
            z = self._zeros().requires_grad_()
            path = self.chart(z)
            (slope,) = torch.autograd.grad(path, z, self.point.gradient)
        return slope

    def worst_in_ball(
        self,
        radius: float,
        *,
        restarts: int,
        generator: torch.Generator | None,
        project: Callable[[Tensor], Tensor] = lambda z: z,
        **options,
    ) -> Ascent:
        """The largest rise where ``‖z‖ ≤ radius``.

        The ball is the shadow of a sphere of one more dimension, so that its inside and its
        boundary are one manifold. Ascents start along the gradient and along random directions.

        Args:
            radius: Positive.
            restarts: Random starts.
            generator: Their source; a fresh one with seed 0 if omitted.
            project: Applied to random directions.
            options: Passed to :func:`~quotientnet.optimization.maximize`.
        """
        directions = [self.slope(), *map(project, self._random(restarts, generator))]
        starts = [
            torch.cat([cos(_INWARD) * _unit(d), d.new_full((1,), sin(_INWARD))])
            for d in directions
            if d.any()
        ]
        methods = "power", "conjugate-gradient"
        return self._climb(
            geoopt.Sphere(), lambda u: radius * u[:-1], starts, methods, **options
        )

    def worst_in_box(
        self,
        half_widths: Tensor,
        *,
        restarts: int,
        generator: torch.Generator | None,
        **options,
    ) -> Ascent:
        """The largest rise where ``|z_i| ≤ half_widths_i``.

        The box is the shadow of a torus, a circle for every coordinate.

        Args:
            half_widths: Shape ``(count,)``, positive.
            restarts: Random starts beside the one along the gradient.
            generator: Their source; a fresh one with seed 0 if omitted.
            options: Passed to :func:`~quotientnet.optimization.maximize`.
        """
        rows = {"circles": torch.arange(self.count)[:, None]}
        layout = ParameterLayout({"circles": (self.count, 2)})
        circles = ProductOblique(layout, torch.ones(self.count), rows)
        signs = [self.slope(), *self._random(restarts, generator)]
        signs = [torch.where(s < 0, -1.0, 1.0).to(s) for s in signs]
        angles = torch.tensor([cos(_INWARD), sin(_INWARD)]).to(half_widths)
        starts = [
            torch.stack([angles[0] * s, angles[1].expand_as(s)], 1).reshape(-1)
            for s in signs
        ]
        # Power steps go from corner to corner: they end what gradients began inside.
        methods = "conjugate-gradient", "power"
        return self._climb(
            circles,
            lambda x: half_widths * x.view(-1, 2)[:, 0],
            starts,
            methods,
            **options,
        )

    def _climb(self, manifold, inside: Callable, starts, methods, **options) -> Ascent:
        """The highest of the ascents, by one method after the other, the rise measured in units of
        its size at the starts."""
        w, rises = self.point.w, [abs(float(self.rise(inside(x)))) for x in starts]
        rounding = 4 * torch.finfo(w.dtype).eps * abs(float(self.point.value))
        scale, cost = max(rises, default=0.0), len(starts) + 1
        if not starts:
            reason = "no slope to begin along, and no restarts"
            return Ascent(0.0, rounding, False, 1, neighbour=w.clone(), reason=reason)
        if scale <= rounding:  # as flat as can be told, everywhere it was looked
            return Ascent(0.0, rounding, True, cost, neighbour=w.clone(), reason="flat")
        options = {
            "tolerance": _TOLERANCE, "max_iterations": _ITERATIONS, "line_search": "armijo",
        } | options  # fmt: skip
        x = torch.stack(starts)
        for method in [options.pop("method")] if "method" in options else methods:
            found = maximize(
                lambda x: self.rise(inside(x)) / scale, manifold, x, method=method,
                batched=False, **options,
            )  # fmt: skip
            x = found.points
            cost += found.evaluations.values + found.evaluations.gradients
            if found.converged:
                break
        value, slope = (scale * float(v) for v in (found.value, found.gradient_norm))
        with torch.no_grad():
            neighbour = self.chart(inside(found.point)) if value > 0 else w.clone()
        return Ascent(
            max(value, 0.0), slope + rounding, found.converged, cost, neighbour=neighbour,
            reason=found.reason, values=tuple(scale * float(v) for v in found.values),
        )  # fmt: skip

    def _zeros(self) -> Tensor:
        return self.point.w.new_zeros(self.count)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Normal coordinates, shape ``(count,)``."""
        return self._random(1, generator)[0]

    def _random(self, count: int, generator: torch.Generator | None) -> Tensor:
        w, count = self.point.w, checked_restarts(count, self.caller)
        generator = generator or torch.Generator(w.device).manual_seed(0)
        return normal(count, self.count, like=w, generator=generator)


def _unit(d: Tensor) -> Tensor:
    """The unit vector along ``d``, of any size."""
    if not 0 < d.norm() < inf:
        d = d / d.abs().max()
    return d / d.norm()
