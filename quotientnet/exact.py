"""Exact linear algebra on sparse integer matrices."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from scipy import sparse

__all__ = ["rank", "free_columns", "echelon", "null_space"]


def rank(matrix: sparse.sparray) -> int:
    """The rank over the rationals."""
    return matrix.shape[1] - len(free_columns(matrix))


def free_columns(matrix: sparse.sparray) -> np.ndarray:
    """Columns that are combinations of the others, as few as can be left out for full rank.

    Rows of one or two entries, which almost all are, say that a column vanishes or is a multiple
    of another: they are joined into trees in near-linear time, however deep the network. What is
    left of longer rows is eliminated.
    """
    multiples, longer = _Multiples(), []
    for row in rows_of(matrix):
        if len(row) > 2:
            longer.append(row)
        elif row:
            multiples.join(row)
    pivots = echelon(multiples.reduced(row) for row in longer)
    return np.array(
        [
            column
            for column in range(matrix.shape[1])
            if multiples.is_free(column) and column not in pivots
        ],
        dtype=np.int64,
    )


class _Multiples:
    """Columns as multiples of others: each tree's root is its least column."""

    def __init__(self):
        self._parent: dict[int, tuple[int, int | Fraction]] = {}
        self._vanishing: set[int] = set()

    def find(self, column: int) -> tuple[int, int | Fraction]:
        """The root of a column, and what multiple of it the column is."""
        path = []
        while column in self._parent:
            path.append(column)
            column = self._parent[column][0]
        total: int | Fraction = 1
        for own in reversed(path):
            total = self._parent[own][1] * total
            self._parent[own] = column, total
        return column, total

    def join(self, row: dict[int, int]) -> None:
        """Take in a row of one or two entries."""
        row = self.reduced(row)
        if not row:
            return
        root, other = min(row), max(row)
        if root == other:
            self._vanishing.add(root)
            return
        self._parent[other] = root, _quotient(-row[root], row[other])

    def reduced(self, row: dict[int, int]) -> dict[int, int]:
        """A row in terms of roots that do not vanish, in whole numbers."""
        total: dict[int, int | Fraction] = {}
        for column, value in row.items():
            root, factor = self.find(column)
            if root not in self._vanishing:
                total[root] = total.get(root, 0) + value * factor
        scale = lcm(*(c.denominator for c in total.values()))
        return {column: int(c * scale) for column, c in total.items() if c}

    def is_free(self, column: int) -> bool:
        """Whether no row so far gives a column by lesser ones."""
        return column not in self._parent and column not in self._vanishing


def rows_of(matrix: sparse.sparray) -> Iterable[dict[int, int]]:
    """The rows of a sparse matrix, each as ``{column: value}`` without zeros."""
    matrix = sparse.csr_array(matrix)
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:]):
        row: dict[int, int] = {}
        columns, values = matrix.indices[start:stop], matrix.data[start:stop]
        for column, value in zip(columns.tolist(), values.tolist()):
            row[column] = row.get(column, 0) + int(value)
        yield {column: value for column, value in row.items() if value}


def echelon(rows: Iterable[dict[int, int]]) -> dict[int, dict[int, int]]:
    """Rows that span the same space, by the greatest column of each."""
    pivots: dict[int, dict[int, int]] = {}
    for row in rows:
        while row:
            column = max(row)
            if column not in pivots:
                pivots[column] = row
                break
            row = _eliminate(row, pivots[column], column)
    return pivots


def null_space(pivots: dict[int, dict[int, int]], count: int) -> sparse.csc_array:
    """An integer basis of the vectors of length ``count`` that every row annihilates.

    One basis vector for each column that is no pivot, in order; it is 0 on the others of them, and
    its entries have no common divisor.

    Args:
        pivots: Rows as :func:`echelon` gives them.
        count: The number of columns.

    Returns:
        A sparse matrix, shape ``(count, count − len(pivots))``.
    """
    solved: dict[int, dict[int, int | Fraction]] = {}
    for column in sorted(pivots):
        row, total = pivots[column], {}
        own = row[column]
        for other, value in row.items():
            if other == column:
                continue
            factor = _quotient(-value, own)
            if other not in solved:
                total[other] = total.get(other, 0) + factor
                continue
            for free, c in solved[other].items():
                total[free] = total.get(free, 0) + factor * c
        solved[column] = {free: c for free, c in total.items() if c}
    free = np.setdiff1d(np.arange(count), np.fromiter(pivots, int, len(pivots)))
    scale: dict[int, int] = {}
    for combination in solved.values():
        for column, c in combination.items():
            if c.denominator != 1:
                scale[column] = lcm(scale.get(column, 1), c.denominator)
    rows, columns, values = (
        list(free),
        list(free),
        [scale.get(f, 1) for f in free.tolist()],
    )
    for row, combination in solved.items():
        rows += [row] * len(combination)
        columns += combination
        values += [int(c * scale.get(f, 1)) for f, c in combination.items()]
    columns = np.searchsorted(free, np.array(columns, dtype=np.int64))
    values, shape = np.array(values, dtype=np.int64), (count, len(free))
    return sparse.csc_array(sparse.coo_array((values, (rows, columns)), shape=shape))


def _quotient(a: int | Fraction, b: int) -> int | Fraction:
    """``a / b``; whole numbers, which almost all are, are quicker than fractions."""
    return Fraction(a, b) if a % b else a // b


def _eliminate(
    row: dict[int, int], pivot: dict[int, int], column: int
) -> dict[int, int]:
    """``row`` without its entry in ``column``, divided by the content of what remains."""
    a, b = pivot[column], row[column]
    result = {c: a * v for c, v in row.items()}
    for c, v in pivot.items():
        result[c] = result.get(c, 0) - b * v
    result = {c: v for c, v in result.items() if v}
    content = gcd(*result.values()) if result else 1
    return {c: v // content for c, v in result.items()}
