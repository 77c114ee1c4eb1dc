"""Traces and diagonals of symmetric operators, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.curvature.draws import Mean, multiply, quadratic, signs
from quotientnet.estimate import Estimate
from quotientnet.operator import Operator, require_operator
from quotientnet.options import require_count, require_number
from quotientnet.progress import progress

__all__ = [
    "DiagonalEstimate",
    "hutch_plus_plus_trace",
    "hutchinson_diagonal",
    "hutchinson_trace",
]


def hutchinson_trace(
    operator: Operator,
    *,
    samples: int = 100,
    tolerance: float | None = None,
    block: int = 1,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The trace by random signs ([Hutchinson1990]_).

    .. math:: \operatorname{tr} H = \mathbb{E}\, s^\top H s, \qquad s_i = \pm 1

    Unbiased; its error does not depend on the diagonal of ``H``. The variance of one draw is
    ``2 Σ_{i≠j} H_ij²``.

    Args:
        operator: The symmetric operator.
        samples: Number of sign vectors, at least 2; with a tolerance, at most that many.
        tolerance: If given, stop at a standard error of at most ``tolerance · |value|``, looked
            at from 12 draws on.
        block: Vectors a product; one pass over the data serves a block.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        The estimate in the operator's unit, its ``error`` one standard error (with few samples,
        intervals are those of Student's *t* with ``cost − 1`` degrees of freedom); ``converged``
        is false where the tolerance was not reached.

    Raises:
        ValueError: Fewer than 2 samples, a block below 1, a tolerance that is not positive, or a
            product that is NaN or infinite.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, -4.0, 3.0, 1.0])))
        >>> estimate = hutchinson_trace(operator, samples=5)
        >>> estimate.value, estimate.error, estimate.cost
        (3.0, 0.0, 5)
    """
    _check(operator, "hutchinson_trace", samples, 2, tolerance, block)
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    mean = Mean(0.0, [])
    for first in progress(range(0, samples, block), "Hutchinson trace"):
        s = signs(operator, min(block, samples - first), generator)
        mean.draws.extend(quadratic(operator, s, "hutchinson_trace"))
        if mean.within(tolerance):
            break
    return _estimate(mean, tolerance, len(mean.draws))


def hutch_plus_plus_trace(
    operator: Operator,
    *,
    samples: int = 99,
    tolerance: float | None = None,
    block: int = 1,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The trace, exact on a sketched range and by random signs beside it (Algorithm 1 of
    [Meyer2021]_).

    .. math:: \operatorname{tr} H = \operatorname{tr} Q^\top H Q
              + \mathbb{E}\, s^\top (I - QQ^\top) H (I - QQ^\top) s

    A third of the products sketches the range, ``Q = orth(H S)``, a third measures the trace on
    it, and the rest draws signs independent of ``Q``: unbiased, with an honest standard error. It
    needs far fewer products than :func:`hutchinson_trace` where few eigenvalues dominate, and up
    to three times as many where none does.

    Args:
        operator: The symmetric operator.
        samples: Products in all, at least 6; with a tolerance, at most that many.
        tolerance: As in :func:`hutchinson_trace`; the sketch is spent in any case.
        block: Vectors a product.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        The estimate in the operator's unit, its ``error`` one standard error over the last third
        of the draws, or rounding; ``converged`` is false where the tolerance was not reached.

    Raises:
        ValueError: Fewer than 6 samples, a block below 1, a tolerance that is not positive, or a
            product that is NaN or infinite.

    Note:
        Memory is that of ``samples / 3`` vectors.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> column = torch.linspace(0, 1, 50, dtype=torch.float64)
        >>> operator = DenseOperator(torch.outer(column, column))
        >>> estimate = hutch_plus_plus_trace(operator, samples=6)
        >>> abs(estimate.value - float(column @ column)) < 1e-12, estimate.cost
        (True, 6)
    """
    name = "hutch_plus_plus_trace"
    _check(operator, name, samples, 6, tolerance, block)
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    rank = min(samples // 3, operator.size)
    q = torch.linalg.qr(_range(operator, rank, block, generator, name))[0]
    exact = [
        value
        for columns in progress(q.split(block, dim=1), "Hutch++ on the range")
        for value in quadratic(operator, columns, name)
    ]
    mean, left = Mean(sum(exact), []), samples - 2 * rank
    for first in progress(range(0, left, block), "Hutch++ beside the range"):
        s = signs(operator, min(block, left - first), generator)
        mean.draws.extend(quadratic(operator, s - q @ (q.T @ s), name))
        if mean.within(tolerance):
            break
    rounding = 4 * torch.finfo(operator.dtype).eps * sum(abs(value) for value in exact)
    return _estimate(mean, tolerance, 2 * rank + len(mean.draws), rounding)


@dataclass(frozen=True)
class DiagonalEstimate:
    """A diagonal with its standard errors, coordinate by coordinate.

    Attributes:
        values: The estimate, shape ``(size,)``, in the operator's unit.
        errors: One standard error each, shape ``(size,)``. Coordinates are not independent.
        cost: Products with the operator.
    """

    values: Tensor
    errors: Tensor
    cost: int


def hutchinson_diagonal(
    operator: Operator,
    *,
    samples: int = 100,
    block: int = 1,
    generator: torch.Generator | None = None,
) -> DiagonalEstimate:
    r"""The diagonal by random signs ([Bekas2007]_).

    .. math:: H_{ii} = \mathbb{E}\, s_i (H s)_i, \qquad s_i = \pm 1

    Unbiased; the variance of one draw is ``Σ_{j≠i} H_ij²``, so that a diagonal operator is exact.

    Args:
        operator: The symmetric operator.
        samples: Number of sign vectors, at least 2.
        block: Vectors a product.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        Values and standard errors, of the operator's dtype and device. With few samples,
        intervals are those of Student's *t* with ``samples − 1`` degrees of freedom.

    Raises:
        ValueError: Fewer than 2 samples, a block below 1, or a product that is NaN or infinite.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, -4.0, 1.0])))
        >>> hutchinson_diagonal(operator, samples=2).values.tolist()
        [3.0, -4.0, 1.0]
    """
    name = "hutchinson_diagonal"
    _check(operator, name, samples, 2, None, block)
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    mean = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    squares, seen = torch.zeros_like(mean), 0
    for first in progress(range(0, samples, block), "Hutchinson diagonal"):
        s = signs(operator, min(block, samples - first), generator)
        for draw in (s * multiply(operator, s, name)).T:
            seen += 1
            change = draw - mean
            mean += change / seen
            squares += change * (draw - mean)
    return DiagonalEstimate(mean, (squares / (seen - 1) / seen).sqrt(), seen)


def _range(operator: Operator, rank: int, block: int, generator, name: str) -> Tensor:
    """``H S`` for ``rank`` random signs."""
    found = []
    for first in progress(range(0, rank, block), "Hutch++ sketch"):
        s = signs(operator, min(block, rank - first), generator)
        found.append(multiply(operator, s, name))
    return torch.cat(found, dim=1)


def _estimate(mean: Mean, tolerance, cost: int, rounding: float = 0.0) -> Estimate:
    error = max(mean.error, rounding)
    reached = tolerance is None or error <= tolerance * abs(mean.value)
    return Estimate(mean.value, error, reached, cost)


def _check(
    operator, name: str, samples: int, least: int, tolerance, block: int
) -> None:
    require_operator(operator, name)
    require_count(samples, name, "samples", least)
    require_count(block, name, "block")
    if tolerance is not None:
        require_number(tolerance, name, "tolerance", strict=True)
