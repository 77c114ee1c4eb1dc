"""The moves that satisfy all equations: elimination with the latest unknown first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from quotientnet.symmetry.translations.parts import Product
from quotientnet.symmetry.translations.shifts import NOTHING
from quotientnet.symmetry.translations.unknowns import Unknowns

__all__ = ["Solved", "solve"]

_TINY = 1e-9
"""Coefficients below this are rounding errors: they are products of a few numbers of a module."""


@dataclass(frozen=True)
class Solved:
    """Every unknown in terms of free ones and of products.

    Attributes:
        unknowns: What was solved.
        expression: Row ``u`` has the coefficients of unknown ``u``, sparse ``(U, U)``.
        free: The unknowns of parameters that may have any value, a mask.
        products: Those of which something is left.
    """

    unknowns: Unknowns
    expression: sparse.csr_array
    free: np.ndarray
    products: tuple[Product, ...]

    @cached_property
    def inputs(self) -> list[sparse.csr_array]:
        """The rows of what each product is made of."""
        return [self.expression[p.inputs.reshape(-1)] for p in self.products]

    @cached_property
    def by_column(self) -> sparse.csc_array:
        """The same coefficients, by columns."""
        return self.expression.tocsc()


def solve(unknowns: Unknowns) -> Solved:
    """Solve each equation for its latest unknown, which nothing before it depends on.

    If that is a product, it is required to vanish together with those that have the same factor,
    and so is what their sum is a product of: the numbers it is multiplied with are arbitrary.
    """
    elimination = _Elimination(unknowns)
    for part in unknowns.parts:
        if part.leaf.pinned:
            elimination.add(np.arange(part.start, part.slice.stop)[:, None], np.ones(1))
    for rows, coefficients in unknowns.equations:
        elimination.add(rows, coefficients)
    elimination.run()
    expression = elimination.expression()
    free = np.zeros(unknowns.count, dtype=bool)
    for part in unknowns.parts:
        free[part.slice] = True
    free &= unknowns.read
    for each in unknowns.common:
        free[each] = True
    solved = elimination.solved[unknowns.rank]
    free &= ~solved
    live = [p for p in unknowns.products if not solved[p.slice].all()]
    return Solved(unknowns, expression, free, tuple(live))


class _Elimination:
    """Rows in echelon form, each with its latest unknown in front."""

    def __init__(self, unknowns: Unknowns):
        self.unknowns, size = unknowns, unknowns.count
        self.size, self.solved = size, np.zeros(size, dtype=bool)
        self._rank = unknowns.rank
        self._id, self._nothing = np.argsort(self._rank), self._rank[NOTHING]
        self.solved[self._nothing] = True
        self._row = np.full(size, -1)
        self._owner = np.full(size, -1)
        for number, product in enumerate(unknowns.products):
            self._owner[self._rank[product.slice]] = number
        self._waiting: list[sparse.csr_array] = []
        self._pivots: list[sparse.csr_array] = []
        self._count = 0

    def add(self, rows: np.ndarray, coefficients: np.ndarray) -> None:
        """Equations ``Σ coefficients · rows = 0``."""
        data = np.broadcast_to(coefficients, rows.shape).reshape(-1).astype(float)
        lines = np.repeat(np.arange(len(rows)), rows.shape[1])
        shape = (len(rows), self.size)
        self._waiting.append(
            sparse.csr_array((data, (lines, self._rank[rows.reshape(-1)])), shape=shape)
        )

    def run(self) -> None:
        """Reduce until no equation waits."""
        while self._waiting:
            work = self._clean(sparse.vstack(self._waiting, format="csr"))
            self._waiting = []
            if work.shape[0]:
                self._sweep(work)

    def _sweep(self, work: sparse.csr_array) -> None:
        lead = work.indices[work.indptr[1:] - 1]
        old = self.solved[lead]
        order = np.lexsort((np.diff(work.indptr), lead))
        first = np.zeros(len(lead), dtype=bool)
        first[order[np.unique(lead[order], return_index=True)[1]]] = True
        product = self._owner[lead] >= 0
        chosen = first & ~old & ~product
        self._solve_for(work[chosen], lead[chosen])
        vanishing = first & ~old & product
        if vanishing.any():
            self._let_vanish(work[vanishing], lead[vanishing])
        self._reduce(work[~chosen], lead[~chosen])

    def _solve_for(self, rows: sparse.csr_array, lead: np.ndarray) -> None:
        scale = 1 / rows.data[rows.indptr[1:] - 1]
        self._pivots.append(sparse.diags_array(scale) @ rows)
        self._row[lead] = self._count + np.arange(len(lead))
        self._count += len(lead)
        self.solved[lead] = True

    def _let_vanish(self, work: sparse.csr_array, lead: np.ndarray) -> None:
        """Let those products vanish together that have the factor of the leading one."""
        lines = work.tocoo()
        like = self._factor(lead)[lines.row] == self._factor(lines.col)
        like = like.all(1)
        entries = lines.data[like], (lines.row[like], lines.col[like])
        own = sparse.csr_array(entries, shape=work.shape)
        own.sort_indices()
        self._solve_for(own, lead)
        for number in np.unique(self._owner[lead]):
            product = self.unknowns.products[number]
            here = own[self._owner[lead] == number].tocoo()
            vectors = product.pairs[self._id[here.col] - product.start, 0]
            shape = here.shape[0], len(product.inputs)
            sums = sparse.csr_array((here.data, (here.row, vectors)), shape=shape)
            self._add_sums(sums, product)

    def _add_sums(self, sums: sparse.csr_array, product: Product) -> None:
        """Sums of what a product is made of vanish, number by number."""
        count, length, terms = product.inputs.shape
        for k in range(length):
            ids = self._rank[product.inputs[:, k].reshape(-1)]
            data = np.tile(product.coefficients, count).astype(float)
            rows = np.repeat(np.arange(count), terms)
            made = sparse.csr_array((data, (rows, ids)), shape=(count, self.size))
            self._waiting.append((sums @ made).tocsr())

    def _factor(self, unknowns: np.ndarray) -> np.ndarray:
        """By what unknowns are products, and with which of its rows; ``(n, 2)``, -1 for others."""
        owner = self._owner[unknowns]
        found = np.stack([owner, np.full(len(owner), -1)], 1)
        for number in np.unique(owner[owner >= 0]):
            product, here = self.unknowns.products[number], owner == number
            places = self._id[unknowns[here]] - product.start
            found[here, 1] = product.pairs[places, 1]
        return found

    def _reduce(self, work: sparse.csr_array, lead: np.ndarray) -> None:
        """Subtract the rows that are solved for what leads ``work``."""
        if not work.shape[0]:
            return
        pivots = sparse.vstack(self._pivots, format="csr") if self._pivots else None
        self._pivots = [] if pivots is None else [pivots]
        known = self._row[lead] >= 0
        factor = work.data[work.indptr[1:] - 1]
        if known.any():
            taken = sparse.diags_array(factor[known]) @ pivots[self._row[lead[known]]]
            self._waiting.append((work[known] - taken).tocsr())
        if not known.all():
            self._waiting.append(work[~known])

    def expression(self) -> sparse.csr_array:
        """Every unknown by unknowns that are not solved for."""
        here = np.flatnonzero(~self.solved)
        keep = sparse.csr_array(
            (np.ones(len(here)), (here, here)), shape=(self.size,) * 2
        )
        if not self._pivots:
            return keep[self._rank][:, self._rank]
        pivots = sparse.vstack(self._pivots, format="csr")
        lead = np.flatnonzero(self._row >= 0)
        lines = pivots[self._row[lead]].tocoo()
        below = lines.col != lead[lines.row]
        entries = (-lines.data[below], (lead[lines.row[below]], lines.col[below]))
        step = sparse.csr_array(entries, shape=(self.size,) * 2)
        whole = keep + step
        while self.solved[whole.indices].any():
            whole = self._clean(whole @ (keep + step), rows=False)
        return whole[self._rank][:, self._rank]

    def _clean(self, matrix: sparse.csr_array, rows: bool = True) -> sparse.csr_array:
        """Without zeros, and without empty rows and repeated ones if these do not matter."""
        matrix.sum_duplicates()
        matrix.data[
            (np.abs(matrix.data) < _TINY) | (matrix.indices == self._nothing)
        ] = 0
        matrix.eliminate_zeros()
        matrix.sort_indices()
        return matrix[np.diff(matrix.indptr) > 0] if rows else matrix
