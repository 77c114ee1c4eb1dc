"""An equivalent model with many large eigenvalues: dinh2017 Theorem 5."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup
from quotientnet.objective import Objective, Point
from quotientnet.operator import Operator
from quotientnet.reparametrisation.directions import shrinking_direction
from quotientnet.reparametrisation.equivalent import equivalent, require, start_at
from quotientnet.symmetry import Symmetry

__all__ = ["exceed_eigenvalues", "SharpDirections"]

_LARGEST = 10_000
"""Coordinates up to which a Hessian is formed as a matrix."""


@dataclass(frozen=True)
class SharpDirections:
    """An equivalent model whose Hessian has many eigenvalues above a bound.

    Attributes:
        model: The equivalent model, a copy.
        t: The element that leads to it.
        point: The objective at its parameters.
        bound: What was to be exceeded.
        before: Eigenvalues above the bound at the model given.
        count: Eigenvalues above the bound at the equivalent model, at least: found from the Hessian
            evaluated there.
        positive: Positive eigenvalues at the model given, the ``r`` of the theorem at a minimum.
        fixed: Coordinates that do not shrink; ``count ≥ positive − fixed``.
        tensors: The tensors that have coordinates that shrink.
    """

    model: nn.Module
    t: Tensor
    point: Point
    bound: float
    before: int
    count: int
    positive: int
    fixed: int
    tensors: tuple[str, ...]


def exceed_eigenvalues(
    objective: Objective,
    group: ScalingGroup | Symmetry,
    bound: float,
    *,
    tolerance: float | None = None,
) -> SharpDirections:
    r"""An equivalent model with as many eigenvalues above ``bound`` as its group can raise.

    Theorem 5 of [Dinh2017]_, for any model with a scaling group. Of a Hessian with ``p`` positive
    eigenvalues, ``p − fixed`` or more exceed the bound, where ``fixed`` counts the coordinates that
    do not shrink along the direction that shrinks most of them: :math:`\min_k n_k` in a chain
    without biases, as in the theorem, and more with biases (Appendix B: the last bias, and those
    after the tensor that grows). The direction is found exactly, as an integer program
    over the exponents.

    At a minimum ``p`` is the rank. The theorem needs one; here, for any invariant loss at any
    point, the eigenvalues of ``D H D`` on what shrinks are those of ``H`` there, each times
    :math:`e^{2s}` or more (Ostrowski), and those of the whole Hessian interlace them (Cauchy).

    Args:
        objective: The loss; its model is taken as it is.
        group: As for :func:`~quotientnet.reparametrisation.exceed_spectral_norm`.
        bound: ``M``, positive.
        tolerance: Eigenvalues below this part of the largest count as zero; by default 1e-9 in
            float64 and 1e-4 in float32.

    Raises:
        ValueError: As :func:`exceed_spectral_norm`, or more than 10,000 coordinates.
        RuntimeError: Fewer eigenvalues of the equivalent model exceed the bound than must: the
            loss is not invariant to the group.

    Note: two Hessians as matrices, ``size`` products each. The count at the equivalent model is
    the inertia of ``H − M``, scaled so that it does not suffer from rounding (Sylvester).

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import exceed_eigenvalues
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(),
        ...     torch.nn.Linear(3, 1, bias=False)).double()
        >>> x = torch.randn(9, 2).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, x[:, :1]))
        >>> sharp = exceed_eigenvalues(objective, qn.discover(model, x), 1e6)
        >>> sharp.fixed, sharp.count >= sharp.positive - sharp.fixed
        (3, True)
    """
    caller = "exceed_eigenvalues"
    blocks, point = start_at(objective, group, caller, bound=bound)
    group, size = blocks.parent, point.w.numel()
    if size > _LARGEST:
        raise ValueError(
            f"{caller}: needs the Hessian as a matrix, and {size} coordinates are "
            f"more than {_LARGEST}; use a smaller model, or exceed_spectral_norm"
        )
    tolerance = tolerance or (1e-9 if point.w.dtype == torch.float64 else 1e-4)
    direction, shrunk = shrinking_direction(blocks)
    inside = blocks.coordinates(shrunk)
    hessian = _symmetric(point.hessian)
    values = torch.linalg.eigvalsh(hessian)
    kept = torch.linalg.eigvalsh(hessian[inside][:, inside])
    kept = kept[kept > tolerance * values.abs().max()]
    if len(kept) == 0:
        raise ValueError(
            f"{caller}: the Hessian has no positive eigenvalue on what the group can shrink, so "
            "none can be raised; the theorem needs a minimum with a Hessian that is not zero"
        )
    grow = max((log(bound) - log(kept[0]) + log(2.0)) / 2, 0.0)
    t = blocks.lift(grow * direction)
    model, moved = equivalent(point, group, t, caller)
    count = _count_above(moved, group.exponents(t), bound, float(kept[0]))
    require(count >= len(kept), f"{count} eigenvalues", caller)
    return SharpDirections(
        model, t, moved, bound, int((values > bound).sum()), count,
        int((values > tolerance * values.abs().max()).sum()),
        int(blocks.sizes[~shrunk].sum()), blocks.tensors(shrunk),
    )  # fmt: skip


def _count_above(point: Point, exponents: Tensor, bound: float, least: float) -> int:
    """How many eigenvalues of the Hessian exceed ``bound``, at least.

    By Sylvester's law ``C (H − bound) C`` has as many positive eigenvalues, for any diagonal ``C``.
    With this one its entries are no larger than before the transformation, however far apart the
    scales, and those that count are ``least / 2`` or more.
    """
    c = exponents.exp().clamp(max=sqrt(least / bound))
    matrix = _symmetric(point.hessian)
    matrix.diagonal().sub_(bound)
    return int((torch.linalg.eigvalsh(c[:, None] * matrix * c) > least / 4).sum())


def _symmetric(operator: Operator) -> Tensor:
    """The matrix in float64, on the host."""
    matrix = operator.to_dense().double().cpu()
    if not torch.isfinite(matrix).all():
        raise ValueError(
            "exceed_eigenvalues: the Hessian has NaN or infinite entries; is the loss twice "
            "differentiable at the model, or does it overflow in this dtype?"
        )
    return (matrix + matrix.T) / 2
