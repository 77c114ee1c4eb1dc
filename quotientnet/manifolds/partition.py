"""Partitions of coordinates into blocks of any support, one of them joint."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.manifolds.blocks import Blocks
from quotientnet.units import Term

__all__ = ["Partition"]


class Partition:
    """Numbered blocks, the joint block of all other parameters, and the passive coordinates.

    Each tensor is cut along the axes that tell its blocks apart, as in :class:`Blocks`; a number
    a piece is then added up to a number a block, so that vectors are only met in rows. Numbers
    per block are float64, shape ``(..., count)``: those of the numbered blocks, of the joint block
    (``rest``), and of passive coordinates (``passive``).

    Args:
        layout: The coordinates.
        index: The number of each entry's block, −1 for the joint block: an integer array that
            broadcasts to the tensor's shape, by name. Tensors that are not named are joint.
        count: The number of numbered blocks.
        held: Boolean mask, shape ``(n,)``, of coordinates that do not count in ``lengths``.
        caller: Who speaks in error messages.

    Raises:
        ValueError: An index that does not fit its tensor, or a block without entries.
        TypeError: An index that is not integer.
    """

    entrywise = False

    def __init__(
        self,
        layout: ParameterLayout,
        index: Mapping[str, np.ndarray],
        count: int,
        held: Tensor,
        caller: str = "Partition",
    ):
        terms = _terms(layout, index, count, caller)
        self.rest, self.passive, self.count = count, count + 1, count + 2
        self.pieces = Blocks(layout, {name: t.axes for name, t in terms.items()})
        self._owner = torch.cat(
            [torch.tensor(terms[e.name].index.reshape(-1)) for e in layout.entries]
        )
        sizes = torch.bincount(self._owner, self.pieces.lengths, self.count)
        if not sizes[:count].all():
            empty = int(torch.nonzero(sizes[:count] == 0)[0])
            raise ValueError(
                f"{caller}: block {empty} of {count} has no entries; number the blocks from 0 "
                "without gaps, and give each a radius"
            )
        self._on = {self._owner.device: self._owner}
        free = (~held).to(torch.float64)
        self.lengths = self.dot(free, free).to(torch.int64)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner product of each block, shape ``(..., count)``."""
        return self.dots((x, y))[0]

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Several inner products of each block, in one pass through the vectors."""
        sums = []
        for each in self.pieces.dots(*pairs):
            total = each.new_zeros(*each.shape[:-1], self.count, dtype=torch.float64)
            sums.append(total.index_add(-1, self._owners(each), each.to(total)))
        return sums

    def combine(
        self, a: Tensor | None, x: Tensor, b=None, y=None, out: Tensor | None = None
    ) -> Tensor:
        """``a ⊙ x + b ⊙ y`` with one number a block; ``a=None`` stands for 1. See
        :meth:`Blocks.combine`."""
        a, b = (None if c is None else self._spread(c) for c in (a, b))
        return self.pieces.combine(a, x, b, y, out=out)

    def expand(self, c: Tensor) -> Tensor:
        """Each block's number on its coordinates, shape ``(..., n)``."""
        return self.pieces.expand(self._spread(c))

    def named(self, mask: Tensor) -> dict[str, int]:
        """How many blocks of a mask, shape ``(..., count)``, have entries in each tensor."""
        return self.pieces.layout.count(self._spread(mask))

    def _spread(self, c: Tensor) -> Tensor:
        return c.index_select(-1, self._owners(c))

    def _owners(self, like: Tensor) -> Tensor:
        if like.device not in self._on:
            self._on[like.device] = self._owner.to(like.device)
        return self._on[like.device]


def _terms(layout, index, count: int, caller: str) -> dict[str, Term]:
    """The block of each entry of each tensor, as broadcastable arrays of all axes."""
    unknown = [name for name in index if name not in layout or layout[name].passive]
    if unknown:
        raise ValueError(
            f"{caller}: blocks names {unknown[0]!r}, which is no parameter of the layout; it has "
            f"{', '.join(e.name for e in layout.entries if not e.passive)}"
        )
    numbers = {
        layout[name].name: _validated(layout[name], i, count, caller)
        for name, i in index.items()
    }
    terms = {}
    for entry in layout.entries:
        joint = np.full((1,) * len(entry.shape), count + entry.passive)
        own = numbers.get(entry.name, joint)
        terms[entry.name] = Term(np.where(own < 0, count, own), 1)
    return terms


def _validated(entry, index, count: int, caller: str) -> np.ndarray:
    index = np.asarray(index)
    if index.dtype.kind not in "iu":
        raise TypeError(
            f"{caller}: blocks[{entry.name!r}] must be integer, got {index.dtype}"
        )
    fits = index.ndim == len(entry.shape) and all(
        i in (1, s) for i, s in zip(index.shape, entry.shape)
    )
    if not fits:
        raise ValueError(
            f"{caller}: blocks[{entry.name!r}] has shape {index.shape}, {entry.name!r} has shape "
            f"{entry.shape}; it needs as many axes, each of full length or 1"
        )
    if index.size and not (-1 <= index.min() and index.max() < count):
        raise ValueError(
            f"{caller}: blocks[{entry.name!r}] has numbers from {index.min()} to {index.max()}; "
            f"{count} radii stand for blocks 0 to {count - 1}, and −1 for the joint block"
        )
    return index
