"""First derivatives of single samples' losses: squared entry by entry, and along a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.curvature.factor import LossFactor
from quotientnet.curvature.forward import (
    Leaves,
    parameters_in_loss,
    require_separate_samples,
    three_of,
)
from quotientnet.curvature.layers import LayerRun
from quotientnet.curvature.plan import make_plan
from quotientnet.curvature.samples import Readout
from quotientnet.curvature.scales import require_finite_diagonal
from quotientnet.kinds import twice_differentiable
from quotientnet.losses import divisor, normaliser
from quotientnet.point import Point, require_point

__all__ = ["squared_gradients", "sample_slopes"]


def squared_gradients(point: Point, *, chunk: int | None = None) -> Tensor:
    r"""The mean square of the derivatives of the samples' losses, entry by entry.

    .. math:: \frac1N \sum_z \left(\frac{\partial \ell_z}{\partial w_i}\right)^2

    The diagonal of the empirical Fisher matrix, at the cost of one backward pass: no gradient of a
    single sample is kept where :func:`ggn_diagonal` keeps none. The losses :math:`\ell_z` are those
    whose mean is the objective's loss, or whose sum it is, if it is a sum; a target that does not
    count is a sample with the loss 0.

    Args:
        point: As in :func:`ggn_traces`.
        chunk: As in :func:`ggn_traces`.

    Returns:
        Shape ``(size,)``, zero on passive coordinates, in units of squared loss over squared
        parameters.

    Raises:
        ValueError: Batch statistics, or samples that interact in the model or in the loss; a loss
            that reads parameters.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.zeros(2, 1).double()
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(1).double())
        >>> squared_gradients(point).tolist()  # (2² + 8²) / 2
        [34.0]
    """
    _require_samples(point, "squared_gradients")
    run = LayerRun(point, chunk, "diagonals", _slopes_as_factor)
    diagonal = torch.zeros_like(point.w)
    for name, value in run().items():
        diagonal[point.layout[name].slice] = value.flatten().to(diagonal)
    diagonal *= _mean_of_squares(run.weights, run.samples)
    require_finite_diagonal(point, diagonal, "squared_gradients")
    return diagonal


def sample_slopes(point: Point, direction: Tensor) -> Tensor:
    r"""The slope :math:`\langle \nabla \ell_z, v\rangle` of each sample's loss along a direction.

    Args:
        point: As in :func:`ggn_traces`.
        direction: ``v``, shape ``(size,)``; its passive coordinates do not count.

    Returns:
        Shape ``(samples,)``, in the order of the data. The losses are those of
        :func:`squared_gradients`; the mean of the slopes is that of the objective, or their sum if
        it is a sum.

    Raises:
        ValueError: As :func:`squared_gradients`, or a direction of another shape.

    Note:
        Three gradients.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.zeros(2, 1).double()
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(1).double())
        >>> sample_slopes(point, point.w).tolist()
        [2.0, 8.0]
    """
    _require_samples(point, "sample_slopes")
    if not isinstance(direction, Tensor) or direction.shape != point.w.shape:
        raise ValueError(
            f"sample_slopes: direction must have shape {tuple(point.w.shape)}, got "
            f"{tuple(getattr(direction, 'shape', ()))}"
        )
    leaves = Leaves(point)
    views = point.layout.unflatten(direction.to(point.w))
    tangents = [views[name] for name in leaves.parameters]

    def run():
        readout, found, weights = None, [point.w.new_zeros(0)], []
        for batch in leaves.batches():
            readout = readout or make_plan(leaves, batch).readout
            outputs = leaves.call(batch)
            weights.append(normaliser(point.objective.loss, outputs, batch.targets))
            slopes = _slopes(
                point.objective.loss, outputs, batch.targets, readout, batch.n
            )
            rates = _rates(readout.tensors(outputs), leaves, tangents)
            found.append((slopes * readout.rows(rates, batch.n)).sum(1))
        return torch.cat(found).detach(), weights

    def local():
        with torch.enable_grad(), twice_differentiable(), point.objective._preserved(
            point.w
        ):
            return point.objective._within(point.w, run)

    slopes, weights = point.objective._processes.concatenate(
        "the samples' slopes", local, point=point.w, direction=direction
    )
    total = divisor(weights)
    return slopes if weights[0] is None else slopes * (len(slopes) / total)


def _rates(
    tensors: list[Tensor], leaves: Leaves, tangents: list[Tensor]
) -> list[Tensor]:
    """The outputs' derivatives along a direction: the transpose of the transposed product."""
    seeds = [torch.zeros_like(t, requires_grad=True) for t in tensors]
    wanted = list(leaves.parameters.values())
    pulled = torch.autograd.grad(
        tensors, wanted, seeds, create_graph=True, materialize_grads=True
    )
    return torch.autograd.grad(pulled, seeds, tangents, materialize_grads=True)


