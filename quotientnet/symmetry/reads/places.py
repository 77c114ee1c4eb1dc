"""What operations read that move entries to other places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from quotientnet.symmetry.nodes import name_of, shape_of
from quotientnet.symmetry.reads.registry import (
    Reading,
    fitted,
    reads,
    simplified,
)

__all__ = []


@reads("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel",
       "view_as", "reshape_as", "atleast_1d", "atleast_2d", "atleast_3d", literal=True)  # fmt: skip
def reshaped(reading: Reading):
    """The same entries, in order; of another tensor only its shape."""
    x, mask = _first(reading), reading.mask
    if mask is not None:
        mask = mask.expand(shape_of(reading.node)).reshape(shape_of(x))
        mask = simplified(mask)
    return _shapes(reading) | {x: mask}


@reads("expand", "broadcast_to", "expand_as", literal=True)
def expanded(reading: Reading):
    """An entry wherever it is; of another tensor only its shape."""
    x = _first(reading)
    return _shapes(reading) | {x: fitted(reading.mask, shape_of(x))}


@reads("transpose", "t", "numpy_T", "mT", "mH", "matrix_H", "adjoint", "swapaxes", "swapdims",
       "permute", "movedim", "moveaxis", "repeat", "tile", "repeat_interleave", "roll", "flip",
       "rot90", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
       literal=True)  # fmt: skip
def moved(reading: Reading):
    """Entries where they come from; none gets lost."""
    return None if reading.mask is None else picked(reading)


@reads("index", "diagonal", literal=True)
def picked(reading: Reading):
    """Entries where they come from, if places are constant; others are all read."""
    x, mask = _first(reading), reading.mask
    if x.op == "placeholder":
        return None
    shape, constants = shape_of(x), {}
    for node in reading.node.all_input_nodes:
        constants[node] = reading.constant(node) if node is not x else None
    if any(value is None for node, value in constants.items() if node is not x):
        return None
    places = torch.arange(torch.Size(shape).numel()).view(shape)
    constants[x] = places
    args, kwargs = torch.fx.node.map_arg(
        (reading.node.args, reading.node.kwargs), constants.get
    )
    result = reading.node.target(*args, **kwargs)
    if mask is not None:
        result = result[mask.expand(result.shape)]
    own = torch.zeros(places.numel(), dtype=torch.bool)
    own[result.reshape(-1)] = True
    return {x: simplified(own.view(shape))}


@reads("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split",
       "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "index_select",
       literal=True)  # fmt: skip
def along(reading: Reading):
    """Places along one axis; the others stay, and masks of them stay narrow."""
    x = _first(reading)
    shape = shape_of(x)
    dim = reading.arguments.get("dim", 0)
    others = {node: reading.constant(node) for node in reading.node.all_input_nodes}
    others.pop(x)
    if not shape or any(value is None for value in others.values()):
        return None
    axis = dim % len(shape)
    places = torch.arange(shape[axis])
    others[x] = places.view([-1 if a == axis else 1 for a in range(len(shape))])
    args, kwargs = torch.fx.node.map_arg(
        (reading.node.args, reading.node.kwargs), others.get
    )
    results = reading.node.target(*args, **kwargs)
    results = [results] if isinstance(results, Tensor) else results
    total = torch.zeros([1] * len(shape), dtype=torch.bool)
    for number, mask in reading.outputs.items():
        total = total | _scattered(results[number], mask, axis, shape)
    return {x: simplified(total)}


def _scattered(places: Tensor, mask: Tensor | None, axis: int, shape) -> Tensor:
    """The mask of what is read at places along an axis, of another mask with that axis or not."""
    if mask is None:
        mask = torch.ones((), dtype=torch.bool)
    if mask.ndim < places.ndim:
        mask = mask[(None,) * (places.ndim - mask.ndim)]
    mask = mask if places.ndim == len(shape) else mask.unsqueeze(axis)
    size = [places.numel() if a == axis else n for a, n in enumerate(mask.shape)]
    whole = [n if a == axis else m for a, (n, m) in enumerate(zip(shape, mask.shape))]
    counts = torch.zeros(whole, dtype=torch.int32)
    return counts.index_add_(axis, places.reshape(-1), mask.expand(size).int()) > 0


@reads("cat", "concat", "stack", literal=True)
def joined(reading: Reading):
    """Each tensor's part."""
    mask, tensors = reading.mask, reading["tensors"]
    if mask is None:
        return None
    found: dict[Node, Tensor | None] = {}
    dim, start, stacked = reading["dim"], 0, name_of(reading.node) == "stack"
    for tensor in tensors:
        if not isinstance(tensor, Node) or tensor in found:
            return None
        shape = shape_of(tensor)
        if len(shape) + stacked != mask.ndim:
            return None
        length = 1 if stacked else shape[dim]
        own = mask if mask.shape[dim] == 1 else mask.narrow(dim, start, length)
        start += length
        own = own.squeeze(dim) if stacked else own
        found[tensor] = fitted(own, shape)
    return found


def _shapes(reading: Reading) -> dict[Node, Tensor | None]:
    """Nothing of any argument."""
    nothing = torch.zeros((), dtype=torch.bool)
    return dict.fromkeys(reading.node.all_input_nodes, nothing)


def _first(reading: Reading) -> Node:
    """The tensor whose entries are moved."""
    return reading.node.args[0]
