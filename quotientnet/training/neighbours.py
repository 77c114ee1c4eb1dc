"""Losses and gradients of a closure at a module's parameters, and at others near them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout, tensors_of
from quotientnet.options import require_module

__all__ = ["Neighbours", "require_loss"]


class Neighbours:
    """A closure, as torch's optimizers take it, as a function of one flat vector.

    The closure computes a loss of the module, calls ``backward()`` and returns the loss; gradients
    are zeroed before. Used in a ``with`` statement, after which the parameters are what they were,
    whatever happens; after an exception so are the buffers, and torch's random numbers. At
    neighbours a closure draws the random numbers that it drew at the parameters themselves (one
    mask of dropout, not two) unless told to go on, and what it writes to the module's
    buffers, such as running statistics, is taken back.

    Args:
        module: The module of the closure.
        layout: The coordinates; passive ones are left alone.
        caller: Who is to be named in errors.

    Raises:
        TypeError: ``module`` is none.
        ValueError: The layout has a parameter that the module lacks, or of another shape.
    """

    def __init__(self, module: nn.Module, layout: ParameterLayout, caller: str):
        own = tensors_of(require_module(module, caller))
        self.layout, self.caller = layout, caller
        entries = [e for e in layout.entries if not e.passive]
        for entry in entries:
            found = tuple(own[entry.name].shape) if entry.name in own else "none"
            if found != entry.shape:
                raise ValueError(
                    f"{caller}: the layout is of another model: its {entry.name!r} has shape "
                    f"{entry.shape}, the module has {found}"
                )
        self._module = module
        self._parameters = {e.name: own[e.name] for e in entries}

    def __enter__(self) -> Neighbours:
        self.w = self.layout.flatten(self._module)
        self._random = _random_state(self.w.device)
        self._kept = self._random, [b.clone() for b in self._module.buffers()]
        self._before, self._settled = self._kept, False
        return self

    def __exit__(self, failed, *_) -> None:
        if failed:
            self._kept = self._before
        if failed or not self._settled:
            self._return()
        del self.w, self._random, self._kept, self._before

    def settle(self, g: Tensor) -> None:
        """Go back for good, with the gradient ``g``, shape ``(n,)``: a step may follow, which is
        undone only if it fails. Those without a gradient at the parameters themselves have none, so
        that no optimizer decays them.
        """
        self._return()
        self._settled, views = True, self.layout.unflatten(g)
        for name, parameter in self._parameters.items():
            # .data: no view to autograd, so that module.to(...) may convert it.
            parameter.grad = views[name].data if name in self._used else None

    def _return(self) -> None:
        self._move(self.w)
        _set_random_state(self.w.device, self._kept[0])
        self._give_back()

    def here(self, closure: Callable) -> tuple[Tensor, Tensor]:
        """Loss and gradient, shape ``(n,)``, at the parameters themselves; call it first.

        Raises:
            TypeError: The closure returns no scalar.
            ValueError: It computes no gradient.
            FloatingPointError: The loss or a gradient is NaN or infinite; names the parameter.
        """
        found = self._evaluate(closure, "the parameters")
        self._used = {n for n, p in self._parameters.items() if p.grad is not None}
        buffers = [b.clone() for b in self._module.buffers()]
        self._kept = _random_state(self.w.device), buffers
        return found

    def at(
        self, x: Tensor, closure: Callable, *, replay: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient at ``x``, shape ``(n,)``; raises as :meth:`here`.

        Args:
            x: The neighbour.
            closure: As in :meth:`here`.
            replay: Whether it draws the random numbers that it drew there, or goes on drawing.
        """
        self._move(x)
        del x  # a caller's temporary vector needs no memory during the evaluation
        _set_random_state(self.w.device, self._random if replay else self._kept[0])
        found = self._evaluate(closure, "a neighbour", release=True)
        if not replay:
            self._kept = _random_state(self.w.device), self._kept[1]
        self._give_back()
        return found

    @torch.no_grad()
    def _move(self, x: Tensor) -> None:
        views = self.layout.unflatten(x)
        for name, parameter in self._parameters.items():
            parameter.copy_(views[name])

    @torch.no_grad()
    def _give_back(self) -> None:
        for buffer, value in zip(self._module.buffers(), self._kept[1]):
            buffer.copy_(value)

    def _evaluate(
        self, closure: Callable, where: str, release: bool = False
    ) -> tuple[Tensor, Tensor]:
        for parameter in self._parameters.values():
            parameter.grad = None  # whether or not the closure does so
        with torch.enable_grad():
            loss = require_loss(closure(), self.caller)
        if all(p.grad is None for p in self._parameters.values()):
            raise ValueError(
                f"{self.caller}: the closure computed no gradient; call loss.backward() in it"
            )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{self.caller}: the loss at {where} is {float(loss)}; is there NaN in the batch, "
                "or is the learning rate too large? Nothing was changed"
            )
        gradient = self._gradient(release)
        if not torch.isfinite(gradient.sum()):
            names = self.layout.count(~torch.isfinite(gradient))
            if names:
                raise FloatingPointError(
                    f"{self.caller}: the gradient of {next(iter(names))!r} at {where} is NaN or "
                    "infinite. Nothing was changed"
                )
        return loss, gradient

    @torch.no_grad()
    def _gradient(self, release: bool) -> Tensor:
        """The module's gradients as a new vector, zero where it has none; ``release`` frees each
        as it is copied."""
        gradient = torch.empty_like(self.w)
        for entry, piece in zip(self.layout.entries, self.layout.split(gradient)):
            parameter = None if entry.passive else self._parameters[entry.name]
            if parameter is None or parameter.grad is None:
                piece.zero_()
                continue
            piece.view(entry.shape).copy_(parameter.grad)
            if release:
                parameter.grad = None
        return gradient


def require_loss(loss, caller: str) -> Tensor:
    """What a closure returned, detached.

    Raises:
        TypeError: It is no scalar.
    """
    if loss is None:
        raise TypeError(
            f"{caller}: the closure returned no loss; end it with 'return loss' after "
            "loss.backward()"
        )
    if not isinstance(loss, (Tensor, float)) or torch.as_tensor(loss).numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"{caller}: the closure must return a scalar loss, got {got}")
    return torch.as_tensor(loss).detach().reshape(())


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _set_random_state(device: torch.device, state) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
