"""Wrappers around a module that compute the same function: the module inside."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["eagerly", "unwrapped"]


def unwrapped(model):
    """The module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``, whose
    tensors have the names that the user gave them; anything else as it is."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(model, nn.Module) and type(model).__name__ == "OptimizedModule":
            model = model._orig_mod
        else:
            return model


def eagerly(*functions):
    """Without compiled code, which has no second derivatives, where one of the functions is
    compiled, or a module inside of one. Elsewhere nothing changes: operations of higher order, as
    ``scan``, compile what they are given and do not run without."""
    if "torch._dynamo" in sys.modules and any(map(_has_compiled_code, functions)):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _has_compiled_code(function) -> bool:
    if not isinstance(function, nn.Module):
        return hasattr(function, _COMPILED)
    return any(
        module._compiled_call_impl is not None
        or hasattr(type(module).forward, _COMPILED)
        or any(callable(v) and hasattr(v, _COMPILED) for v in vars(module).values())
        for module in function.modules()
    )


_COMPILED = "_torchdynamo_orig_callable"
