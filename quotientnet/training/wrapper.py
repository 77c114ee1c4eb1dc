"""An optimizer around another one: it makes the gradient, the other makes the step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.training.binding import BoundParameter
from quotientnet.training.neighbours import Neighbours

__all__ = ["Wrapper"]


class Wrapper(torch.optim.Optimizer):
    """What optimizers have in common that replace the gradient and leave the step to another.

    A member writes :meth:`gradient`. Learning rates, momentum and weight decay are those of the
    optimizer inside, whose parameter groups are this one's, so that schedulers take either.

    Args:
        module: The module that is trained.
        base: Any torch optimizer of the module's parameters; it makes the steps.
        layout: The coordinates; by default all trainable parameters.

    Raises:
        TypeError: ``base`` is no optimizer (a class, say).
        ValueError: A layout of another model, or one that lacks parameters which ``base`` moves.
    """

    def __init__(
        self,
        module: nn.Module,
        base: torch.optim.Optimizer,
        layout: ParameterLayout | None = None,
    ):
        name = type(self).__name__
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(
                f"{name}: base must be an optimizer, such as torch.optim.SGD(module.parameters(), "
                f"lr=0.1), got {base!r}"
            )
        layout = layout or ParameterLayout.from_module(module)
        self._neighbours = Neighbours(module, layout, name)
        self._known = {id(p) for n, p in module.named_parameters() if n in layout}
        _require_covered(self._known, base, name)
        self.base, self.layout, self.steps = base, layout, 0
        super().__init__(base.param_groups, {})
        self._share()

    @abstractmethod
    def gradient(
        self, near: Neighbours, closure: Callable, *others: Callable
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient, shape ``(n,)``, that the optimizer inside is given."""

    @torch.no_grad()
    def step(self, closure: Callable, *others: Callable) -> Tensor:
        """One step.

        Args:
            closure: Zeroes the gradients, computes the loss, calls ``backward()`` and returns it.
                It is called several times, and must use one batch.
            others: Closures of other batches, where a member takes any.

        Returns:
            The loss at the parameters before the step.

        Raises:
            TypeError: The closure returns no loss.
            FloatingPointError: A loss or gradient is NaN or infinite. Nothing is changed.
        """
        for each in (closure, *others):
            if not callable(each):
                raise TypeError(
                    f"{type(self).__name__}.step: needs a closure, which zeroes the gradients, "
                    f"calls backward() and returns the loss; got {each!r}"
                )
        _require_covered(self._known, self.base, type(self).__name__)
        with self._neighbours as near:
            loss, gradient = self.gradient(near, closure, *others)
        self._neighbours.set_gradient(gradient)
        self.base.step()
        self.steps += 1
        return loss

    def state_dict(self) -> dict:
        """The state of the optimizer inside, and the number of steps."""
        return {"base": self.base.state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a saved state, bit for bit."""
        self.base.load_state_dict(state_dict["base"])
        self._share()
        self.steps = state_dict["steps"]

    def _share(self) -> None:
        """Parameter groups and state are those of the optimizer inside."""
        self.param_groups, self.state = self.base.param_groups, self.base.state


def _require_covered(known: set[int], base, name: str) -> None:
    """Refuse an optimizer that moves what is not in the layout: its gradient would be any."""
    for group in base.param_groups:
        for parameter in group["params"]:
            if id(parameter) in known or not parameter.requires_grad:
                continue
            if not isinstance(parameter, BoundParameter):
                raise ValueError(
                    f"{name}: base moves a parameter of shape {tuple(parameter.shape)} that is "
                    "not among the module's in the layout; make base from module.parameters(), and "
                    f"a new {name} when parameters are no longer frozen"
                )
