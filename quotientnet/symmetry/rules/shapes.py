"""Rules of operations that move entries; they run literally on index tensors."""

from __future__ import annotations

from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.chosen import choose
from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import PINNED, ZERO, LogScale, scales_among

__all__ = ["MOVES", "move"]

MOVES = (
    "view reshape _unsafe_view permute transpose t numpy_T mT matrix_H movedim moveaxis "
    "swapaxes swapdims flatten unflatten squeeze unsqueeze expand broadcast_to repeat tile "
    "repeat_interleave select slice narrow split split_with_sizes chunk unbind "
    "tensor_split roll flip rot90 diagonal unfold pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle ravel atleast_1d atleast_2d atleast_3d adjoint mH hsplit vsplit dsplit "
    "unsafe_split unsafe_split_with_sizes unsafe_chunk"
).split()
"""Operations whose result holds entries of their first argument."""


def move(operation, x: LogScale, args, kwargs):
    """The operation applied to ``x``'s index tensors."""
    shape = torch.empty(x.shape, dtype=torch.int64, device="meta")
    try:
        example = operation(shape, *args, **kwargs)
    except (RuntimeError, NotImplementedError):  # it needs values
        example = operation(
            torch.zeros((), dtype=torch.int64).expand(x.shape), *args, **kwargs
        )
    if isinstance(example, Tensor):
        return x.map(lambda t: operation(t, *args, **kwargs))
    return [
        x.map(lambda t, i=i: operation(t, *args, **kwargs)[i])
        for i in range(len(example))
    ]


def _register(name: str) -> None:
    # Index tensors have other strides than the tensors they stand for: their view may be a copy.
    as_view = name in ("view", "_unsafe_view")
    operation = getattr(torch.ops.aten, "reshape" if as_view else name)

    @rule(f"aten::{name}")
    def moving(call, x, *args, **kwargs):
        """Moves entries: runs literally on the numbers of their unknowns."""
        by_data = next(scales_among([args, kwargs]), None) is not None
        if by_data or any(isinstance(a, torch.dtype) for a in args):
            return call.unsupported(x, *args, *kwargs.values())
        return move(operation, x, args, kwargs)


for _name in MOVES:
    if hasattr(torch.ops.aten, _name):
        _register(_name)


@rule("aten::index")
def index(call, x, indices):
    """Entries at places that the data choose are alike."""
    by_data = [a for a, i in enumerate(indices) if isinstance(i, LogScale)]
    if len(indices) == 1 and by_data and isinstance(indices[0], Choice):
        places = indices[0].map(lambda t: t[(..., *[None] * (len(x.shape) - 1))])
        return choose(
            call.equations, call.scale(x).map(lambda t: t.movedim(0, -1)), places
        )
    x = call.equations.uniform(call.scale(x), by_data) if by_data else call.scale(x)
    places = [_first_place(i) if a in by_data else i for a, i in enumerate(indices)]
    return move(torch.ops.aten.index, x, (places,), {})


@rule("aten::index_select", "aten::gather")
def index_along(call, x, dim, places, **kwargs):
    """Entries at places that the data choose have one scale along the axis."""
    by_data = isinstance(places, LogScale)
    if isinstance(places, Choice) and len(places.shape) == len(x.shape) > 1:
        # (..., places along dim, entries along dim)
        x = call.scale(x).map(lambda t: t.unsqueeze(dim).movedim(dim % t.ndim + 1, -1))
        others = tuple(slice(0, n) for n in places.shape)
        others = [
            slice(None) if a == dim % len(others) else s for a, s in enumerate(others)
        ]
        return choose(call.equations, x.map(lambda t: t[tuple(others)]), places)
    x = call.equations.uniform(call.scale(x), [dim]) if by_data else call.scale(x)
    operation = (
        torch.ops.aten.index_select if len(places.shape) <= 1 else torch.ops.aten.gather
    )
    return move(operation, x, (dim, _first_place(places) if by_data else places), {})


def _first_place(places: LogScale) -> Tensor:
    return torch.zeros(places.shape, dtype=torch.long)


@rule("aten::view_as", "aten::reshape_as")
def shape_of_another(call, x, other):
    """Moves entries: runs literally on the numbers of their unknowns."""
    return call.scale(x).map(lambda t: t.reshape(call.shape))


@rule("aten::expand_as")
def expand_as(call, x, other):
    """Moves entries: runs literally on the numbers of their unknowns."""
    return call.scale(x).map(lambda t: t.expand(call.shape))


