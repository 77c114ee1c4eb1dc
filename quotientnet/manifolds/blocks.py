"""Blocks of coordinates that share a norm, and arithmetic on them without a loop over blocks."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout

__all__ = ["Blocks"]

CHUNK = 1 << 18
"""Coordinates reduced at once, of the size of a cache."""

_RUN = 1 << 20
"""Terms of one inner product: enough for all cores, and a float32 sum good to 5e-7."""

_ONE = {dtype: torch.ones(1, dtype=dtype) for dtype in (torch.float32, torch.float64)}


class Blocks:
    """A partition of a layout's coordinates into blocks, some axes of each tensor kept.

    Keeping no axis makes the tensor one block; keeping the first, one block a filter or row;
    keeping all, one block an entry. Numbers per block are vectors of shape ``(..., count)`` in
    float64 (in the vectors' own dtype where every block is an entry).

    Args:
        layout: The coordinates.
        axes: The axes kept, by the name of the tensor.
    """

    def __init__(self, layout: ParameterLayout, axes: Mapping[str, tuple[int, ...]]):
        self.full, self.axes = layout, {
            e.name: tuple(sorted(axes[e.name])) for e in layout.entries
        }
        shapes = {
            e.name: tuple(
                s if a in self.axes[e.name] else 1 for a, s in enumerate(e.shape)
            )
            for e in layout.entries
        }
        self.layout = ParameterLayout(
            {e.name: shapes[e.name] for e in layout.entries if not e.passive},
            {e.name: shapes[e.name] for e in layout.entries if e.passive},
        )
        self.count = self.layout.size
        self.entrywise = all(shapes[e.name] == e.shape for e in layout.entries)
        self._parts = list(zip(layout.entries, self.layout.entries))
        self._sizes = [entry.numel for entry in layout.entries]
        self._counts = [block.numel for block in self.layout.entries]
        self._kinds = [_kind(entry.shape, block.shape) for entry, block in self._parts]

    @property
    def lengths(self) -> Tensor:
        """The number of coordinates in each block, shape ``(count,)``."""
        pieces = [
            torch.full((b.numel,), e.numel // max(b.numel, 1)) for e, b in self._parts
        ]
        return torch.cat(pieces)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner product of each block, shape ``(..., count)``."""
        return self.dots((x, y))[0]

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Several inner products of each block, in one pass through the vectors."""
        if self.entrywise:
            return [x * y for x, y in pairs]
        if all(t.ndim == 2 and len(t) == 1 for pair in pairs for t in pair):
            return [
                found[None] for found in self.dots(*((x[0], y[0]) for x, y in pairs))
            ]
        plain = all(t.ndim == 1 and t.is_cpu for pair in pairs for t in pair)
        if plain and not (
            torch.is_grad_enabled() and any(t.requires_grad for p in pairs for t in p)
        ):
            return self._dots_fast(pairs)
        return [
            torch.cat(
                [_dot(x[..., e.slice], y[..., e.slice], e, b) for e, b in self._parts],
                -1,
            )
            for x, y in pairs
        ]

    def _dots_fast(self, pairs) -> list[Tensor]:
        """Without gradients or batches on the CPU: in pieces that stay in the cache."""
        split = [t.split(self._sizes) for pair in pairs for t in pair]
        lefts, rights = list(zip(*split[0::2])), list(zip(*split[1::2]))

        values = [
            self._part_dots(i, xs, ys) for i, (xs, ys) in enumerate(zip(lefts, rights))
        ]
        return [torch.hstack(each).to(torch.float64) for each in zip(*values)]

    def _part_dots(self, i: int, xs, ys) -> list[Tensor]:
        """The inner products of one tensor."""
        entry, block = self._parts[i]
        if self._kinds[i] == "small":
            return [torch.dot(x, y) for x, y in zip(xs, ys)]
        if self._kinds[i] == "whole":
            return _whole_dots(xs, ys)
        if self._kinds[i] == "rows":
            return _row_dots(xs, ys, entry.numel // block.numel)
        return [_dot(x, y, entry, block) for x, y in zip(xs, ys)]

    def combine(
        self, a: Tensor | None, x: Tensor, b=None, y=None, out: Tensor | None = None
    ) -> Tensor:
        """``a ⊙ x + b ⊙ y`` with one number a block; ``a=None`` stands for 1, and without ``y``
        there is no second term.

        Args:
            a: Numbers per block, shape ``(..., count)``.
            x: Vectors, shape ``(..., n)``.
            b: Numbers per block.
            y: Vectors.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``y``, without batch
                dimensions and gradients.
        """
        a, b = (None if c is None else c.to(x.dtype) for c in (a, b))
        if self.entrywise and y is not None:
            return torch.addcmul(x if a is None else a * x, b, y, out=out)
        columns = [
            self._split(a, True),
            self._split(x),
            self._split(b, True),
            self._split(y),
        ]
        if out is not None:
            for views in zip(*columns, self._split(out)):
                _combine(*views)
            return out
        batch = torch.broadcast_shapes(
            *(t.shape[:-1] for t in (a, x, b, y) if t is not None)
        )
        pieces = [_combine(*views, None).reshape(*batch, -1) for views in zip(*columns)]
        return torch.cat(pieces, -1)

    def _split(self, t: Tensor | None, of_blocks: bool = False) -> list:
        """Per tensor, its part of a vector, or of numbers per block, in matching shapes."""
        if t is None:
            return [None] * len(self._parts)
        batch = t.shape[:-1]
        views = []
        for i, piece in enumerate(
            t.split(self._counts if of_blocks else self._sizes, dim=-1)
        ):
            entry, block = self._parts[i]
            if block.numel == 1:  # one number scales a flat vector
                views.append(piece)
            else:
                shape = block.shape if of_blocks else entry.shape
                views.append(piece.reshape((*batch, *shape)))
        return views

    def expand(self, c: Tensor) -> Tensor:
        """Each block's number on its coordinates, shape ``(..., n)``."""
        if self.entrywise:
            return c
        batch = c.shape[:-1]
        pieces = []
        for e, b in self._parts:
            view = c[..., b.slice].reshape((*batch, *b.shape))
            pieces.append(view.expand((*batch, *e.shape)).reshape(*batch, e.numel))
        return torch.cat(pieces, -1)


def _combine(a, x, b, y, out):
    if y is None:
        return torch.mul(a, x, out=out)
    if a is None:
        return torch.addcmul(x, b, y, out=out)
    if out is None:
        return a * x + b * y
    if out.is_cpu and out.ndim == a.numel() == b.numel() == 1:
        # βx + α(1 ⊗ y), the one fused operation with two host scalars.
        scalars = {"beta": a.item(), "alpha": b.item()}
        return torch.addr(x[None], _ONE[x.dtype], y, **scalars, out=out[None])
    return torch.addcmul(torch.mul(a, x, out=out), b, y, out=out)


def _dot(x: Tensor, y: Tensor, entry, block) -> Tensor:
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    product = (x * y).reshape((*batch, *entry.shape))
    axes = [
        a - len(entry.shape) for a, s in enumerate(block.shape) if s != entry.shape[a]
    ]
    total = (
        product.sum(axes, dtype=torch.float64) if axes else product.to(torch.float64)
    )
    return total.reshape(*batch, block.numel)


def _whole_dots(xs, ys) -> list[Tensor]:
    """The inner products of whole tensors, one block each."""
    chunks = zip(*(x.split(_RUN) for x in xs), *(y.split(_RUN) for y in ys))
    partial = [
        [torch.dot(c[k], c[k + len(xs)]) for k in range(len(xs))] for c in chunks
    ]
    return [torch.stack(values).sum(dtype=torch.float64) for values in zip(*partial)]


def _row_dots(xs, ys, length: int) -> list[Tensor]:
    """The inner products of rows of the given length."""
    if length == 1:
        return [x * y for x, y in zip(xs, ys)]
    rows = max(CHUNK // length, 1)
    chunks = zip(*(t.reshape(-1, length).split(rows) for t in (*xs, *ys)))
    partial = [[(c[k] * c[k + len(xs)]).sum(1) for k in range(len(xs))] for c in chunks]
    return [torch.cat(values) for values in zip(*partial)]


def _kind(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> str:
    """How the inner products of one tensor are best computed."""
    size, count = prod(shape), prod(block_shape)
    if size and count == 1:
        return "small" if size <= _RUN else "whole"
    return "rows" if size and _blocks_are_rows(shape, block_shape) else "general"


def _blocks_are_rows(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> bool:
    """Whether the kept axes come first, so that each block is contiguous."""
    kept = 0
    while kept < len(shape) and block_shape[kept] == shape[kept]:
        kept += 1
    return all(length == 1 for length in block_shape[kept:])
