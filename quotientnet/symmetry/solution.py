"""The null space of the equations between log-scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from quotientnet import exact
from quotientnet.symmetry.scales import PINNED
from quotientnet.symmetry.unions import Unions

__all__ = ["Solution", "solve"]


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


def solve(
    unknowns: Unions,
    lines: Sequence[tuple[np.ndarray, np.ndarray, int]],
    early: Sequence[int],
) -> Solution:
    """The null space: every unknown as an integer combination of free ones.

    Args:
        unknowns: Merged where they are equal.
        lines: Equations ``Σ coefficient · unknown = 0``: unknowns, one equation a line; the
            coefficient of each column; a reason.
        early: Unknowns to be kept free where they can be.
    """
    rows = _reduced(unknowns, lines)
    roots = unknowns.roots
    # Elimination keeps the least columns free.
    kept = np.isin(roots, np.array(early, dtype=np.int64))
    order = np.concatenate([roots[:1], roots[kept], roots[~kept][1:]])
    place = np.zeros(unknowns.size, dtype=np.int64)
    place[order] = np.arange(len(order))
    pivots = exact.echelon(
        {int(place[name]): c for name, c in row.items()} for row, _ in rows
    )
    pivots[PINNED] = {PINNED: 1}
    basis = sparse.csr_array(exact.null_space(pivots, len(order)))
    blamed = {int(place[name]): reason for row, reason in rows for name in row}
    row = place[unknowns.find(np.arange(unknowns.size))]
    return Solution(basis, row, unknowns.edges, blamed)


def _reduced(unknowns: Unions, lines) -> list[tuple[dict[int, int], int]]:
    """The equations of three unknowns or more, after merging through those of fewer."""
    blocks = [
        (names, np.broadcast_to(coefficients, names.shape), reason)
        for names, coefficients, reason in lines
    ]
    merging = True
    while merging:
        merging, left = False, []
        for names, by, reason in blocks:
            names, by = _added(unknowns.find(names), by)
            count = (by != 0).sum(1)
            alike = (count == 1) | ((count == 2) & (by.sum(1) == 0))
            if alike.any():
                # The two that are not pinned, or the one that is to be.
                pairs = np.sort(names[alike], axis=1)[:, -2:]
                unknowns.merge(pairs[:, 0], pairs[:, 1], reason)
                merging = True
            kept = ~alike & (count > 0)
            left.append((names[kept], by[kept], reason))
        blocks = left
    return [
        ({name: c for name, c in zip(row, own) if c}, reason)
        for names, by, reason in blocks
        for row, own in zip(names.tolist(), by.tolist())
    ]


def _added(names: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equations with the coefficients of equal unknowns added at the first of them.

    What is 0 then, or pinned, is pinned with the coefficient 0.
    """
    names, by = names.copy(), by.copy()
    for a in range(names.shape[1]):
        for b in range(a):
            same = (names[:, a] == names[:, b]) & (by[:, a] != 0)
            by[:, b] += np.where(same, by[:, a], 0)
            by[same, a] = 0
    by[names == PINNED] = 0
    names[by == 0] = PINNED
    return names, by