def _join(name: str) -> None:
    operation = getattr(torch.ops.aten, name)

    @rule(f"aten::{name}")
    def joined(call, tensors, *args, **kwargs):
        """Moves entries of several tensors into one."""
        singles = [call.equations.single(call.scale(x)) for x in tensors]
        index = operation([x.terms[0][1] for x in singles], *args, **kwargs)
        return LogScale([(1, index)], index.shape)


for _name in ("cat", "concat", "stack", "hstack", "vstack", "dstack", "column_stack"):
    if hasattr(torch.ops.aten, _name):
        _join(_name)


@rule("aten::pad", "aten::constant_pad_nd")
def pad(call, x, pad, mode="constant", value=None):
    """Moves entries; zeros around them fit any scale, other constants none."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    x = call.equations.single(x)
    index = x.terms[0][1]
    if mode == "constant":
        padded = F.pad(index, pad, value=PINNED if value and isfinite(value) else ZERO)
    else:
        padded = F.pad(index.double(), pad, mode=mode).long()
    return LogScale([(1, padded)], padded.shape)


@rule("aten::reflection_pad1d", "aten::reflection_pad2d", "aten::reflection_pad3d")
def reflection_pad(call, x, padding):
    """Moves entries."""
    return pad(call, x, padding, "reflect")


@rule("aten::replication_pad1d", "aten::replication_pad2d", "aten::replication_pad3d")
def replication_pad(call, x, padding):
    """Moves entries."""
    return pad(call, x, padding, "replicate")


@rule("aten::tril", "aten::triu")
def triangle(call, x, diagonal=0):
    """What is left out fits any scale."""
    ones, x = torch.ones(x.shape[-2:], dtype=torch.bool), call.scale(x)
    upper = call.operation.endswith("triu")
    kept = ones.triu(diagonal) if upper else ones.tril(diagonal)
    effect = LogScale([(1, torch.where(kept, PINNED, ZERO))], x.shape)
    x = call.equations.single(call.equations.resolve_with_effect(x, effect))
    return LogScale([(1, torch.where(kept, x.terms[0][1], ZERO))], x.shape)


@rule("aten::diag_embed", "aten::diag")
def diagonal_matrix(call, x, *args, **kwargs):
    """Moves entries; zeros beside them fit any scale."""
    x = call.equations.single(call.scale(x))
    operation = getattr(torch.ops.aten, call.operation.removeprefix("aten::"))
    index = operation(x.terms[0][1] - ZERO, *args, **kwargs) + ZERO
    return LogScale([(1, index)], index.shape)


@rule("aten::block_diag")
def block_diag(call, tensors):
    """Moves entries; zeros beside them fit any scale."""
    singles = [call.equations.single(call.scale(x)).terms[0][1] for x in tensors]
    index = torch.block_diag(*(index - ZERO for index in singles)) + ZERO
    return LogScale([(1, index)], index.shape)


@rule("aten::take")
def take(call, x, places):
    """Entries at places that the data choose have one scale."""
    x = call.scale(x).map(lambda t: t.reshape(-1))
    if isinstance(places, LogScale):
        return call.spread(call.equations.uniform(x, [0]))
    return x.map(lambda t: t[places])


@rule("aten::take_along_dim")
def take_along_dim(call, x, places, dim=None):
    """Entries at places that the data choose have one scale along the axis."""
    x = call.scale(x)
    if dim is None:
        x, dim = x.map(lambda t: t.reshape(-1)), 0
    if isinstance(places, LogScale):
        return call.spread(call.equations.uniform(x, [dim]))
    return x.map(lambda t: t.take_along_dim(places, dim))


@rule("aten::meshgrid")
def meshgrid(call, tensors, indexing="ij"):
    """Each tensor along an axis of its own."""
    singles = [call.equations.single(call.scale(x)).terms[0][1] for x in tensors]
    grids = torch.meshgrid(*singles, indexing=indexing)
    return [LogScale([(1, index)], index.shape) for index in grids]


@rule("aten::cartesian_prod")
def cartesian_product(call, tensors):
    """Moves entries of several tensors into one."""
    singles = [call.equations.single(call.scale(x)).terms[0][1] for x in tensors]
    index = torch.cartesian_prod(*singles)
    return LogScale([(1, index)], index.shape)


@rule("aten::broadcast_tensors")
def broadcast_tensors(call, tensors):
    """Moves entries: runs literally on the numbers of their unknowns."""
    return [call.scale(x).map(lambda t: t.expand(call.shape)) for x in tensors]
