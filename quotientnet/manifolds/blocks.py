"""Blocks of coordinates that share a norm, and arithmetic on them without a loop over blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout

__all__ = ["Blocks"]

_CHUNK = 1 << 18
"""Coordinates reduced at once: a multiple of the cache, and short enough for float32 sums."""


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
        self.full, self.axes = layout, {e.name: tuple(sorted(axes[e.name])) for e in layout.entries}
        shapes = {
            e.name: tuple(s if a in self.axes[e.name] else 1 for a, s in enumerate(e.shape))
            for e in layout.entries
        }
        self.layout = ParameterLayout(
            {e.name: shapes[e.name] for e in layout.entries if not e.passive},
            {e.name: shapes[e.name] for e in layout.entries if e.passive},
        )
        self.count = self.layout.size
        self.entrywise = all(shapes[e.name] == e.shape for e in layout.entries)
        self._parts = list(zip(layout.entries, self.layout.entries))

    @property
    def lengths(self) -> Tensor:
        """The number of coordinates in each block, shape ``(count,)``."""
        pieces = [torch.full((b.numel,), e.numel // max(b.numel, 1)) for e, b in self._parts]
        return torch.cat(pieces)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner product of each block, shape ``(..., count)``."""
        if self.entrywise:
            return x * y
        fast = x.ndim == y.ndim == 1 and not (torch.is_grad_enabled() and _needs_grad(x, y))
        reduce = _dot_fast if fast else _dot
        return torch.cat([reduce(x[..., e.slice], y[..., e.slice], e, b) for e, b in self._parts], -1)

    def combine(self, a: Tensor | None, x: Tensor, b: Tensor, y: Tensor, out=None) -> Tensor:
        """``a ⊙ x + b ⊙ y`` with one number a block; ``a=None`` stands for 1.

        Args:
            a: Numbers per block, shape ``(..., count)``.
            x: Vectors, shape ``(..., n)``.
            b: Numbers per block.
            y: Vectors.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``y``, without batch
                dimensions and gradients.
        """
        b = b.to(x.dtype)
        a = None if a is None else a.to(x.dtype)
        if self.entrywise:
            return torch.addcmul(x if a is None else a * x, b, y, out=out)
        if out is None:
            batch = torch.broadcast_shapes(*(t.shape[:-1] for t in (a, x, b, y) if t is not None))
            pieces = []
            for e, k in self._parts:
                piece = _combine(*(self._views(t, e, k) for t in (a, x, b, y)), None)
                pieces.append(piece.reshape(*batch, e.numel))
            return torch.cat(pieces, -1)
        for e, k in self._parts:
            _combine(*(self._views(t, e, k) for t in (a, x, b, y)), out[e.slice].view(e.shape))
        return out

    def expand(self, c: Tensor) -> Tensor:
        """Each block's number on its coordinates, shape ``(..., n)``."""
        if self.entrywise:
            return c
        batch = c.shape[:-1]
        pieces = []
        for e, b in self._parts:
            view = c[..., b.slice].reshape(*batch, *b.shape)
            pieces.append(view.expand(*batch, *e.shape).reshape(*batch, e.numel))
        return torch.cat(pieces, -1)

    def _views(self, t: Tensor | None, entry, block):
        """The entry's part of a vector, or of numbers per block, in the tensor's own shape."""
        if t is None:
            return None
        part = entry if t.shape[-1] == self.full.size else block
        return t[..., part.slice].reshape(*t.shape[:-1], *part.shape)


def _combine(a, x, b, y, out):
    if a is None:
        return torch.addcmul(x, b, y, out=out)
    if out is None:
        return a * x + b * y
    torch.mul(a, x, out=out)
    return torch.addcmul(out, b, y, out=out)


def _dot(x: Tensor, y: Tensor, entry, block) -> Tensor:
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    product = (x * y).reshape(*batch, *entry.shape)
    axes = [a - len(entry.shape) for a, s in enumerate(block.shape) if s != entry.shape[a]]
    total = product.sum(axes, dtype=torch.float64) if axes else product.to(torch.float64)
    return total.reshape(*batch, block.numel)


def _dot_fast(x: Tensor, y: Tensor, entry, block) -> Tensor:
    """The inner products of one tensor without gradient, in pieces that stay in the cache."""
    if not x.is_cpu or entry.numel <= _CHUNK or not _blocks_are_rows(entry.shape, block.shape):
        return _dot(x, y, entry, block)
    if block.numel == 1:
        partial = [torch.dot(a, b) for a, b in zip(x.split(_CHUNK), y.split(_CHUNK))]
        return torch.stack(partial).sum(0, keepdim=True, dtype=torch.float64)
    length = entry.numel // block.numel
    rows = max(_CHUNK // length, 1)
    pairs = zip(x.view(-1, length).split(rows), y.view(-1, length).split(rows))
    return torch.cat([(a * b).sum(1) for a, b in pairs]).to(torch.float64)


def _blocks_are_rows(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> bool:
    """Whether the kept axes come first, so that each block is contiguous."""
    kept = 0
    while kept < len(shape) and block_shape[kept] == shape[kept]:
        kept += 1
    return all(length == 1 for length in block_shape[kept:])


def _needs_grad(*tensors: Tensor) -> bool:
    return any(t.requires_grad for t in tensors)
