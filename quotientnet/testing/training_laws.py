"""The law of an optimizer on a quotient: where it starts on the orbit makes no difference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quotientnet.group import as_group
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
    first batch, in which running statistics count. Ordinary optimizers fail, with momentum, with
    adaptive rates or without; so does every one that keeps something of the representative.

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
        tolerance: The largest difference at any step, relative: of a loss to that loss, of outputs
            to the largest output. Steps multiply rounding errors: allow for more in long runs.

    Returns:
        The verdict; the violation is infinite where a run fails or is no longer finite. Call
        ``require()`` on it in a test.

    Raises:
        ValueError: No batches.

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
    if not batches:
        raise ValueError("check_equivariant_training: batches is empty")
    group = as_group(group, "check_equivariant_training")
    run = _Run(make_optimizer, batches, loss, seed)
    generator = torch.Generator().manual_seed(seed)
    reference, violation = list(run(copy.deepcopy(model))), 0.0
    for _ in range(points):
        t = group.random(spread=spread, generator=generator)
        twin = transform(copy.deepcopy(model), group, t)
        try:
            gaps = [_gap(a, b) for a, b in zip(reference, run(twin), strict=True)]
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


def _gap(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    """The largest relative difference of what two runs computed at one step."""
    gaps = [
        (y - x).abs().max() / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
        for x, y in zip(a, b)
    ]
    return worst(*gaps)


def _devices(inputs: Tensor) -> list:
    return [inputs.device] if inputs.is_cuda else []
