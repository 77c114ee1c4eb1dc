"""Sharpness-aware minimization (Foret et al.): the gradient at the worst neighbour."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quotientnet.options import require_number
from quotientnet.training.neighbours import Neighbours
from quotientnet.training.wrapper import Wrapper

__all__ = ["SAM", "gradient_at_worst"]


class SAM(Wrapper):
    r"""Sharpness-aware minimization: the step is made with the gradient at

    .. math:: w + \rho \, \frac{\nabla f(w)}{\|\nabla f(w)\|},

    the worst point of the ball of radius ρ to first order (Algorithm 1 of [Foret2021]_ with p = 2).
    Both gradients are of one batch, with the same masks of dropout; running statistics are updated
    once, at ``w``. Weight decay is left to ``base``: it acts at ``w`` and takes no part in the
    search. Where the gradient is zero, it is what ``base`` is given.

    Args:
        module: The module that is trained.
        base: Any torch optimizer of its parameters; it makes the steps.
        rho: ρ, in units of the parameters; 0.05 in the paper.

    Raises:
        TypeError: ``base`` is no optimizer; ``rho`` no number.
        ValueError: ``rho`` is negative or infinite; ``base`` moves parameters of another module.

    Note:
        2 gradients a step.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> torch.nn.init.ones_(model.weight)
        Parameter containing:
        tensor([[1.]], dtype=torch.float64, requires_grad=True)
        >>> optimizer = qn.training.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model.weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure)
        tensor(1., dtype=torch.float64)
        >>> round(model.weight.item(), 9)  # 1 - 0.1 · 2 (1 + 0.5)
        0.7
    """

    def __init__(
        self, module: nn.Module, base: torch.optim.Optimizer, rho: float = 0.05
    ):
        super().__init__(module, base)
        self.rho = require_number(rho, "SAM", "rho")

    def gradient(self, near: Neighbours, closure: Callable) -> tuple[Tensor, Tensor]:
        """The loss at ``w``, and the gradient at the worst neighbour."""
        return gradient_at_worst(near, closure, self.rho)


def gradient_at_worst(
    near: Neighbours, closure: Callable, rho: float, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""The loss at ``w``, and the gradient where the loss is worst to first order in
    :math:`\|T^{-1} \delta\| \leq \rho`, which is :math:`\delta = \rho T^2 g / \|T g\|`.

    Args:
        near: The neighbours, entered.
        closure: The loss.
        rho: The radius.
        scales: The diagonal of ``T``, shape ``(n,)``; overwritten. Ones if omitted.
    """
    loss, g = near.here(closure)
    size = g.norm() if scales is None else (g * scales).norm()
    if not size:
        return loss, g
    step = g if scales is None else g.mul_(scales.square_())
    return loss, near.at(torch.add(near.w, step * (rho / size)), closure)[1]
