"""Each use of a parameter in a forward pass: what went in, and the edge of what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Use", "Recorder"]


@dataclass
class Call:
    """The arguments of a function that matter to the derivatives in its parameters.

    Attributes:
        kind: The rule that applies.
        x: The input.
        weight: What multiplies it, maybe a parameter.
        bias: What is added, maybe a parameter.
        options: What else the rule needs.
    """

    kind: str
    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None = None
    options: dict = field(default_factory=dict)

    def input_entries(self, out: Tensor) -> int:
        """How many entries a rule reads of the input: those of a convolution's windows."""
        if self.x is None:
            return 0
        if self.kind == "convolution":
            channels, *window = self.weight.shape[1:]
            positions = out.numel() // self.weight.shape[0]
            return positions * channels * self.options["groups"] * prod(window)
        return self.x.numel()


@dataclass
class Use:
    """A call with a parameter among its arguments.

    Attributes:
        call: The call, its input detached.
        roles: The parameter's name, by its role: ``weight`` or ``bias``.
        edge: Where the derivative in the output arrives.
        out: The output's values, if they are kept.
        version: How often the input had been written to.
    """

    call: Call
    roles: dict[str, str]
    edge: GradientEdge
    out: Tensor | None
    version: int

    @property
    def key(self) -> tuple:
        """What must be the same in every forward pass."""
        return self.call.kind, tuple(self.roles.items())


class Recorder(TorchFunctionMode):
    """Records the uses of parameters while it is active.

    Args:
        parameters: The leaves, by name.
        keep_outputs: Whether to keep outputs' values.
    """

    def __init__(self, parameters: Mapping[str, Tensor], keep_outputs: bool = False):
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}
        self._keep, self.uses = keep_outputs, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        bind = _CALLS.get(func)
        if bind is not None and isinstance(out, Tensor) and out.requires_grad:
            call = bind(*args, **kwargs)
            if call is not None:
                self._record(call, out)
        return out

    def _record(self, call: Call, out: Tensor) -> None:
        roles = {
            role: self._names[id(tensor)]
            for role, tensor in (("weight", call.weight), ("bias", call.bias))
            if id(tensor) in self._names
        }
        if not roles:
            return
        x, version = call.x, 0
        if x is not None:
            version, call.x = x._version, x.detach()
        kept = out.detach() if self._keep else None
        edge = get_gradient_edge(out)
        self.uses.append(Use(call, roles, edge, kept, version))


def _linear(input, weight, bias=None):
    return Call("linear", input, weight, bias)


def _addmm(input, mat1, mat2, *, beta=1, alpha=1, out=None):
    if (beta, alpha) != (1, 1) or out is not None or input.ndim != 1:
        return None
    return Call("linear", mat1, mat2, input, {"transposed": True})


def _matmul(input, other, *, out=None):
    if not isinstance(other, Tensor) or other.ndim != 2 or input.ndim < 2:
        return None
    return Call("linear", input, other, None, {"transposed": True})


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return Call("convolution", input, weight, bias, options)


def _transposed(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    options["output_padding"] = output_padding
    return Call("transposed convolution", input, weight, bias, options)


def _embedding(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0,
    scale_grad_by_freq=False, sparse=False,
):  # fmt: skip
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return Call("embedding", input, weight, None, {"padding": padding_idx})


def _scaling(
    x, weight, bias, factor: Callable[[Tensor], Tensor] | None, channel: bool = False
):
    """``factor(x) · weight + bias``, entry by entry."""
    return Call("scaling", x, weight, bias, {"factor": factor, "channel": channel})


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return _scaling(
        input, weight, bias, lambda x: F.layer_norm(x, normalized_shape, eps=eps)
    )


def _rms_norm(input, normalized_shape, weight=None, eps=None):
    return _scaling(
        input, weight, None, lambda x: F.rms_norm(x, normalized_shape, eps=eps)
    )


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    return _scaling(
        input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps), True
    )


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if training:
        return None
    statistics = running_mean.detach(), running_var.detach()
    return _scaling(
        input, weight, bias, lambda x: F.batch_norm(x, *statistics, eps=eps), True
    )


def _instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None,
    use_input_stats=True, momentum=0.1, eps=1e-5,
):  # fmt: skip
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _scaling(input, weight, bias, lambda x: F.instance_norm(x, eps=eps), True)


def _prelu(input, weight):
    return _scaling(input, weight, None, lambda x: x.clamp(max=0), weight.numel() > 1)


def _multiply(input, other, *, out=None):
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    if other.is_leaf and other.requires_grad:
        return _scaling(input, other, None, lambda x: x)
    return _scaling(other, input, None, lambda x: x)


def _add(input, other, *, alpha=1, out=None):
    if alpha != 1 or not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    bias = other if other.is_leaf and other.requires_grad else input
    return _scaling(None, None, bias, None)


_CALLS = {
    F.linear: _linear, torch.addmm: _addmm, torch.matmul: _matmul, torch.mm: _matmul,
    torch.Tensor.matmul: _matmul, torch.Tensor.mm: _matmul,
    F.conv1d: _convolution, F.conv2d: _convolution, F.conv3d: _convolution,
    F.conv_transpose1d: _transposed, F.conv_transpose2d: _transposed,
    F.conv_transpose3d: _transposed, F.embedding: _embedding, F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm, F.group_norm: _group_norm, F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm, F.prelu: _prelu, torch.prelu: _prelu,
    torch.mul: _multiply, torch.Tensor.mul: _multiply, torch.add: _add,
    torch.Tensor.add: _add,
}  # fmt: skip
