"""What every pass over an exported graph does alike, whatever it runs the graph on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map_only

__all__ = ["INLINED", "constant", "takes"]

INLINED = {
    "wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap",
}  # fmt: skip
"""Operations that only run a graph of their own."""


def takes(rule: Callable, call, args: tuple, kwargs: Mapping) -> bool:
    """Whether a rule knows the arguments of an overload."""
    try:
        signature(rule).bind(call, *args, **kwargs)
    except TypeError:
        return False
    return True


def constant(node: Node, args: tuple, kwargs: Mapping):
    """The value of an operation on constants, which it does not touch."""
    kwargs = dict(kwargs) | ({"device": "cpu"} if "device" in kwargs else {})
    args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
    return tree_map_only(Tensor, Tensor.cpu, node.target(*args, **kwargs))
