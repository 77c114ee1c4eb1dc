"""The integer exponents of candidate scalings that derivatives at random points allow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from quotientnet.symmetry.assembly import redundant, settled
from quotientnet.symmetry.candidates import Candidates
from quotientnet.symmetry.lattice import (
    CLEAR,
    NullSpace,
    integer_rows,
    null_space,
    reduced,
    sparsest,
)
from quotientnet.symmetry.rows import RandomRows

__all__ = ["Search"]

_NEGLIGIBLE = 1e-9
"""Derivatives below this, relative to the largest, are zeros."""

_FRESH = 48
"""The number of new points at which what was found is tried again."""

_TOGETHER = 16
"""The most combinations of derivatives that are taken at one point."""

_LARGEST_BLOCK = 1 << 24
"""The most numbers in the derivatives that are taken at once."""

_ORDERS = 32
"""How many weights, at most, are tried as what tells generators apart."""


class Search:
    """Rows of derivatives by candidates, and the integer vectors that all of them annihilate.

    Args:
        candidates: The scalings to combine.
        source: Where rows come from; its replica's ``caller`` is named in errors.
        max_rows: When to give up.

    Attributes:
        live: The entries with an effect, a mask of shape ``(n,)``.
        gap: How clear the dimension is.
        count: The number of rows.
        points: The number of random points.
    """

    def __init__(
        self, candidates: Candidates, source: RandomRows, max_rows: int | None
    ):
        self.candidates, self.source = candidates, source
        self.caller = source.replica.caller
        self.count = self.points = 0
        self.gap = float("inf")
        self._limit = (
            4 * candidates.group.dimension + 1024 if max_rows is None else max_rows
        )
        self._blocks: list[np.ndarray] = []
        self._effect = np.zeros(candidates.group.layout.size)

    @property
    def live(self) -> np.ndarray:
        """The entries with an effect, a mask of shape ``(n,)``."""
        return self._effect > _NEGLIGIBLE * self._effect.max()

    def basis(self) -> np.ndarray:
        """Integer exponents, one generator a row, shape ``(dimension, candidates)``."""
        columns, space = self._space()
        self._require_clear(space, columns)
        rows, bad = integer_rows(space.vectors)
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1.0)
        residuals = np.abs(self._matrix()[:, columns] @ (rows / lengths[:, None]).T)
        bad |= residuals.max(0, initial=0.0) > 10 * _NEGLIGIBLE
        if bad.any():
            moved = space.vectors[:, bad][:, 0]
            sizes = np.unique(np.abs(moved).round(4))
            raise ValueError(
                f"{self.caller}: the derivatives allow a scaling whose exponents are no small "
                f"integers ({', '.join(f'{s:g}' for s in sizes[-4:])}), of "
                f"{self._names(moved, columns)}; is there a power that is no simple fraction?"
            )
        basis = np.zeros((len(rows), self.candidates.group.dimension), dtype=np.int64)
        basis[:, columns] = rows
        first, *others = self._orders()
        basis = reduced(basis, first)
        for order in others:
            basis = self._shorter(basis, reduced(basis, order))
        return settled(self.candidates, basis)

    def _shorter(self, basis: np.ndarray, other: np.ndarray) -> np.ndarray:
        """A basis of what scales the fewest rows, columns or entries, from two bases."""
        sizes, others = (
            (settled(self.candidates, rows) != 0).sum(1) for rows in (basis, other)
        )
        new = others < sizes.max(initial=0)
        pool, sizes = np.concatenate([basis, other[new]]), np.append(sizes, others[new])
        return pool[sparsest(pool, len(basis), sizes)] if new.any() else basis

    def _space(self) -> tuple[np.ndarray, NullSpace]:
        """The independent candidates with an effect, and the null space of their derivatives."""
        together, more = self._together(), 0
        self._draw(together, _FRESH)
        while True:
            columns = self._columns()
            need = len(columns) + 16 + more
            if self.count < need:
                self._draw(together, need - self.count)
                continue
            space = null_space(self._matrix()[:, columns])
            fresh = self._draw(1, _FRESH)[:, columns]
            again = np.array_equal(columns, self._columns())
            lengths = np.linalg.norm(space.vectors, axis=0)
            violation = np.abs(fresh @ space.vectors) / lengths
            if again and violation.max(initial=0.0) <= 100 * _NEGLIGIBLE:
                self.gap = space.gap
                return columns, space
            more = self.count - len(columns) + max(len(columns) // 4, 64)

    def _columns(self) -> np.ndarray:
        live, group = self.live, self.candidates.group
        if not live.any():
            raise ValueError(
                f"{self.caller}: no parameter has an effect on the derivatives of the outputs; "
                "every scaling is a symmetry"
            )
        reached = group.adjoint(torch.from_numpy(live).double()).numpy() > 0
        return np.flatnonzero(reached & ~redundant(self.candidates, live))

    def _draw(self, together: int, least: int) -> np.ndarray:
        """At least so many rows more, ``together`` of them at each point."""
        drawn = []
        for _ in range(-(-least // together)):
            rows = self.source.draw(together)
            largest = rows.abs().amax(0)
            self._effect = np.maximum(self._effect, largest.cpu().numpy())
            along = self.candidates.sums(rows).cpu().numpy()
            # Not blown up where nothing but rounding is left.
            sizes = np.linalg.norm(along, axis=1, keepdims=True)
            drawn.append(along / np.maximum(sizes, 1e-6))
            self.count, self.points = self.count + together, self.points + 1
            if self.count > self._limit:
                raise RuntimeError(
                    f"{self.caller}: the rank still grew after {self.count} derivatives; pass a "
                    "larger max_rows"
                )
        self._blocks.append(np.concatenate(drawn))
        return self._blocks[-1]

    def _together(self) -> int:
        """How many combinations to take at a point: fewer than there are results."""
        replica, (args, kwargs) = self.source.replica, self.source.some_inputs()
        outputs, statistics = replica.run(replica.w, args, kwargs, exact=False)
        results = sum(y.numel() for y in outputs) + len(statistics)
        most = min(_TOGETHER, results // 2, _LARGEST_BLOCK // len(replica.w))
        return max(most, 1)

    def _matrix(self) -> np.ndarray:
        self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def _orders(self) -> Iterator[np.ndarray]:
        """Orders of the candidates in which generators are to be told apart.

        Vectors come first: an entry has the scale of one unit, one of a weight those of two. Then
        the same with the rows or columns of one weight before all.
        """
        group = self.candidates.group
        rank, weights = np.zeros(group.dimension, dtype=np.int64), []
        for entry in group.layout.entries:
            matrix = len(entry.shape) > 1
            for term in group.incidence[entry.name]:
                rank[term.index] = int(matrix)
                if matrix:
                    weights.append(np.unique(term.index))
        place = np.arange(group.dimension)
        yield np.lexsort((place, rank))
        for index in weights[:: max(-(-len(weights) // _ORDERS), 1)]:
            first = rank.copy()
            first[index] = -1
            yield np.lexsort((place, first))
            # What comes first in a weight is where others are measured from.
            yield np.lexsort((-place, first))

    def _require_clear(self, space: NullSpace, columns: np.ndarray) -> None:
        if space.gap < CLEAR:
            raise RuntimeError(
                f"{self.caller}: the rank of the derivatives is doubtful: the smallest pivot is "
                f"only {space.gap:.0f} times the largest that counts as zero. A scaling of "
                f"{self._names(space.doubtful, columns)} is nearly a symmetry: is there a small "
                "constant, such as an eps?"
            )

    def _names(self, vector: np.ndarray, columns: np.ndarray) -> str:
        """The parameters that exponents of candidates scale."""
        group = self.candidates.group
        whole = torch.zeros(group.dimension, dtype=torch.float64)
        whole[torch.from_numpy(columns)] = torch.from_numpy(vector)
        exponents = group.exponents(whole).abs()
        names = list(group.layout.count(exponents > 0.01 * exponents.max()))
        return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
