"""Exact linear algebra on sparse integer matrices."""

from __future__ import annotations

from math import gcd

from scipy import sparse

__all__ = ["rank"]


def rank(matrix: sparse.sparray) -> int:
    """The rank over the rationals, by fraction-free elimination on the rows.

    Near-linear on graph-like matrices (two entries a row), which are the ones that occur.
    """
    matrix = sparse.csr_array(matrix)
    pivots: dict[int, dict[int, int]] = {}
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:]):
        columns, values = matrix.indices[start:stop], matrix.data[start:stop]
        row: dict[int, int] = {}
        for column, value in zip(columns.tolist(), values.tolist()):
            row[column] = row.get(column, 0) + int(value)
        row = {column: value for column, value in row.items() if value}
        while row:
            column = min(row)
            if column not in pivots:
                pivots[column] = row
                break
            row = _eliminate(row, pivots[column], column)
    return len(pivots)


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
