"""The law of an optimizer on a quotient: where it starts on the orbit makes no difference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence, Sized

import torch
from torch import Tensor, nn

from quotientnet.group import as_group
from quotientnet.options import (
    require_count,
    require_kind,
    require_module,
    require_number,
    require_seed,
)
from quotientnet.symmetry import transform
from quotientnet.testing.laws import Verdict, worst

__all__ = ["check_equivariant_training"]


def check_equivariant_training(
    make_optimizer: Callable[[nn.Module], object],
    model: nn.Module,
    group,
    batches: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    points: int = 1,
    spread: float = 1.0,
    seed: int = 0,
    tolerance: float = 1e-8,
) -> Verdict:
    r"""Whether training from equivalent points passes through equivalent networks.

    Trains copies of a model, from its own parameters and from random equivalent ones
    :math:`t \cdot w`, on the same batches and random numbers. At every step the losses must be
    the same, and the outputs on the batch; after every step also the outputs in eval mode on the
    first batch, in which running statistics count. Differences are measured by how far training has
    moved each of these, so that small steps do not hide them. Ordinary optimizers fail, with
    momentum, with adaptive rates or without; so does every one that keeps something of the
    representative.

    Args:
        make_optimizer: From a module, which it may :func:`~quotientnet.training.bind`, to an
            optimizer whose ``step`` takes a closure; or to a function of a closure that makes one
            step, with a schedule or clipping.
        model: The network; nothing of it is changed.
        group: A scaling group that leaves its function as it is, or what ``discover`` returned.
        batches: Inputs and targets, one step each.
        loss: Of outputs and targets.
        points: How many equivalent points.
        spread: Standard deviation of their group coordinates.
        seed: Of the coordinates, and of the random numbers of a step.
        tolerance: The largest difference at any step, relative to the largest change of the same
            loss or outputs in the whole run. Steps multiply rounding errors, small ones make them
            count, and the ``eps`` of a normalisation is a difference: allow for more there.

    Returns:
        The verdict; the violation is infinite where the run from an equivalent point fails, or
        where training moves nothing, and NaN where a run is no longer finite. Call ``require()`` on
        it in a test.

    Raises:
        TypeError: An argument of another kind.
        ValueError: Fewer than two batches, no points, or a group without generators.
        Exception: What the run from the model's own parameters raises.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.testing import check_equivariant_training
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> x = torch.randn(16, 2).double()
        >>> symmetry, batches = qn.discover(model, x), [(x, x[:, :1])] * 10
        >>> def riemannian(module):
        ...     w = qn.training.bind(module, qn.NodeWiseQuotient(symmetry))
        ...     return qn.training.RiemannianSGD([w], lr=0.01, momentum=0.9)
        >>> def euclidean(module):
        ...     return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        >>> criterion = torch.nn.MSELoss()
        >>> [check_equivariant_training(make, model, symmetry, batches, criterion).holds
        ...     for make in (riemannian, euclidean)]
        [True, False]
    """
    group = as_group(group, "check_equivariant_training")
    require_module(model, "check_equivariant_training", "model")
    require_kind(batches, Sized, "check_equivariant_training", "batches")
    for batch in batches:
        remedy = "pass pairs (inputs, targets)"
        require_kind(batch, Sequence, "check_equivariant_training", "each of batches", remedy)
    require_count(points, "check_equivariant_training", "points", least=0)
    require_number(spread, "check_equivariant_training", "spread")
    require_number(tolerance, "check_equivariant_training", "tolerance")
    require_seed(seed, "check_equivariant_training")
    if len(batches) < 2 or points < 1 or not group.dimension:
        raise ValueError(
            "check_equivariant_training: needs two batches or more, a point or more and a group "
            f"with generators, got {len(batches)}, {points} and {group.dimension}: it could not "
            "fail"
        )
    run = _Run(make_optimizer, batches, loss, seed)
    generator = torch.Generator().manual_seed(seed)
    reference, violation = list(run(copy.deepcopy(model))), 0.0
    moved = _moved(reference)
    for _ in range(points):
        t = group.random(spread=spread, generator=generator)
        twin = transform(copy.deepcopy(model), group, t)
        try:
            pairs = zip(reference, run(twin), strict=True)
            gaps = [_gap(a, b, moved) for a, b in pairs]
        except (ArithmeticError, ValueError, RuntimeError):
            gaps = [float("inf")]
        violation = worst(violation, *gaps)
    return Verdict("equivariant_training", violation, tolerance, seed)


class _Run:
    """A training, told as what it computes at every step."""

    def __init__(self, make_optimizer, batches, loss, seed: int):
        self.make_optimizer, self.batches = make_optimizer, batches
        self.loss, self.seed = loss, seed

    def __call__(self, model: nn.Module):
        """Per step: the loss and the outputs at its start, the outputs in eval mode at its end."""
        made = self.make_optimizer(model)
        advance = getattr(made, "step", made)
        for k, (inputs, targets) in enumerate(self.batches):
            seen = []

            def closure():
                model.zero_grad()
                outputs = model(inputs)
                value = self.loss(outputs, targets)
                require_kind(value, Tensor, "check_equivariant_training", "what loss returns")
                if not value.requires_grad:
                    raise ValueError(
                        "check_equivariant_training: the loss depends on no parameter that "
                        "requires a gradient; is the model frozen?"
                    )
                value.backward()
                seen.append((value.detach(), outputs.detach().clone()))
                return value

            with torch.random.fork_rng(devices=_devices(inputs)):
                torch.manual_seed(self.seed + k)
                advance(closure)
            yield *seen[0], _evaluated(model, self.batches[0][0])


@torch.no_grad()
def _evaluated(model: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs in eval mode; modes are given back."""
    modes = {module: module.training for module in model.modules()}
    try:
        return model.eval()(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _moved(steps: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """How far a run moved its losses, its outputs by the batch, and those in eval mode: the batches
    differ, so that what came of the last ones tells for the first two."""
    evaluated = [step[-1] for step in steps]
    outputs = (evaluated[-1] - evaluated[0]).abs().max()
    for each in evaluated:
        outputs = torch.maximum(outputs, (each - evaluated[0]).abs().max())
    losses = torch.stack([step[0] for step in steps])
    return [(losses - losses[0]).abs().max(), outputs, outputs]


def _gap(a: tuple[Tensor, ...], b: tuple[Tensor, ...], moved: list[Tensor]) -> float:
    """The largest difference of what two runs computed at one step, relative to the movement."""
    gaps = [(y - x).abs().max() / m for x, y, m in zip(a, b, moved)]
    return worst(*(torch.where(m > 0, g, torch.inf) for g, m in zip(gaps, moved)))


def _devices(inputs: Tensor) -> list:
    return [inputs.device] if inputs.is_cuda else []
