"""What products of matrices, convolutions and attention read."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from quotientnet.symmetry.nodes import name_of, shape_of
from quotientnet.symmetry.reads.registry import (
    Reading,
    anywhere,
    fitted,
    reads,
    united,
)
from quotientnet.symmetry.rules.products import axis_names

__all__ = []


@reads("linear")
def linear(reading: Reading):
    """Rows of the input, and rows of the weight."""
    mask = reading.mask
    if mask is None or len(shape_of(reading["weight"])) != 2:
        return None
    outputs = anywhere(mask, range(mask.ndim - 1)).reshape(-1)
    rows = {"weight": outputs[:, None], "bias": outputs}
    return reading.read({"input": anywhere(mask, [-1])} | rows)


_FACTORS = {
    "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"),
    "mv": ("self", "vec"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
}  # fmt: skip


@reads(*_FACTORS)
def matmul(reading: Reading):
    """Rows of the left factor, columns of the right one."""
    mask, (left, right) = reading.mask, _FACTORS[name_of(reading.node)]
    if mask is None:
        return None
    whole = mask.unsqueeze(-1) if len(shape_of(reading[right])) == 1 else mask
    whole = whole.unsqueeze(-2) if len(shape_of(reading[left])) == 1 else whole
    added = {"self": mask} if "beta" in reading.arguments else {}
    return reading.read(
        added | {left: anywhere(whole, [-1]), right: anywhere(whole, [-2])}
    )


@reads("scaled_dot_product_attention")
def attention(reading: Reading):
    """Rows of queries, all keys, channels of values."""
    mask = reading.mask
    heads = [-3] if reading["enable_gqa"] else []
    rows, values = anywhere(mask, [-1]), anywhere(mask, [-2, *heads])
    keys = anywhere(values, [-1])
    return reading.read(
        {"query": rows, "key": keys, "value": values, "attn_mask": rows}
    )


def _convolution(dims: int) -> None:
    @reads(f"conv{dims}d")
    def conv(reading: Reading):
        """Filters; of the channels of their groups, everything, or the place of a filter of 1."""
        mask, weight = reading.mask, shape_of(reading["weight"])
        if mask is None:
            return None
        mask = mask if mask.ndim == dims + 2 else mask[None]
        filters = anywhere(mask, [0, *range(2, dims + 2)])
        exact = all(k == 1 for k in weight[2:]) and _plain(reading)
        x = anywhere(mask, [] if exact else range(2, dims + 2))
        if x.shape[1] > 1:  # groups × channels
            x = x.unflatten(1, (reading["groups"], -1)).any(2)
            x = x.repeat_interleave(weight[1], 1)
        if len(shape_of(reading["input"])) == dims + 1:
            x = x[0]
        bias = filters.reshape(-1)
        filters = bias.reshape(-1, *[1] * (dims + 1))
        return reading.read({"input": x, "weight": filters, "bias": bias})


def _plain(reading: Reading) -> bool:
    """Whether a convolution has the places of its input."""
    padding, stride = reading["padding"], reading["stride"]
    none = padding in ("valid", "same") or not any(padding)
    return none and all(s == 1 for s in stride)


for _dims in (1, 2, 3):
    _convolution(_dims)


@reads("einsum")
def einsum(reading: Reading):
    """What has the same names as what is read."""
    mask, tensors = reading.mask, reading["tensors"]
    if mask is None or not all(isinstance(t, Node) for t in tensors):
        return None
    counts = [len(shape_of(t)) for t in tensors]
    names, output = axis_names(reading["equation"], counts)
    if any(len(set(own)) < len(own) for own in names):
        return None
    found: dict[Node, Tensor | None] = {}
    for tensor, own in zip(tensors, names):
        part = fitted(_along(mask, output, own), shape_of(tensor))
        found[tensor] = united(found[tensor], part) if tensor in found else part
    return found


def _along(mask: Tensor, output: list[str], own: list[str]) -> Tensor:
    """A mask with axes of some names, for a tensor with axes of others."""
    rest = [a for a, n in enumerate(output) if n not in own]
    common = [n for n in own if n in output]
    mask = anywhere(mask, rest).permute([*rest, *map(output.index, common)])
    mask = mask.reshape(mask.shape[len(rest) :])
    return mask[tuple(slice(None) if n in common else None for n in own)]
