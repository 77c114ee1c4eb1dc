"""Copies of a module's and an optimizer's state, to go back to."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

__all__ = ["LastGood"]


class LastGood:
    """The state of a module, an optimizer and a schedule at the last step known to be good.

    A step begins with :meth:`begin`, before anything is changed, and is known to be good once its
    loss and gradients are: :meth:`keep`, before the parameters move.

    Args:
        module: Parameters and buffers are kept, in memory of their own.
        optimizer: Its ``state_dict`` is kept.
        scheduler: So is its, if there is one.
    """

    def __init__(self, module: nn.Module, optimizer, scheduler=None):
        self._others = [optimizer] if scheduler is None else [optimizer, scheduler]
        self._module, self._own = module, list(module.parameters())
        self._parameters = [p.detach().clone() for p in self._own]
        self.begin()
        self.keep()

    @torch.no_grad()
    def begin(self) -> None:
        """A step begins: buffers are kept, as a forward changes them before it is judged."""
        self._started = [b.clone() for b in self._module.buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        """Where the step began is good."""
        for kept, parameter in zip(self._parameters, self._own):
            kept.copy_(parameter)
        self._buffers = self._started
        self._states = None  # gives memory back before more is taken
        self._states = [_copy(o.state_dict()) for o in self._others]

    @torch.no_grad()
    def undo_step(self) -> None:
        """Go back to where the step began, if nothing but buffers was changed in it."""
        for buffer, kept in zip(self._module.buffers(), self._started):
            buffer.copy_(kept)

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to where the last good step began."""
        for parameter, kept in zip(self._own, self._parameters):
            parameter.copy_(kept)
        for buffer, kept in zip(self._module.buffers(), self._buffers):
            buffer.copy_(kept)
        for other, state in zip(self._others, self._states):
            other.load_state_dict(_copy(state))


def _copy(state):
    """A deep copy, quick for dicts, lists and tuples of tensors."""
    if isinstance(state, Tensor):
        return state.clone()
    if type(state) is dict:
        return {key: _copy(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(_copy, state))
    return deepcopy(state)
