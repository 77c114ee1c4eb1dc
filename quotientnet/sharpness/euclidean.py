"""Measures of the Euclidean Hessian, which rescaling moves at will (dinh2017 Thm. 4)."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch

from quotientnet.curvature.draws import Mean, multiply, signs
from quotientnet.curvature.lanczos import lanczos
from quotientnet.curvature.scales import finite
from quotientnet.estimate import Estimate
from quotientnet.point import require_point
from quotientnet.sharpness.arguments import (
    checked_loss,
    checked_radius,
    parameter_names,
    translations,
)

__all__ = ["spectral_norm", "trace", "second_order_sharpness"]


def spectral_norm(
    point, *, which: str = "magnitude", layers: bool = False, **options
) -> Estimate:
    """The dominant eigenvalue of ``∇²f``, by default the largest in magnitude, with its sign.

    Invariant to no scaling: an equivalent network can have any larger value.

    Args:
        point: A :class:`~quotientnet.Point`.
        which: ``"magnitude"``, ``"algebraic"`` or ``"smallest"``.
        layers: Whether to find the same of every tensor's diagonal block, too.
        options: Passed to :func:`~quotientnet.curvature.lanczos`.

    Returns:
        The estimate in units of loss per squared parameter; ``error`` bounds the distance to some
        eigenvalue.
    """
    require_point(point, "spectral_norm")
    found = as_estimate(
        lanczos(point.hessian, which=which, **options), translations(point)
    )
    if not layers:
        return found
    parts = {}
    for name in parameter_names(point):
        block = point.hessian.restrict(point.layout.mask(name))
        parts[name] = as_estimate(
            lanczos(block, which=which, **options), translations(point)
        )
    cost = found.cost + sum(part.cost for part in parts.values())
    return replace(found, cost=cost, layers=parts)


def trace(point, *, samples: int = 100, block: int = 1, generator=None) -> Estimate:
    """The trace of ``∇²f`` and of every tensor's diagonal block, by random signs.

    Invariant to no scaling. :func:`~quotientnet.curvature.ggn_traces` is exact where its conditions
    hold.

    Args:
        point: A :class:`~quotientnet.Point`.
        samples: Number of random sign vectors, at least 2.
        block: Vectors a product; one pass over the data serves a block.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        The estimate, its ``error`` one standard error, in units of loss per squared parameter.

    Raises:
        ValueError: Fewer than 2 samples, or a block below 1.
    """
    require_point(point, "trace")
    if samples < 2 or block < 1:
        raise ValueError(
            f"trace: needs 2 samples and blocks of 1 at least, got {samples} and {block}"
        )
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    names, operator, rows = parameter_names(point), point.hessian, []
    for first in range(0, samples, block):
        s = signs(operator, min(block, samples - first), generator)
        terms = (s * multiply(operator, s, "trace")).T
        views = point.layout.unflatten(terms)
        sums = [views[name].flatten(1).sum(1) for name in names]
        rows.append(torch.stack([terms.sum(1), *sums], 1))
    draws = torch.cat(rows).double().T.tolist()

    def estimate(values: list[float]) -> Estimate:
        mean = Mean(0.0, values)
        return Estimate(finite(mean.value, "trace"), mean.error, True, samples, translations(point))

    layers = {name: estimate(values) for name, values in zip(names, draws[1:])}
    return replace(estimate(draws[0]), layers=layers)


def second_order_sharpness(point, epsilon: float, **options) -> Estimate:
    r"""The ε-sharpness to second order, :math:`\lambda_{\max} \epsilon^2 / (2 (1 + f))`.

    After Definition 2 of [Dinh2017]_. It is meant for minima: elsewhere the first-order term
    :math:`\epsilon \|\nabla f\| / (1 + f)` is left out, and is added to ``error``. Invariant to no
    scaling.

    Args:
        point: A :class:`~quotientnet.Point` with a loss above −1.
        epsilon: The radius, in units of the parameters.
        options: Passed to :func:`~quotientnet.curvature.lanczos`.

    Returns:
        The estimate, 0 where no eigenvalue is positive; ``converged`` only if the first-order term
        is the smaller one.

    Raises:
        ValueError: A radius that is not positive and finite, or a loss of −1 or below.
    """
    caller = "second_order_sharpness"
    require_point(point, caller)
    epsilon = checked_radius(epsilon, caller)
    base = 1 + checked_loss(point, caller)
    found = spectral_norm(point, which="algebraic", **options)
    unit = epsilon * epsilon / (2 * base)
    if unit == inf:
        raise ValueError(f"{caller}: the square of epsilon={epsilon:g} is beyond all numbers")
    value = max(found.value, 0.0) * unit
    omitted = epsilon * float(point.gradient.norm()) / base
    return Estimate(
        value,
        found.error * unit + omitted,
        found.converged and omitted <= value,
        found.cost + 1,
        translations(point),
    )


def as_estimate(pairs, invariant_to: tuple[str, ...] = ()) -> Estimate:
    """The first eigenvalue and its residual as a measure's result."""
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    return Estimate(value, residual, pairs.converged, pairs.products, invariant_to)
