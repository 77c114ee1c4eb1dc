"""An equivalent model with any spectral norm: dinh2017 Theorem 4."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.curvature import Eigenpair, power_method
from quotientnet.group import ScalingGroup
from quotientnet.objective import Objective, Point
from quotientnet.operator import Operator
from quotientnet.reparametrisation.directions import Blocks
from quotientnet.reparametrisation.equivalent import equivalent, require, start_at
from quotientnet.symmetry import Symmetry

__all__ = ["exceed_spectral_norm", "SharpDirection"]


@dataclass(frozen=True)
class SharpDirection:
    """An equivalent model whose Hessian has a spectral norm above a bound.

    Attributes:
        model: The equivalent model, a copy.
        t: The element that leads to it, ``transform(model, group, t)``.
        point: The objective at its parameters; ``point.w`` is the flat vector.
        bound: What was to be exceeded.
        before: The dominant eigenpair at the model given.
        after: That at the equivalent model. ``|after.value| ≥ bound``, a Rayleigh quotient of the
            Hessian there, which bounds the spectral norm from below whether or not it converged.
        tensors: The tensors whose scales the bound rests on; they shrink, or their product does.
    """

    model: nn.Module
    t: Tensor
    point: Point
    bound: float
    before: Eigenpair
    after: Eigenpair
    tensors: tuple[str, ...]


def exceed_spectral_norm(
    objective: Objective, group: ScalingGroup | Symmetry, bound: float, **options
) -> SharpDirection:
    r"""An equivalent model whose Hessian has a spectral norm of ``bound`` or more.

    Theorem 4 of [Dinh2017]_, for any model with a scaling group. The theorem asks for a minimum of
    a network with one hidden layer. Here :math:`H(t \cdot w) = D H(w) D` does the work, which is
    exact at every point of an invariant loss: a vector ``v`` on one tensor with
    :math:`v^\top H v = \lambda \|v\|^2` has a Rayleigh quotient of :math:`e^{2s} \lambda` once the
    tensor has shrunk by :math:`e^{-s}`, and a pair of tensors bounds the norm in the same way. The
    bound is verified on the Hessian of the model that is returned.

    Args:
        objective: The loss; its model is taken as it is.
        group: A group of its model, or what :func:`~quotientnet.discover` returned, which also
            knows where the ``eps`` of a normalisation makes scales approximate: these are then
            left out. Pass ``symmetry.group`` to use them all the same.
        bound: ``M``, positive.
        options: Passed to :func:`~quotientnet.curvature.power_method`.

    Raises:
        ValueError: A bound that is not positive and finite; a group of another layout or without
            generators; no curvature in what the group shrinks; scales that leave the range of
            the dtype.
        RuntimeError: The Hessian of the equivalent model is below the bound: the loss is not
            invariant to the group.

    Note: two power iterations and a product for each tensor.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import exceed_spectral_norm
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> x = torch.randn(9, 2).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, x[:, :1]))
        >>> sharp = exceed_spectral_norm(objective, qn.discover(model, x), 1e6)
        >>> sharp.after.value >= 1e6, torch.allclose(sharp.model(x), model(x))
        (True, True)
    """
    caller = "exceed_spectral_norm"
    blocks, point = start_at(objective, group, caller, bound=bound)
    before = power_method(point.hessian, **options)
    chosen, rate, start = _steepest_pair(point.hessian, blocks, options)
    if rate <= 64 * torch.finfo(point.w.dtype).eps * abs(before.value):
        raise ValueError(
            f"{caller}: the Hessian is zero on everything that the group can shrink, so its norm "
            "cannot grow; the theorem needs a Hessian that is not zero"
        )
    # A little more than needed, against rounding.
    grow = max(log(bound) - log(rate) + 1e-2, 0.0)
    exponents = blocks.rows[chosen[0]] + blocks.rows[chosen[1]]
    t = blocks.lift(-grow * exponents / (exponents @ exponents))
    model, moved = equivalent(point, blocks.parent, t, caller)
    after = power_method(moved.hessian, start=start, **options)
    require(abs(after.value) >= bound, f"a spectral norm of {after.value:g}", caller)
    tensors = blocks.tensors(np.isin(np.arange(len(blocks.rows)), chosen))
    return SharpDirection(model, t, moved, bound, before, after, tensors)


def _steepest_pair(hessian: Operator, blocks: Blocks, options):
    """Two blocks, or one twice, whose scales together move a large entry of the Hessian.

    Returns their numbers, ``|⟨u, H v⟩|`` for unit vectors ``u, v`` on them, and ``u ± v``, with the
    sign that makes its Rayleigh quotient the larger one: it starts the iteration afterwards, since
    scaling a block keeps the direction of what lies on it.
    """
    movable = np.abs(blocks.rows).sum(1) > 0
    inside = blocks.coordinates(movable)
    part = power_method(hessian.restrict(inside), **options).vector
    top = part.new_zeros(hessian.size)
    top[inside.to(top.device)] = part
    parts = []
    for number in np.flatnonzero(movable):
        part = top * (blocks.index == number).to(top.device)
        if part.norm() > 1e-6:
            parts.append((number, part / part.norm()))
    numbers = [number for number, _ in parts]
    columns = torch.stack([part for _, part in parts], dim=1)
    table = (columns.T @ (hessian @ columns)).double().cpu().numpy()
    sums = blocks.rows[numbers][:, None] + blocks.rows[numbers][None]
    rates = np.where(np.abs(sums).sum(2) > 0, np.abs(table), 0.0)
    own = np.diag(rates).argmax()
    if rates[own, own] > 1e-3 * rates.max():
        i = j = own  # one tensor is enough, as always at a minimum
    else:
        i, j = np.unravel_index(rates.argmax(), rates.shape)
    sign = np.sign(table[i, j]) * (np.sign(table[i, i] + table[j, j]) or 1.0)
    return (numbers[i], numbers[j]), rates[i, j], columns[:, i] + sign * columns[:, j]