def _slopes_as_factor(loss, outputs, targets, readout: Readout, n: int) -> LossFactor:
    """A column a sample whose square is that of its gradient."""
    slopes = _slopes(loss, outputs, targets, readout, n)
    return LossFactor(((1.0, slopes[:, None, :, None]),), 1)


def _slopes(loss, outputs, targets, readout: Readout, n: int) -> Tensor:
    """The derivatives of ``loss · normaliser`` in the outputs, shape ``(n, outputs)``."""
    with torch.enable_grad():
        tensors = [t.detach().requires_grad_() for t in readout.tensors(outputs)]
        rebuilt = readout.replace(outputs, tensors)
        value, weight = loss(rebuilt, targets), normaliser(loss, rebuilt, targets)
        if weight is not None and not float(
            weight
        ):  # nothing counts: no mean of nothing
            return readout.rows([torch.zeros_like(t) for t in tensors], n)
        grads = torch.autograd.grad(
            value if weight is None else value * weight, tensors, materialize_grads=True
        )
    return readout.rows(grads, n)


def _mean_of_squares(weights: list, samples: int) -> float:
    """From ``Σ (gradients of loss · normaliser)² / Σ normaliser`` to a mean over samples."""
    if weights[0] is None:
        return 1 / samples
    return samples / float(sum(weights))


def _require_samples(point, caller: str) -> None:
    """Refuse where a sample has no loss of its own.

    Raises:
        TypeError: No point.
        ValueError: Batch statistics, a loss that reads parameters, or one that couples samples.
    """
    require_point(point, caller)
    require_separate_samples(point.objective.model)
    point.objective._processes.gather(
        "single samples", lambda: _require_own_losses(point, caller)
    )


def _require_own_losses(point: Point, caller: str) -> None:
    """The same on this process's first batch, if there is one."""
    leaves, loss = Leaves(point), point.objective.loss
    first = next(leaves.batches(), None)
    if first is None:
        return
    with torch.no_grad(), point.objective._preserved(point.w):
        batch = three_of(first)
        outputs = point.objective._within(point.w, lambda: leaves.call(batch))
        inside = parameters_in_loss(point, outputs, batch.targets)
    if inside:
        raise ValueError(
            f"{caller}: the loss reads {next(iter(inside))!r} itself, which is no sample's; leave "
            "the penalty out"
        )
    with torch.enable_grad(), point.objective._preserved(point.w):
        plan = point.objective._within(point.w, lambda: make_plan(leaves, batch))
        if plan.by_chunk:
            return
        whole = _slopes(loss, outputs, batch.targets, plan.readout, 3)
        part = leaves.call(one := batch.take([1]))
        alone = _slopes(loss, part, one.targets, plan.readout, 1)
    if (whole[1] - alone[0]).abs().max() > 1e-4 * whole.abs().max():
        raise ValueError(
            f"{caller}: the loss couples the samples of a batch, so no sample has its own"
        )
