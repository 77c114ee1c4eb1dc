"""A scaling group in compact form, from exponents of candidate scalings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.candidates import Candidates
from quotientnet.units import Term

__all__ = ["assembled", "follow_rows", "redundant", "settled"]


def redundant(candidates: Candidates, live: np.ndarray) -> np.ndarray:
    """Candidates that the others make up for, a mask.

    All rows of a matrix are all its columns. So are those rows and columns of it that entries
    with an effect connect.

    Args:
        candidates: All of them.
        live: The entries with an effect, shape ``(n,)``.
    """
    group, edges = candidates.group, [np.empty((2, 0), dtype=np.int64)]
    for entry in group.layout.entries:
        terms = group.incidence[entry.name]
        if len(terms) == 2:
            at = live[entry.slice].reshape(*entry.shape[:2], -1).any(-1)
            pairs = (np.broadcast_to(t.index, entry.shape) for t in terms)
            flat = (p.reshape(*entry.shape[:2], -1)[..., 0][at] for p in pairs)
            edges.append(np.stack(list(flat)))
    rows, columns = np.concatenate(edges, axis=1)
    size = (group.dimension, group.dimension)
    graph = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=size)
    labels = connected_components(graph, directed=False)[1]
    columns = np.unique(columns)
    mask = np.zeros(group.dimension, dtype=bool)
    mask[columns[np.unique(labels[columns], return_index=True)[1]]] = True
    return mask


def settled(candidates: Candidates, basis: np.ndarray) -> np.ndarray:
    """The same exponents with as few rows and columns as it takes, shape ``(k, candidates)``."""
    basis, group = basis.copy(), candidates.group
    for entry in group.layout.entries:
        terms = group.incidence[entry.name]
        if len(terms) == 2:
            number = candidates.blocks.get(entry.name, 1)
            first, second = terms[0].index.reshape(-1), np.unique(terms[1].index)
            rows, columns = _sparsest(
                basis[:, first].reshape(len(basis), number, len(first) // number),
                basis[:, second].reshape(len(basis), number, len(second) // number),
            )
            basis[:, first] = rows.reshape(len(basis), len(first))
            basis[:, second] = columns.reshape(len(basis), len(second))
    return basis


def assembled(
    candidates: Candidates, basis: np.ndarray
) -> tuple[dict[str, list[Term]], sparse.csr_array]:
    """The incidence and classes of a group.

    Args:
        candidates: Those of the basis.
        basis: Integer exponents, one generator a row.
    """
    group, pool, incidence = candidates.group, _Pool(len(basis)), {}
    for entry in group.layout.entries:
        terms, shape = group.incidence[entry.name], entry.shape
        number = candidates.blocks.get(entry.name, 1) if len(shape) > 1 else 1
        if len(terms) == 2:
            first, second = terms[0].index.reshape(-1), np.unique(terms[1].index)
            parts = basis[:, first], basis[:, second]
        else:
            whole = terms[0].coefficient * basis[:, terms[0].index.reshape(-1)]
            parts = _split(whole, shape, number) if len(shape) > 1 else None
        if parts is None:
            found = [pool.term(whole, np.arange(entry.numel).reshape(shape))]
        else:
            ones = [1] * (len(shape) - 2)
            rows = np.arange(shape[0])
            columns = np.arange(shape[1]) + shape[1] * (
                rows[:, None] // (shape[0] // number)
            )
            found = [
                pool.term(parts[0], rows.reshape(-1, 1, *ones)),
                pool.term(parts[1], columns.reshape(*shape[:2], *ones)),
            ]
        if any(found):
            incidence[entry.name] = [term for term in found if term]
    return incidence, pool.classes()


def follow_rows(
    layout: ParameterLayout, incidence: Mapping[str, list[Term]], live: np.ndarray
) -> dict[str, list[Term]]:
    """The incidence with biases without effect scaled as the rows of their weights.

    Any scale would do, but this one keeps what is added together of one size: at others, rounding
    shows.
    """
    incidence = dict(incidence)
    for entry in layout.entries:
        weight = f"{entry.name.removesuffix('bias')}weight"
        if entry.name == weight or live[entry.slice].any() or weight not in incidence:
            continue
        rows = [t for t in incidence[weight] if t.axes == (0,)]
        if rows and entry.shape == layout[weight].shape[:1]:
            incidence[entry.name] = [
                Term(t.index.reshape(-1), t.coefficient) for t in rows
            ]
    return incidence


def _split(whole: np.ndarray, shape, number: int):
    """Exponents of entries as those of rows and columns, or nothing where they are no such sum."""
    if not whole.any():
        return np.zeros((len(whole), shape[0]), int), np.zeros(
            (len(whole), number * shape[1]), int
        )
    k = len(whole)
    blocks = whole.reshape(k, number, shape[0] // number, shape[1], -1)
    rows = blocks[:, :, :, 0, 0]
    columns = blocks[:, :, 0, :, 0] - blocks[:, :, :1, 0, 0]
    if (blocks != (rows[..., None] + columns[:, :, None])[..., None]).any():
        return None
    rows, columns = _sparsest(rows, columns)
    return rows.reshape(k, shape[0]), columns.reshape(k, number * shape[1])


def _sparsest(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move a constant from columns to rows, along the last axis, such that most are zero."""
    best = np.full(rows.shape[:-1], np.inf)
    shift = np.zeros(rows.shape[:-1], dtype=np.int64)
    values = np.union1d(columns, -rows).tolist()
    for value in sorted(values, key=abs):
        cost = (columns != value).sum(-1) + (rows != -value).sum(-1)
        shift[cost < best] = value
        best = np.minimum(best, cost)
    return rows + shift[..., None], columns - shift[..., None]


class _Pool:
    """Distinct rows of exponents."""

    def __init__(self, width: int):
        self.width = width
        self._numbers: dict[tuple[bytes, bytes], int] = {}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._number(np.zeros(width, dtype=np.int64))

    def term(self, exponents: np.ndarray, index: np.ndarray) -> Term | None:
        """The term whose place ``i`` has the exponents of column ``index[i]``, if any is not 0."""
        if not exponents.any():
            return None
        factor = np.gcd.reduce(exponents, axis=None)
        factor = int(factor if exponents.sum() >= 0 else -factor)
        numbers = np.array([self._number(row) for row in (exponents // factor).T])
        return Term(numbers[index], factor)

    def _number(self, row: np.ndarray) -> int:
        at = np.flatnonzero(row)
        key = at.tobytes(), row[at].tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append((at, row[at]))
        return self._numbers[key]

    def classes(self) -> sparse.csr_array:
        """One class a row."""
        columns, data = (np.concatenate(parts) for parts in zip(*self._rows))
        starts = np.cumsum([0] + [len(at) for at, _ in self._rows])
        shape = (len(self._rows), self.width)
        return sparse.csr_array((data, columns, starts), shape=shape)
