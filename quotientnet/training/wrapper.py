"""An optimizer around another one: it makes the gradient, the other makes the step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.options import require_count, require_kind
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
        TypeError: ``base`` is no optimizer (a class, say), or one that calls closures itself.
        ValueError: A layout of another model, or one that lacks parameters which ``base`` moves.

    Note:
        A Riemannian optimizer as ``base`` refuses gradients that are not the loss's own, of which
        some part is along orbits: pass it ``check_invariance=False``.
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
        asked = signature(base.step).parameters.get("closure")
        if asked is not None and asked.default is Parameter.empty:
            raise TypeError(
                f"{name}: base must make a step with the gradients that it is given, but "
                f"{type(base).__name__} needs a closure to compute them itself"
            )
        layout = layout or ParameterLayout.from_module(module)
        self._neighbours = Neighbours(module, layout, name)
        super().__init__(base.param_groups, base.defaults)
        self.module, self.base, self.layout, self.steps = module, base, layout, 0
        self._share()
        self._require_covered()

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
        self._require_covered()
        with self._neighbours as near:
            loss, gradient = self.gradient(near, closure, *others)
            near.settle(gradient)
            self.base.step()
        self.steps += 1
        return loss

    def add_param_group(self, param_group: dict) -> None:
        """Add a group to the optimizer inside."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:  # torch's constructor, with the groups that base has
            super().add_param_group(param_group)

    def state_dict(self) -> dict:
        """The state of the optimizer inside, and the number of steps."""
        return {"base": self.base.state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a saved state, bit for bit.

        Raises:
            TypeError: It is no state.
            ValueError: It is another optimizer's; nothing is changed.
        """
        name = f"{type(self).__name__}.load_state_dict"
        require_kind(state_dict, Mapping, name, "state_dict")
        own = self.state_dict().keys()
        if state_dict.keys() != own:
            raise ValueError(
                f"{name}: a state of this optimizer has {', '.join(map(repr, own))}, got "
                f"{', '.join(map(repr, state_dict)) or 'nothing'}; pass what its state_dict() "
                "returned"
            )
        require_count(state_dict["steps"], name, "steps", least=0)
        self.base.load_state_dict(state_dict["base"])
        self._share()
        self.steps = state_dict["steps"]

    def __getstate__(self) -> dict:
        return self.__dict__.copy()

    def _share(self) -> None:
        """Parameter groups and state are those of the optimizer inside."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _require_covered(self) -> None:
        """Refuse to move what is not in the layout: its gradient would be any."""
        known = {id(p) for n, p in self.module.named_parameters() if n in self.layout}
        for group in self.base.param_groups:
            for parameter in group["params"]:
                bound = isinstance(parameter, BoundParameter)
                moved = parameter.bound if bound else [parameter]
                if not known.issuperset(id(p) for p in moved if p.requires_grad):
                    name = type(self).__name__
                    raise ValueError(
                        f"{name}: base moves a parameter of shape {tuple(parameter.shape)} that is "
                        "not among the module's in the layout; make base from module.parameters(), "
                        f"and a new {name} when parameters are no longer frozen"
                    )
