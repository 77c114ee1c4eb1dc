"""Sums over axes, and their adjoint: tensors of compact shapes broadcast and added."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["broadcast_sum", "sums_to"]

_PIECE = 1 << 18
"""Coordinates summed at once, a part of the cache."""


def broadcast_sum(terms, like: Tensor, batch, shape: tuple[int, ...]) -> Tensor:
    """The sum of ``terms``, each of shape ``(*batch, *compact)``, on ``(*batch, *shape)``."""
    if not terms:
        return like.new_zeros(()).expand(*batch, *shape)
    total = terms[0]
    for other in terms[1:]:
        total = total + other
    return total.expand(*batch, *shape)


def sums_to(x: Tensor, shapes, lead: int) -> list[Tensor]:
    """``x``, shape ``(*batch, *full)``, summed to each ``(*batch, *shape)``."""
    if (
        len(shapes) == 1
        or lead
        or not x.is_cpu
        or x.numel() <= _PIECE
        or x.requires_grad
    ):
        return [_sum_to(x, shape, lead) for shape in shapes]
    # Pieces of the first axis stay in the cache for all sums; those that keep it are joined.
    totals = [[] for _ in shapes]
    for piece in x.split(max(_PIECE // (x.numel() // len(x)), 1)):
        for total, shape in zip(totals, shapes):
            total.append(_sum_to(piece, (min(shape[0], len(piece)), *shape[1:]), 0))
    return [
        torch.cat(total) if shape[0] > 1 else torch.stack(total).sum(0)
        for total, shape in zip(totals, shapes)
    ]


def _sum_to(x: Tensor, shape: tuple[int, ...], lead: int) -> Tensor:
    """``x``, shape ``(*batch, *full)``, summed to ``(*batch, *shape)``; ``lead`` batch axes."""
    axes = [lead + a for a, n in enumerate(shape) if n == 1 and x.shape[lead + a] != 1]
    return x.sum(axes, keepdim=True) if axes else x
