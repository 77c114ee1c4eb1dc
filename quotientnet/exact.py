"""Exact linear algebra on sparse integer matrices."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from scipy import sparse

__all__ = ["rank", "free_columns", "echelon", "null_space"]


def rank(matrix: sparse.sparray) -> int:
    """The rank over the rationals, by fraction-free elimination on the rows.

    Near-linear on graph-like matrices (two entries a row), which are the ones that occur.
    """
    return len(echelon(rows_of(matrix)))


def free_columns(matrix: sparse.sparray) -> np.ndarray:
    """Columns that are combinations of the others, as few as can be left out for full rank."""
    pivots = echelon(rows_of(matrix))
    return np.setdiff1d(
        np.arange(matrix.shape[1]), np.fromiter(pivots, int, len(pivots))
    )


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
            # Whole numbers, which almost all are, are quicker than fractions.
            factor = Fraction(-value, own) if value % own else -value // own
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
