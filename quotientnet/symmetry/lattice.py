"""From real vectors that span a space of exponents to integer ones, each moving little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy import sparse

from quotientnet import exact

__all__ = ["CLEAR", "NullSpace", "null_space", "integer_rows", "reduced", "sparsest"]

_NEGLIGIBLE = 1e-9
"""What is below this, relative to the largest, is zero."""

_NOISE = 1e-13
"""Rounding of a derivative, relative to the largest: no gap is clearer than down to this."""

CLEAR = 1e4
"""The smallest gap with which a rank is clear."""

_DENOMINATORS = 24
"""Exponents are multiples of a fraction with at most this denominator."""

_LARGEST = 1 << 10
"""The largest exponent: a scale of 2 to this power overflows."""


@dataclass(frozen=True)
class NullSpace:
    """The vectors that a matrix annihilates, up to rounding.

    Attributes:
        vectors: A basis, shape ``(count, dimension)``; each is 1 on one coordinate of its own, on
            which the others are 0.
        gap: The smallest pivot over the largest that counts as zero: how clear the rank is.
        doubtful: The vector that is least clearly in the space, or least clearly outside.
    """

    vectors: np.ndarray
    gap: float
    doubtful: np.ndarray


def null_space(matrix: np.ndarray) -> NullSpace:
    """The null space by a rank-revealing QR factorisation, shape ``(rows ≥ count, count)``."""
    count = matrix.shape[1]
    r, order = scipy.linalg.qr(matrix, mode="r", pivoting=True, check_finite=False)
    sizes = np.abs(np.diag(r[:count]))
    largest = sizes.max(initial=0.0)
    rank = int((sizes > _NEGLIGIBLE * largest).sum())
    floor = max(sizes[rank:].max(initial=0.0), _NOISE * largest)
    gap = sizes[rank - 1] / floor if rank else np.inf
    if rank and gap < CLEAR:
        doubtful = _solved(r, order, rank - 1)[:, 0]
    else:
        doubtful = np.zeros(count)
    return NullSpace(_solved(r, order, rank), float(gap), doubtful)


def _solved(r: np.ndarray, order: np.ndarray, rank: int) -> np.ndarray:
    """What the first ``rank`` rows of a trapezoidal matrix annihilate."""
    count = r.shape[1]
    vectors = np.zeros((count, count - rank))
    vectors[order[:rank]] = -scipy.linalg.solve_triangular(
        r[:rank, :rank], r[:rank, rank:], check_finite=False
    )
    vectors[order[rank:]] = np.eye(count - rank)
    return vectors


def integer_rows(
    vectors: np.ndarray, tolerance: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest integer multiples of vectors, shape ``(count, dimension)``.

    Args:
        vectors: Columns, each with an entry of 1.
        tolerance: How far from an integer an entry of a multiple may be.

    Returns:
        One integer vector a row, shape ``(dimension, count)``; and which of them have none with a
        denominator of at most 24 and exponents of at most 1024, a mask.
    """
    rows = np.zeros(vectors.shape[::-1], dtype=np.int64)
    left = np.abs(vectors).max(0, initial=0.0) <= _LARGEST
    for denominator in range(1, _DENOMINATORS + 1):
        at = np.flatnonzero(left)
        multiple = denominator * vectors[:, at]
        rounded = np.rint(multiple)
        fits = np.abs(multiple - rounded).max(0, initial=0.0) <= tolerance
        fits &= np.abs(rounded).max(0, initial=0.0) <= _LARGEST
        rows[at[fits]] = rounded[:, fits].T.astype(np.int64)
        left[at[fits]] = False
    return rows, ~rows.any(1)


def reduced(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Integer rows of the same span, each alone on a column that comes first in ``order``.

    Fraction-free elimination, exact; rows have no common divisor.

    Raises:
        OverflowError: An entry beyond 2³¹.
    """
    rows, free = rows.copy(), np.ones(len(rows), dtype=bool)
    for column in order:
        if not free.any():
            break
        at = np.flatnonzero(rows[:, column])
        own = at[free[at]]
        if not own.size:
            continue
        pivot = own[np.argmin((rows[own] != 0).sum(1))]
        free[pivot] = False
        at = at[at != pivot]
        rows[at] = (
            rows[pivot, column] * rows[at] - rows[at, column][:, None] * rows[pivot]
        )
        if np.abs(rows[at]).max(initial=0) >= 1 << 31:
            raise OverflowError("an exponent beyond 2**31")
        at = np.append(at, pivot)
        rows[at] //= np.maximum(np.gcd.reduce(rows[at], axis=1), 1)[:, None]
    return rows


def sparsest(pool: np.ndarray, dimension: int, sizes: np.ndarray) -> np.ndarray:
    """Of integer rows, the first ``dimension`` of which span a space, the smallest that do.

    Each is taken unless it is a combination of smaller ones: no other choice has a smaller sum.

    Args:
        pool: Rows.
        dimension: That of the space.
        sizes: One for each row.

    Returns:
        Their numbers.
    """
    if not dimension:
        return np.empty(0, dtype=np.int64)
    basis = reduced(pool[:dimension], np.arange(pool.shape[1]))
    # On the columns that only one row of the basis has, rows of the pool have their coordinates.
    own = np.flatnonzero((basis != 0).sum(0) == 1)
    owners = (basis[:, own] != 0).argmax(0)
    own = own[np.unique(owners, return_index=True)[1]]
    order = np.argsort(-sizes, kind="stable")
    dependent = exact.free_columns(sparse.csr_array(pool[order][:, own].T))
    return np.delete(order, dependent)
