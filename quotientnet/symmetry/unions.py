"""Unknowns that are merged as soon as two of them are known to be equal."""

from __future__ import annotations

import numpy as np

from quotientnet.symmetry.scales import PINNED, ZERO

__all__ = ["Unions"]


class Unions:
    """Numbered unknowns and which of them are equal (union-find); :data:`PINNED` is the first.

    Attributes:
        size: How many there are.
        edges: What was merged and why: two arrays of unknowns, and a reason.
    """

    def __init__(self):
        self._parent = np.zeros(1 << 10, dtype=np.int64)
        self.size = PINNED + 1
        self.edges: list[tuple[np.ndarray, np.ndarray, int]] = []

    def new(self, number: int) -> int:
        """The first of so many new unknowns, whose numbers follow each other."""
        first, self.size = self.size, self.size + number
        while self.size > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        self._parent[first : self.size] = np.arange(first, self.size)
        return first

    def find(self, index: np.ndarray) -> np.ndarray:
        """The representative of each unknown, the least one merged with it."""
        if (index == ZERO).any():
            return np.where(index == ZERO, ZERO, self.find(np.maximum(index, 0)))
        root = np.asarray(self._parent[index])
        while True:
            above = np.asarray(self._parent[root])
            if (above == root).all():
                break
            root = above
        self._parent[index] = root
        return root

    def merge(self, a: np.ndarray, b: np.ndarray, reason: int) -> None:
        """Merge each unknown of ``a`` with that of ``b``."""
        pairs = np.unique(np.stack([a, b], axis=1), axis=0)
        a, b = pairs[:, 0], pairs[:, 1]
        self.edges.append((a, b, reason))
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    @property
    def roots(self) -> np.ndarray:
        """Every representative, in order."""
        return np.unique(self.find(np.arange(self.size)))
