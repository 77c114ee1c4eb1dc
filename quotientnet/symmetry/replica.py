"""A private float64 copy of a model, as a function of its parameters and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout

__all__ = ["Replica", "Degenerate", "drawn_again"]

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
        self._move(w)
        outputs = self._forward(args, kwargs)
        return outputs, self.layout.flatten(self.model)[self.layout.parameter_size :]

    def derivative(
        self, w: Tensor, args: tuple, kwargs: Mapping, weigh: Callable
    ) -> Tensor:
        """The derivative by ``w``, shape ``(n,)``, of a weighted sum of the outputs.

        It is that of the function, through ``detach`` and ``no_grad`` as well; running
        statistics take
        part in eval mode.

        Raises:
            Degenerate: A channel is constant where it is to be normalised.
        """
        self._move(w)
        tensors = dict(self.model.named_parameters())
        if not self.model.training:
            tensors |= dict(self.model.named_buffers())
        leaves = {
            e.name: tensors[e.name] for e in self.layout.entries if e.name in tensors
        }
        try:
            with torch.enable_grad():
                for leaf in leaves.values():
                    leaf.requires_grad_()
                with _Differentiable():
                    outputs = self._forward(args, kwargs)
                total = sum((y * weigh(y)).sum() for y in outputs)
                slopes = torch.autograd.grad(
                    total,
                    list(leaves.values()),
                    allow_unused=True,
                    materialize_grads=True,
                )
        finally:
            for leaf in leaves.values():
                leaf.requires_grad_(False)
        slopes = dict(zip(leaves, slopes))
        return torch.cat(
            [
                slopes[e.name].reshape(-1) if e.name in slopes else w.new_zeros(e.numel)
                for e in self.layout.entries
            ]
        )

    def _move(self, w: Tensor) -> None:
        """Set parameters and running statistics to ``w``, other buffers as they were."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
            self.layout.assign(self.model, w.double())

    def _forward(self, args: tuple, kwargs: Mapping) -> list[Tensor]:
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


class Degenerate(ArithmeticError):
    """A channel is constant where it is to be normalised."""


class _Differentiable(TorchFunctionMode):
    """Derivatives of the function computed, whatever the module hides from autograd.

    Normalisation by fixed statistics is plain arithmetic, so that it has derivatives by them. Where
    channels are normalised by their own statistics, constant ones are refused.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch._C._set_grad_enabled:
            return None
        if function in (Tensor.detach, torch.detach, Tensor.data.__get__):
            return args[0]
        if function is F.batch_norm:
            return _batch_norm(*args, **kwargs or {})
        if function is F.instance_norm:
            return _instance_norm(*args, **kwargs or {})
        return function(*args, **kwargs or {})


def _batch_norm(
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    if training:
        _refuse_constant(x, [a for a in range(x.ndim) if a != 1])
        return F.batch_norm(
            x, running_mean, running_var, weight, bias, True, momentum, eps
        )
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - running_mean.view(shape)) * (running_var.view(shape) + eps).rsqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if not use_input_stats:
        return _batch_norm(
            x, running_mean, running_var, weight, bias, False, momentum, eps
        )
    _refuse_constant(x, range(2, x.ndim))
    return F.instance_norm(
        x, running_mean, running_var, weight, bias, True, momentum, eps
    )


def _refuse_constant(x: Tensor, axes) -> None:
    variance = x.detach().var(tuple(axes), correction=0)
    if (variance <= 1e-20 * x.detach().square().mean(tuple(axes))).any():
        raise Degenerate("a channel is constant where it is to be normalised")


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
