"""Adaptive sharpness-aware minimization (Kwon et al.): a neighbourhood scaled by the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quotientnet.options import require_number
from quotientnet.training.neighbours import Neighbours
from quotientnet.training.sam import gradient_at_worst
from quotientnet.training.wrapper import Wrapper

__all__ = ["ASAM"]


class ASAM(Wrapper):
    r"""Adaptive sharpness-aware minimization: the step is made with the gradient at

    .. math:: w + \rho \, \frac{T_w^2 \nabla f(w)}{\|T_w \nabla f(w)\|}, \qquad
              T_w = \operatorname{diag}(|w| + \eta),

    the worst point of the neighbourhood of :func:`~quotientnet.sharpness.adaptive_sharpness` to
    first order (Algorithm 1 of [Kwon2021]_, elementwise, p = 2). With ``eta = 0`` and biases scaled
    the point moves with ``w`` under every scaling that leaves the function unchanged; the step that
    ``base`` makes does not. The rest is as in :class:`SAM`.

    Args:
        module: The module that is trained.
        base: Any torch optimizer of its parameters; it makes the steps.
        rho: ρ, relative to the size of each weight; 0.5 in the paper.
        eta: η, in units of the parameters; 0.01 in the paper.
        biases: Whether parameters named ``bias`` are scaled, too, as by the elementwise operator of
            the paper. Its authors' program does not: it takes 1 in place of ``|w| + eta``.

    Raises:
        TypeError: ``base`` is no optimizer; ``rho`` or ``eta`` no number.
        ValueError: ``rho`` or ``eta`` is negative or infinite; ``base`` moves parameters of another
            module.

    Note:
        2 gradients a step.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Linear(3, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> qn.training.ASAM(model, base, rho=0.5).param_groups is base.param_groups
        True
    """

    def __init__(
        self,
        module: nn.Module,
        base: torch.optim.Optimizer,
        rho: float = 0.5,
        eta: float = 0.01,
        *,
        biases: bool = True,
    ):
        super().__init__(module, base)
        self.rho = require_number(rho, "ASAM", "rho")
        self.eta = require_number(eta, "ASAM", "eta")
        self._unscaled = [
            entry.slice
            for entry in self.layout.entries
            if not biases and entry.name.rpartition(".")[2] == "bias"
        ]

    def gradient(self, near: Neighbours, closure: Callable) -> tuple[Tensor, Tensor]:
        """The loss at ``w``, and the gradient at the worst neighbour."""
        scales = near.w.abs() + self.eta
        for piece in self._unscaled:
            scales[piece] = 1
        return gradient_at_worst(near, closure, self.rho, scales)
