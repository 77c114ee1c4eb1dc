"""A private float64 copy of a model, as a function of its parameters and inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout

__all__ = ["Replica", "drawn_again"]

EXACT = 1e-30
"""The ``eps`` that stands in for 0, which batch normalisation refuses in train mode."""


class Replica:
    """A model's outputs and running statistics at any point, in float64; the model is not touched.

    Args:
        model: Any module; its copy has the same mode.
        layout: Its coordinates.
        exact: Whether normalisations are taken with an ``eps`` so small that it has no effect.
    """

    def __init__(
        self, model: nn.Module, layout: ParameterLayout, *, exact: bool = True
    ):
        self.layout = layout
        layout.flatten(model)  # refuses a model with another layout
        self.model = copy.deepcopy(model, _loose_tensors(model)).double()
        self.model.requires_grad_(False)
        self.w = layout.flatten(self.model)
        self._buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        self.normalisations = [
            module
            for module in self.model.modules()
            if isinstance(module, _NORMALISATIONS) and getattr(module, "eps", None)
        ]
        if exact:
            for module in self.normalisations:
                module.eps = EXACT

    @torch.no_grad()
    def run(
        self, w: Tensor, args: tuple, kwargs: Mapping
    ) -> tuple[list[Tensor], Tensor]:
        """The floating-point outputs at ``w``, and the running statistics after the forward.

        Random numbers, as in dropout, are the same at each call.
        """
        self.move(w)
        outputs = self.forward(args, kwargs)
        return outputs, self.layout.flatten(self.model)[self.layout.parameter_size :]

    def move(self, w: Tensor) -> None:
        """Set parameters and running statistics to ``w``, other buffers as they were."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
            self.layout.assign(self.model, w.double())

    def forward(self, args: tuple, kwargs: Mapping) -> list[Tensor]:
        """The floating-point outputs where the copy is now."""
        devices = [self.w.device] if self.w.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            outputs = self.model(*_copied(args), **_copied(dict(kwargs)))
        outputs = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
        outputs = [t for t in outputs if t.is_floating_point()]
        if not outputs:
            raise ValueError(
                f"verify: {type(self.model).__name__} returned no floating-point tensor"
            )
        return outputs


def _loose_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Copies of tensors that modules hold as plain attributes, which may have a history."""
    held = (value for module in model.modules() for value in vars(module).values())
    return {
        id(t): t.detach().clone()
        for t in held
        if isinstance(t, Tensor) and not t.is_leaf
    }


_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip


def _copied(arguments):
    """Tensors among the arguments copied, the floating ones in float64."""
    return tree_map_only(
        Tensor,
        lambda t: t.detach().clone().double() if t.is_floating_point() else t.clone(),
        arguments,
    )


def drawn_again(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers in place of floating-point inputs; others drawn from their own values."""
    if x.is_floating_point():
        return 2 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(
            x.device
        )
    place = torch.randint(max(x.numel(), 1), x.shape, generator=generator)
    return x.reshape(-1)[place.to(x.device)] if x.numel() else x
