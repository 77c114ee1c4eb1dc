"""Eigenvalues of symmetric operators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.operator import Operator, require_operator, require_vectors
from quotientnet.options import require_count, require_number
from quotientnet.progress import progress

__all__ = ["Eigenpair", "power_method"]


@dataclass(frozen=True)
class Eigenpair:
    """An approximate eigenvalue with its vector and residual.

    Attributes:
        value: The Rayleigh quotient ``λ = ⟨v, H v⟩``.
        vector: ``v``, of norm 1.
        residual: ``‖H v − λ v‖``. Certified: *some* eigenvalue lies within it of ``value``; that
            it is the one asked for is only probable, from a random start.
        iterations: Products with the operator.
        converged: Whether the residual reached the tolerance.
    """

    value: float
    vector: Tensor = field(repr=False)
    residual: float
    iterations: int
    converged: bool


def power_method(
    operator: Operator,
    *,
    which: str = "magnitude",
    tolerance: float = 1e-4,
    max_iterations: int = 10_000,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    check_every: int = 4,
) -> Eigenpair:
    """The dominant eigenvalue of a symmetric operator: Algorithm 1 of [Rangamani2019]_.

    On a Riemannian Hessian in frame coordinates this is the Riemannian power method. The paper
    stops on the change of the vector; here the residual decides. Null directions that the operator
    knows (:meth:`~quotientnet.Operator.project`) are left out at every step: the eigenvalue is
    that of the complement. :func:`~quotientnet.curvature.lanczos` needs fewer products.

    Args:
        operator: The symmetric operator.
        which: ``"magnitude"`` for the eigenvalue largest in magnitude, with its sign,
            ``"algebraic"`` for the largest one, also where a negative one dominates (it then
            iterates again, on a shifted operator), or ``"smallest"`` for the lowest one.
        tolerance: Stop at ``residual ≤ tolerance · |value|``. The error of the value is of the
            order of ``residual² / gap``.
        max_iterations: Products at most, all phases together.
        start: Starting vector, shape ``(size,)``; random if omitted.
        generator: Source of the random start; a fresh one with seed 0 if omitted.
        check_every: Products between looks at the residual, which synchronise with the device.

    Returns:
        The eigenpair. Eigenvalues ``±λ`` of equal magnitude do not separate under ``"magnitude"``:
        the result then says that it has not converged.

    Raises:
        ValueError: Another ``which``, a start of another shape or zero, an empty operator, or a
            product that is NaN or infinite.
    """
    require_operator(operator, "power_method")
    if which not in ("magnitude", "algebraic", "smallest"):
        raise ValueError(
            "power_method: which must be 'magnitude', 'algebraic' or 'smallest', got "
            f"{which!r}"
        )
    require_number(tolerance, "power_method", "tolerance", strict=True)
    require_count(max_iterations, "power_method", "max_iterations")
    require_count(check_every, "power_method", "check_every")
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    if which == "smallest":
        options = tolerance, max_iterations, start, generator, check_every
        return _lowest(operator, *options)
    v = _start(operator, start, generator)
    budget = max_iterations if which == "magnitude" else max(max_iterations // 2, 1)
    pair, radius = _iterate(operator, v, 0.0, tolerance, budget, check_every)
    if which == "magnitude" or (pair.converged and pair.value >= 0):
        return pair
    return _largest(
        operator, pair, radius, tolerance, max_iterations, check_every, generator
    )


def _lowest(operator, tolerance, max_iterations, start, generator, check_every):
    """The largest eigenvalue of ``−H`` with its sign turned."""
    pair = power_method(
        -operator,
        which="algebraic",
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=start,
        generator=generator,
        check_every=check_every,
    )
    return replace(pair, value=-pair.value)


def _largest(operator, pair, radius, tolerance, max_iterations, check_every, generator):
    """The top of ``H + shift``, where a negative eigenvalue of ``H`` dominates or nothing does.

    A result below the pair that is already known proves the shift too small; it is then raised.
    """
    spent, shift, lowest = pair.iterations, 1.01 * radius, pair.value
    while spent < max_iterations:
        v = _start(operator, None, generator)
        left = max_iterations - spent
        found, radius = _iterate(operator, v, shift, tolerance, left, check_every)
        spent += found.iterations
        result = replace(found, iterations=spent)
        if found.value >= lowest - 10 * tolerance * abs(lowest):
            return result
        lowest, shift = min(lowest, found.value), 2.01 * max(abs(found.value), radius)
    return replace(pair, iterations=spent, converged=False)


def _start(operator: Operator, start, generator) -> Tensor:
    if operator.size == 0:
        raise ValueError("power_method: the operator has size 0")
    if start is None:
        start = normal(operator.size, like=operator, generator=generator)
    require_vectors(operator, start, "power_method", "start")
    if start.shape != (operator.size,) or not start.norm() > 0:
        raise ValueError(
            f"power_method: start must be a nonzero vector of shape ({operator.size},), got shape "
            f"{tuple(start.shape)} and norm {float(start.norm())}"
        )
    projected = operator.project(start)
    if not projected.norm() > 100 * torch.finfo(start.dtype).eps * start.norm():
        raise ValueError(
            "power_method: the start lies in the null directions of the operator"
        )
    return projected / projected.norm()


def _iterate(operator, v, shift, tolerance, max_iterations, check_every):
    """Power iteration on ``H + shift``; the pair belongs to ``H``. Also the largest ``‖H v‖``."""
    radius, rounding = 0.0, 4 * torch.finfo(operator.dtype).eps
    for iteration in progress(range(1, max_iterations + 1), "power method"):
        product = operator @ v
        last = iteration == max_iterations
        if last or iteration == 1 or iteration % check_every == 0:
            value = torch.dot(v, product)
            residual = float((product - value * v).norm())
            value, radius = float(value), max(radius, float(product.norm()))
            if not (residual < float("inf")):
                raise ValueError(
                    f"power_method: product {iteration} is NaN or infinite; is the point valid, or "
                    "does a value overflow in this dtype?"
                )
            # An eigenvalue of zero is known to rounding at best.
            converged = residual <= max(
                tolerance * abs(value), rounding * (radius + shift)
            )
            if converged or last:
                return Eigenpair(value, v, residual, iteration, converged), radius
        if (
            shift
        ):  # rounding would grow along null directions, where the shift dominates
            product = operator.project(product + shift * v)
        v = product / product.norm()
    raise AssertionError("unreachable: the last iteration returns")
