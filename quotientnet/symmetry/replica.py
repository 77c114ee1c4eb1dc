"""A private float64 copy of a model, as a function of its parameters and inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from math import prod

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout, tensors_of
from quotientnet.options import require_module
from quotientnet.symmetry.exactly import Degenerate, Exact
from quotientnet.wrappers import eagerly, unwrapped

__all__ = [
    "Replica", "drawn_again", "first_line", "relative_change", "require_layout", "shapes_of",
]  # fmt: skip


def require_layout(model: nn.Module, layout: ParameterLayout, caller: str) -> None:
    """Refuse a layout whose coordinates are not the model's, and what is no model."""
    require_module(model, caller, "model")
    own = tensors_of(model)
    buffers = dict(unwrapped(model).named_buffers())
    shared = {name for name, t in own.items() if not isinstance(t, nn.Parameter)} - buffers.keys()
    for entry in layout.entries:
        if entry.name in shared:
            raise ValueError(
                f"{caller}: {entry.name!r} is the running statistic of another layer, too; give "
                "each layer a buffer of its own, or use one normalisation in both places"
            )
        if entry.name not in own or tuple(own[entry.name].shape) != entry.shape:
            got = tuple(own[entry.name].shape) if entry.name in own else "nothing"
            raise ValueError(
                f"{caller}: the layout belongs to another model: it has {entry.name!r} of shape "
                f"{entry.shape}, this {type(model).__name__} has {got}"
            )


class Replica:
    """A model's outputs and running statistics at any point, in float64; the model is not touched.

    Args:
        model: Any module; its copy has the same mode.
        layout: Its coordinates.
        caller: Named in errors.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout, caller: str):
        require_layout(model, layout, caller)
        model = unwrapped(model)
        if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise ValueError(
                f"{caller}: the model is on the meta device and has no values"
            )
        self.layout, self.caller = layout, caller
        self.model = copy.deepcopy(model, _loose_tensors(model)).double()
        self.model.requires_grad_(False)
        self.w = layout.flatten(self.model)
        self.normalises = False
        self._buffers = {name: b.clone() for name, b in self.model.named_buffers()}

    @torch.no_grad()
    def run(
        self, w: Tensor, args: tuple, kwargs: Mapping, *, exact: bool = True
    ) -> tuple[list[Tensor], Tensor]:
        """The floating-point outputs at ``w``, and the running statistics after the forward.

        Random numbers, as in dropout, are the same at each call.

        Args:
            w: A point.
            args: Positional arguments of the model.
            kwargs: Keyword arguments.
            exact: Whether normalisations are taken with an ``eps`` that has no effect.

        Raises:
            Degenerate: A channel is constant where it is to be normalised exactly.
        """
        self.move(w)
        outputs = self.forward(args, kwargs, Exact() if exact else nullcontext())
        return outputs, self.layout.flatten(self.model)[self.layout.parameter_size :]

    def move(self, w: Tensor) -> None:
        """Set parameters and running statistics to ``w``, other buffers as they were."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
            self.layout.assign(self.model, w.double())

    def forward(self, args: tuple, kwargs: Mapping, mode) -> list[Tensor]:
        """The floating-point outputs where the copy is now."""
        devices = [self.w.device] if self.w.is_cuda else []
        try:
            with torch.random.fork_rng(devices=devices), eagerly(self.model), mode:
                _seed(devices)
                outputs = self.model(*_copied(args), **_copied(dict(kwargs)))
        except Degenerate:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.caller}: the model does not run on inputs of shape "
                f"{shapes_of(args, kwargs)}: {type(error).__name__}: {first_line(error)}"
            ) from error
        self.normalises |= getattr(mode, "normalises", False)
        outputs = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
        outputs = [t for t in outputs if t.is_floating_point()]
        if not outputs:
            raise ValueError(
                f"{self.caller}: {type(self.model).__name__} returned no floating-point tensor"
            )
        return outputs

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Parameters of either sign and every size, positive running statistics."""
        pieces = []
        for entry in self.layout.entries:
            noise = torch.randn(entry.numel, generator=generator, dtype=torch.float64)
            fan = prod(entry.shape[1:]) if len(entry.shape) > 1 else 1
            pieces.append(
                (noise / 2).exp() if entry.passive else noise / max(fan, 1) ** 0.5
            )
        return torch.cat(pieces).to(self.w.device)


def _seed(devices: list[torch.device]) -> None:
    """What draws next from the global generators draws the same each time. ``torch.manual_seed``
    formats the whole stack for every kind of device that this machine does not have."""
    torch.default_generator.manual_seed(0)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".") for line in lines if line), "")


def shapes_of(*inputs) -> str:
    """The shapes of the tensors among inputs."""
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    return ", ".join(str(tuple(x.shape)) for x in tensors) or "none"


def _loose_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Copies of tensors that modules hold as plain attributes, which may have a history."""
    held = (value for module in model.modules() for value in vars(module).values())
    return {
        id(t): t.detach().clone()
        for t in held
        if isinstance(t, Tensor) and not t.is_leaf
    }


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
    return x.reshape(-1)[place.to(x.device)]


def relative_change(a: Tensor, b: Tensor) -> float:
    """The largest ``|a − b|``, by the size of each feature over the first axis.

    Features much smaller than the largest count as a millionth of it. Entries that are infinite
    in both are equal; one that is not finite in one of them only is infinitely far.
    """
    if not a.numel():
        return 0.0
    whole = a
    equal = a == b  # infinities, too
    a, b = torch.where(equal, 0.0, a), torch.where(equal, 0.0, b)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    if equal.all():
        return 0.0
    sizes = torch.where(torch.isfinite(whole), whole, 0.0).abs()
    features = sizes.amax(0, keepdim=True) if sizes.ndim > 1 else sizes.amax()
    tiny = torch.finfo(a.dtype).tiny
    return float(
        ((a - b).abs() / features.maximum(1e-6 * sizes.amax()).clamp(min=tiny)).amax()
    )
