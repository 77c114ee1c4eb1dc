"""The matrix of exponents of a small group, written down: products of a few microseconds."""

from __future__ import annotations

from functools import cached_property

import numpy as np

__all__ = ["ExponentMatrix", "exponent_matrix"]

_SMALL = 1 << 17
"""Up to this many entries of ``A`` they are all written down."""


class ExponentMatrix:
    """``A`` as an array, shape ``(size, dimension)``, and what is computed with it.

    Args:
        a: The array, not to be written to.
    """

    def __init__(self, a: np.ndarray):
        self.a, self.magnitudes = a, np.abs(a)

    def gram(self, weight: np.ndarray) -> np.ndarray:
        """``Aᵀ diag(weight) A``, shape ``(dimension, dimension)``."""
        count = self.a.shape[1]
        if self._pairs is None:
            return (self.a.T * weight) @ self.a
        rows, products, where = self._pairs
        sums = np.bincount(where, weight[rows] * products, count * count)
        return sums.reshape(count, count)

    @cached_property
    def _pairs(self):
        """All products of two nonzero entries of one row: their row, value and place in ``AᵀA``.

        None if there are too many: an ordinary product is faster then.
        """
        line, column = np.nonzero(self.a)
        lengths = np.bincount(line, minlength=len(self.a))
        if 8 * (lengths**2).sum() > self.a.size:
            return None
        first = np.cumsum(lengths) - lengths
        repeats = lengths[line]
        left = np.repeat(np.arange(len(line)), repeats)
        within = np.arange(len(left)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        right = first[line[left]] + within
        entries = self.a[line, column]
        place = column[left] * self.a.shape[1] + column[right]
        return line[left], entries[left] * entries[right], place


def exponent_matrix(group) -> ExponentMatrix | None:
    """That of a group, or None if it is too large to be written down."""
    if group.dimension * group.layout.size > _SMALL:
        return None
    return group.derived("matrix", lambda: ExponentMatrix(group.to_dense()))
