"""The null space of the equations between log-scales."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from quotientnet.symmetry.scales import PINNED

__all__ = ["Solution"]


class Solution:
    """The null space of equations: each unknown as a combination of free ones.

    Attributes:
        basis: Sparse integer matrix, distinct unknowns × free ones.
        row: For each unknown, its row in ``basis``.
    """

    def __init__(self, basis, row, edges, blamed):
        self.basis, self.row = basis, row
        self._edges, self._blamed = edges, blamed

    @cached_property
    def reasons(self) -> np.ndarray:
        """For each unknown, the reason of the equation that pinned it; −1 where it is free."""
        size, by_row = len(self.row), np.full(self.basis.shape[0], -1)
        for row in np.flatnonzero(np.diff(self.basis.indptr) == 0).tolist():
            by_row[row] = self._blamed.get(row, -1)
        reasons = by_row[self.row]
        if not self._edges:
            return reasons
        a, b = (np.concatenate([edge[k] for edge in self._edges]) for k in (0, 1))
        why = np.concatenate([np.full(len(a), reason) for a, _, reason in self._edges])
        keys, first = np.unique(
            np.minimum(a, b) * size + np.maximum(a, b), return_index=True
        )
        graph = sparse.coo_array((np.ones(len(a)), (a, b)), shape=(size, size))
        order, above = breadth_first_order(graph.tocsr(), PINNED, directed=False)
        for name in order[1:].tolist():
            parent = int(above[name])
            if parent != PINNED:
                reasons[name] = reasons[parent]
            else:
                reasons[name] = why[first[np.searchsorted(keys, name)]]
        return reasons
