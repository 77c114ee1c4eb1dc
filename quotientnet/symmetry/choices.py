"""Integers that the data choose, and log-scales of the entries that they choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.scales import PINNED, LogScale

__all__ = ["Choice", "Choices"]


class Choice(LogScale):
    """Integers that depend on the data: which variable each entry is.

    They cannot be scaled. Two entries that are one variable have the same value, whatever the data
    are; nothing is known of the values of different ones.

    Args:
        variables: The number of each entry's variable.
        sorted: What they are known to be sorted as, or how many of each, or where each ends: the
            variables of the sorted integers.
    """

    def __init__(self, variables: Tensor, sorted: tuple[str, Tensor] | None = None):
        self.shape, self.terms, self.variables = tuple(variables.shape), (), variables
        self.sorted = sorted

    def map(self, function: Callable[[Tensor], Tensor]) -> Choice:
        """The same change of shape applied to the variables."""
        return Choice(function(self.variables))


class Choices:
    """Unknowns that stand for an entry of a table, at the place that a variable says.

    An equation between them holds for every value of every variable. :meth:`spelled_out` turns
    it into equations of the entries of tables.
    """

    def __init__(self):
        self.ids = np.zeros(0, dtype=np.int64)
        self._tables: list[np.ndarray] = []
        self._keys = np.zeros(0, dtype=np.int64)
        self._key_of: dict[tuple[int, int], int] = {}
        self._id_of: dict[tuple[int, bytes], int] = {}
        self._variables, self._grouped = 0, {}

    # -- variables ---

    def variables(self, *shape: int) -> Choice:
        """New variables."""
        number = torch.Size(shape).numel()
        self._variables += number
        return Choice(
            torch.arange(self._variables - number, self._variables).view(shape)
        )

    def derived(self, kind: str, x: Choice, *shape: int) -> Choice:
        """New variables: integers ``x`` sorted, or of those the counts, or the bounds."""
        origin = None if kind == "values" else x.sorted[1]
        new = self.variables(*shape)
        return Choice(
            new.variables, (kind, new.variables if origin is None else origin)
        )

    def groups(self, bounds: Choice, rows: int) -> Tensor:
        """For each of many rows, the variable that says between which bounds it lies."""
        if bounds.sorted and bounds.sorted[0] == "bounds":
            if bounds.sorted[1].numel() == rows:
                return bounds.sorted[1].reshape(-1)
        key = (tuple(bounds.variables.reshape(-1).tolist()), rows)
        if key not in self._grouped:
            self._grouped[key] = self.variables(rows).variables
        return self._grouped[key]

    def key(self, variable: int, size: int) -> int:
        """The number of a variable that says which of ``size`` entries."""
        return self._key_of.setdefault((variable, size), len(self._key_of))

    # -- unknowns ---

    def among(self, index: np.ndarray) -> np.ndarray:
        """Which entries of an index array are such unknowns."""
        if not len(self.ids):
            return np.zeros(index.shape, dtype=bool)
        return np.isin(index, self.ids)

    def add(
        self, ids: np.ndarray, tables: Sequence[np.ndarray], keys: np.ndarray
    ) -> None:
        """Let new unknowns, with numbers above all others, stand for entries of tables."""
        self.ids = np.concatenate([self.ids, ids])
        self._keys = np.concatenate([self._keys, keys])
        self._tables += tables

    def chosen(self, index: np.ndarray, values: dict[int, int]) -> np.ndarray:
        """The entries of tables that unknowns stand for, given the values of variables.

        Those of variables without a value are taken as pinned.
        """
        places = np.searchsorted(self.ids, index)
        variables = np.array([variable for variable, _ in self._key_of])
        which = variables[self._keys[places]].tolist()
        at = [values.get(variable, -1) for variable in which]
        tables = [self._tables[n] for n in places.tolist()]
        return np.array([t[v] if v >= 0 else PINNED for t, v in zip(tables, at)])

    def settle_groups(self, values: dict[int, int]) -> None:
        """Add the values of variables that say between which bounds a row lies."""
        for (bounds, rows), variables in self._grouped.items():
            if all(b in values for b in bounds):
                ends = np.array([values[b] for b in bounds])
                group = np.searchsorted(ends, np.arange(rows), side="right")
                values.update(zip(variables.tolist(), group.tolist()))

    def known(self, table: np.ndarray, key: int) -> int | None:
        """The unknown for an entry of a table, if there is one already."""
        return self._id_of.get((key, table.tobytes()))

    def remember(self, table: np.ndarray, key: int, number: int) -> None:
        """Let :meth:`known` find an unknown."""
        self._id_of[key, table.tobytes()] = number

    def tables(self, index: np.ndarray) -> list[np.ndarray]:
        """The tables of unknowns."""
        return [self._tables[n] for n in np.searchsorted(self.ids, index).tolist()]

    def keys(self, index: np.ndarray) -> np.ndarray:
        """Which variable each unknown depends on; −1 for other unknowns."""
        keys = np.full(index.shape, -1)
        where = self.among(index)
        keys[where] = self._keys[np.searchsorted(self.ids, index[where])]
        return keys

    def collapsed(self, index: np.ndarray, find: Callable) -> np.ndarray:
        """``index`` with those unknowns replaced that are the same for every choice."""
        where = self.among(index)
        if not where.any():
            return index
        unique = np.unique(index[where])
        replaced = unique.copy()
        for n, table in enumerate(self.tables(unique)):
            roots = find(table)
            if (roots == roots[0]).all():
                replaced[n] = roots[0]
        result = index.copy()
        result[where] = replaced[np.searchsorted(unique, index[where])]
        return result

    # -- equations ---

    def spelled_out(self, rows: np.ndarray, coefficients: np.ndarray, fresh: Callable):
        """Equations of the entries of tables, as pairs of rows and coefficients.

        Args:
            rows: Unknowns of each equation ``Σ coefficient · unknown = 0``.
            coefficients: One for each column.
            fresh: Makes new unknowns.
        """
        keys = self.keys(rows)
        alone = _alone(keys)
        # A term that alone depends on its variable does not vary with it.
        tables = self.tables(np.unique(rows[alone]))
        for table in {table.tobytes(): table for table in tables}.values():
            yield np.stack([table[1:], np.full(len(table) - 1, table[0])], 1), np.array(
                [1, -1]
            )
        settled, unique = rows.copy(), np.unique(rows[alone])
        first = np.array([table[0] for table in self.tables(unique)], dtype=np.int64)
        settled[alone] = first[np.searchsorted(unique, rows[alone])]
        keys = np.where(alone, -1, keys)
        count = np.array(
            [len(set(row) - {-1}) for row in keys.tolist()], dtype=np.int64
        )
        yield settled[count == 0], coefficients
        for part in self._for_each(settled[count == 1]):
            yield part, coefficients
        for row in np.flatnonzero(count > 1).tolist():
            yield from self._for_several(settled[row], keys[row], coefficients, fresh)

    def _for_each(self, rows: np.ndarray):
        """Equations for every value of the one variable that each of them depends on."""
        patterns, which = np.unique(self.among(rows), axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            alike = rows[which.reshape(-1) == number]
            tables = [
                self.tables(alike[:, a]) if w else None for a, w in enumerate(pattern)
            ]
            sizes = np.array([len(t) for t in tables[int(pattern.argmax())]])
            for size in np.unique(sizes).tolist():
                own = np.flatnonzero(sizes == size)
                columns = [
                    np.repeat(alike[own, a], size) if t is None
                    else np.concatenate([t[n] for n in own])
                    for a, t in enumerate(tables)
                ]  # fmt: skip
                yield np.stack(columns, 1)

    def _for_several(self, row, keys, coefficients, fresh):
        """An equation for all values of several variables: each one's part is a constant."""
        distinct = np.unique(keys[keys >= 0])
        constants = fresh(len(distinct))
        for constant, key in zip(constants, distinct.tolist()):
            (part,) = self._for_each(row[keys == key][None])
            column = np.full((len(part), 1), constant)
            yield np.hstack([part, column]), np.append(coefficients[keys == key], -1)
        rest = np.concatenate([row[keys < 0], constants])[None]
        ones = np.ones(len(distinct), dtype=np.int64)
        yield rest, np.concatenate([coefficients[keys < 0], ones])


def _alone(keys: np.ndarray) -> np.ndarray:
    """Which entries of each row are the only ones with their key; those without one are not."""
    alone = keys >= 0
    for a in range(keys.shape[1]):
        for b in range(keys.shape[1]):
            if a != b:
                alone[:, a] &= keys[:, a] != keys[:, b]
    return alone
