"""Coordinates or blocks that do not move."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Frozen"]


class Frozen:
    """A fixed boolean mask along the last dimension, applied in the cheapest way.

    Args:
        mask: Shape ``(size,)``, true where nothing moves.
    """

    def __init__(self, mask: Tensor):
        self.mask = mask
        self.any = bool(mask.any())
        index = torch.nonzero(mask).reshape(-1)
        self._index = index if 64 * len(index) < len(mask) else None
        self._on = {mask.device: (mask, self._index)}

    def fill(self, values: Tensor, value: float, *, in_place: bool = False) -> Tensor:
        """``values``, shape ``(..., size)``, with ``value`` where frozen."""
        if not self.any:
            return values
        mask, index = self._moved(values.device)
        if index is not None:
            return (values.index_fill_ if in_place else values.index_fill)(
                -1, index, value
            )
        return (values.masked_fill_ if in_place else values.masked_fill)(mask, value)

    def _moved(self, device) -> tuple[Tensor, Tensor | None]:
        if device not in self._on:
            index = None if self._index is None else self._index.to(device)
            self._on[device] = (self.mask.to(device), index)
        return self._on[device]
