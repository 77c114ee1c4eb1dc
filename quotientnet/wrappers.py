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


def eagerly():
    """Without compiled code, which has no second derivatives, in modules that are compiled in
    place or inside; where nothing has been compiled, nothing is imported for it."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
