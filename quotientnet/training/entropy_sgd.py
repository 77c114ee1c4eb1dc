"""Entropy-SGD (Chaudhari et al.): the gradient of the local entropy, by Langevin dynamics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from quotientnet.options import grown, require_count, require_number
from quotientnet.training.neighbours import Neighbours
from quotientnet.training.wrapper import Wrapper

__all__ = ["EntropySGD"]


class EntropySGD(Wrapper):
    r"""Entropy-SGD: the step is made with :math:`w - \mu`, where μ is an average over

    .. math:: x' \leftarrow x' - \eta' \left(\nabla f(x') - \gamma (w - x')\right)
              + \sqrt{\eta'} \, \epsilon \, N(0, I), \qquad
              \mu \leftarrow \alpha \mu + (1 - \alpha) x',

    L steps that start from ``w`` (Algorithm 1 of [Chaudhari2017]_). There the gradient of the
    negative local entropy is :math:`\gamma (w - \mu)`; γ is left out here, as in the authors'
    program, so that the learning rate of ``base`` stands for the product of theirs and γ: one of 1
    without momentum moves ``w`` to μ. γ may grow by a factor each step, which is called scoping.
    Weight decay is left to ``base``, and takes no part in the inner steps; these have no momentum.

    The closure may draw a new batch each time that it is called, as in the paper, or use one batch.
    Unlike elsewhere the inner steps go on drawing random numbers: a closure that draws its batch
    from torch's global generator draws a new one for each, and so does dropout its mask. Running
    statistics are updated once, by the call at ``w``.

    Args:
        module: The module that is trained.
        base: Any torch optimizer of its parameters; it makes the outer steps.
        inner_steps: L; 20 in the paper.
        inner_lr: η'; 0.1 in the paper.
        gamma: γ at the first step. The authors' program takes 1e-4 for LeNet on MNIST and 0.03 for
            a convolutional network on CIFAR-10.
        growth: What γ is multiplied by after each step; 1.001 for LeNet. The inner steps diverge
            where γ η' exceeds 2.
        noise: ε, the standard deviation of the noise in units of the parameters.
        averaging: α, at least 0 and below 1; 0.75 in the paper.
        generator: The noise's source, on the device of the parameters; a fresh one with seed 0 if
            omitted. Its state is part of :meth:`state_dict`.

    Raises:
        TypeError: ``base`` is no optimizer; an option is no number.
        ValueError: An option is out of range; ``base`` moves parameters of another module.

    Note:
        ``inner_steps`` gradients a step, and memory for five vectors during it.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Linear(3, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> qn.training.EntropySGD(model, base, inner_steps=5, gamma=0.03).inner_steps
        5
    """

    def __init__(
        self,
        module: nn.Module,
        base: torch.optim.Optimizer,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        gamma: float = 1e-4,
        growth: float = 1.0,
        noise: float = 1e-4,
        averaging: float = 0.75,
        generator: torch.Generator | None = None,
    ):
        super().__init__(module, base)
        name = "EntropySGD"
        self.inner_steps = require_count(inner_steps, name, "inner_steps")
        self.inner_lr = require_number(inner_lr, name, "inner_lr", strict=True)
        self.gamma = require_number(gamma, name, "gamma")
        self.growth = require_number(growth, name, "growth", least=1.0)
        self.noise = require_number(noise, name, "noise")
        self.averaging = require_number(averaging, name, "averaging", below=1.0)
        device = next(module.parameters()).device
        self.generator = generator or torch.Generator(device).manual_seed(0)

    def gradient(self, near: Neighbours, closure: Callable) -> tuple[Tensor, Tensor]:
        """The loss at ``w``, and ``w - mu``."""
        before = self.generator.get_state()
        try:
            return self._langevin(near, closure)
        except BaseException:
            self.generator.set_state(before)
            raise

    def _langevin(self, near: Neighbours, closure: Callable) -> tuple[Tensor, Tensor]:
        gamma = grown(self.gamma, self.growth, self.steps, "EntropySGD", "gamma")
        rate = self.inner_lr
        loss, slope = near.here(closure)
        x, mean, other = near.w.clone(), near.w.clone(), torch.empty_like(near.w)
        for k in range(self.inner_steps):
            if k:
                slope = near.at(x, closure, replay=False)[1]
            slope.add_(torch.sub(x, near.w, out=other), alpha=gamma)
            x.sub_(slope, alpha=rate)
            other.normal_(generator=self.generator)
            x.add_(other, alpha=sqrt(rate) * self.noise)
            mean.lerp_(x, 1 - self.averaging)
        return loss, torch.sub(near.w, mean, out=other)

    def state_dict(self) -> dict:
        """As of any wrapper, with the state of the noise's generator."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a saved state, bit for bit."""
        if isinstance(state_dict, Mapping) and "generator" in state_dict:
            try:
                torch.Generator(self.generator.device).set_state(state_dict["generator"])
            except (TypeError, RuntimeError) as error:
                raise ValueError(
                    "EntropySGD.load_state_dict: 'generator' is no state of a torch.Generator: "
                    f"{error}"
                ) from error
        super().load_state_dict(state_dict)
        self.generator.set_state(state_dict["generator"])
