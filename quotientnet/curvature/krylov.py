"""An orthonormal basis of a Krylov space that grows, restarts and takes in new directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.operator import Operator

__all__ = ["Krylov", "Ritz"]


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected matrix, in an order.

    Attributes:
        values: Shape ``(k,)``.
        vectors: Coordinates in the multiplied part of the basis, shape ``(k, k)``.
        leaks: Coordinates of ``H x − θ x`` in the pending part, shape ``(p, k)``.
        residuals: ``‖H x − θ x‖``, at least the rounding of ``H``, shape ``(k,)``.
    """

    values: np.ndarray
    vectors: np.ndarray
    leaks: np.ndarray
    residuals: np.ndarray

    def take(self, which) -> Ritz:
        """Those of these indices."""
        return Ritz(
            self.values[which],
            self.vectors[:, which],
            self.leaks[:, which],
            self.residuals[which],
        )

    def first(self, count: int) -> Ritz:
        """The first ``count`` of them."""
        return self.take(slice(count))


class Krylov:
    """Orthonormal vectors ``W``, of which some, ``V``, have been multiplied: ``H V = W C``.

    The others are *pending*. ``C`` is kept column by column as ``Wᵀ H v``, in float64 on the
    host, so that nothing depends on how the basis came about: Krylov steps, restarts, random
    vectors. Everything is orthogonal to the known null directions of the operator and to
    ``deflate``; ``H`` stands for its compression to that complement.

    Args:
        operator: The symmetric operator.
        capacity: Most vectors in the basis.
        deflate: Directions to leave out, shape ``(size, k)``, or None.
        generator: Source of random vectors.
        name: Of the caller, in errors.

    Attributes:
        vectors: The basis as rows, shape ``(capacity, size)``; the first ``count`` are used.
        count: Size of the basis.
        expanded: Which basis vectors have been multiplied, shape ``(capacity,)``.
        new: Which were inserted or injected and not multiplied yet, shape ``(capacity,)``.
        fresh: Which descend from the last :meth:`inject`, shape ``(capacity,)``.
        products: Products spent.
        scale: The largest ``‖H v‖`` seen.
        forgotten: What :meth:`forget` has added to residuals.
    """

    def __init__(self, operator: Operator, capacity: int, deflate, generator, name):
        self._operator, self._generator, self._name = operator, generator, name
        self._eps = torch.finfo(operator.dtype).eps
        self.capacity = min(capacity, operator.size)
        self.vectors = torch.empty(
            (self.capacity, operator.size), dtype=operator.dtype, device=operator.device
        )
        self._columns = np.zeros((self.capacity, self.capacity))
        self.expanded = np.zeros(self.capacity, dtype=bool)
        self.fresh = np.zeros(self.capacity, dtype=bool)
        self.new = np.zeros(self.capacity, dtype=bool)
        self.count, self.products, self.scale, self._restarts = 0, 0, 0.0, 0
        self.forgotten = 0.0
        self._deflated = None
        if deflate is not None:
            deflate = operator.project(_unit_columns(deflate))
            left, sizes, _ = torch.linalg.svd(deflate, full_matrices=False)
            self._deflated = left[:, sizes > 1e3 * self._eps]

    @property
    def rounding(self) -> float:
        """What is rounding in a coordinate of a product: below it they are dropped."""
        return (10 + self._restarts) * self._eps * self.scale

    @property
    def done(self) -> np.ndarray:
        """Indices of the multiplied vectors."""
        return np.flatnonzero(self.expanded)

    @property
    def pending(self) -> np.ndarray:
        """Indices of the vectors that wait to be multiplied."""
        return np.flatnonzero(~self.expanded[: self.count])

    def project(self, rows: Tensor) -> Tensor:
        """The rows without their part along null and deflated directions."""
        return self._deflate(self._operator.project(rows.T).T)

    def _deflate(self, rows: Tensor) -> Tensor:
        if self._deflated is None:
            return rows
        return rows - (rows @ self._deflated) @ self._deflated.T

    def insert(self, rows: Tensor) -> int:
        """Add start vectors, shape ``(m, size)``; returns how many directions were new."""
        first = self.count
        rows = self.project(_unit_columns(rows.T).T)
        self._append(self._orthogonalise(rows)[0], 100 * self._eps)
        self.new[first : self.count] = True
        return self.count - first

    def inject(self, number: int) -> int:
        """Add random vectors; returns how many, 0 where no direction is left."""
        self.fresh[:] = False
        rows = [
            normal(self._operator.size, like=self._operator, generator=self._generator)
            for _ in range(number)
        ]
        rows = torch.stack(rows) / self._operator.size**0.5
        first = self.count
        self._append(
            self._orthogonalise(self.project(rows))[0], 100 * self._eps
        )  # fmt: skip
        self.fresh[first : self.count] = self.new[first : self.count] = True
        return self.count - first

    def expand(self, which: np.ndarray) -> None:
        """Multiply these pending vectors; what leaves the basis becomes pending.

        Raises:
            ValueError: A product that is NaN or infinite; an operator that is not symmetric.
        """
        image = self._multiply(self.vectors[torch.as_tensor(which)])
        # A product has no part along null directions but rounding, which _unit removes.
        image, columns = self._orthogonalise(self._deflate(image))
        first = self.count
        self._columns[:first, which] = columns
        added = self._append(image, self.rounding)
        self._columns[first : self.count, which] = added
        self.fresh[first : self.count] = self.fresh[which].all()
        self.expanded[which], self.new[which] = True, False
        self._check_symmetry(which)

    def ritz(self, key, chosen: np.ndarray | None = None) -> Ritz:
        """Eigenpairs of the compression to ``V``, or to the fresh part of it.

        Args:
            key: A function of the values; the larger its result, the earlier a value comes.
            chosen: Boolean mask of the basis vectors to use; all if omitted.
        """
        chosen = np.ones(self.capacity, dtype=bool) if chosen is None else chosen
        inside, outside = np.flatnonzero(self.expanded & chosen), self.pending
        matrix = self._columns[np.ix_(inside, inside)]
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        ranks = np.argsort(-key(values), kind="stable")
        values, vectors = values[ranks], vectors[:, ranks]
        leaks = self._columns[np.ix_(outside, inside)] @ vectors
        norms = np.sqrt((leaks**2).sum(axis=0))
        return Ritz(
            values, vectors, leaks, np.maximum(norms, self.rounding) + self.forgotten
        )

    def combine(self, ritz: Ritz) -> Tensor:
        """Ritz vectors as rows, shape ``(k, size)``."""
        weights = torch.as_tensor(ritz.vectors.T).to(self.vectors)
        return weights @ self.vectors[torch.as_tensor(self.done)]

    def is_fresh(self, ritz: Ritz) -> np.ndarray:
        """Which Ritz vectors lie mostly in the fresh part of the basis."""
        return (self.fresh[self.done, None] * ritz.vectors**2).sum(axis=0) > 0.5

    def restart(self, kept: Ritz) -> None:
        """Replace ``V`` by the Ritz vectors kept; the pending vectors stay."""
        fresh = self.is_fresh(kept)
        waiting, waiting_fresh = self.pending, self.fresh[self.pending]
        waiting_new = self.new[waiting]
        rows = torch.cat(
            [self.combine(kept), self.vectors[torch.as_tensor(waiting)]]
        )  # fmt: skip
        k, self.count = len(kept.values), len(rows)
        self.vectors[: self.count] = rows
        self._columns[:] = 0
        self._columns[:k, :k] = np.diag(kept.values)
        self._columns[k : self.count, :k] = kept.leaks
        self.expanded[:] = False
        self.expanded[:k] = True
        self.fresh[:] = False
        self.fresh[: self.count] = np.concatenate([fresh, waiting_fresh])
        self.new[:] = False
        self.new[k : self.count] = waiting_new
        self._restarts += 1

    def forget(self, below: float) -> None:
        """Drop pending vectors into which the products lead by less than this: rounding that
        divisions have made large. It points along eigenvectors that a search has to find.
        """
        rows = np.sqrt((self._columns[: self.count] ** 2).sum(axis=1))
        kept = np.flatnonzero(self.expanded[: self.count] | (rows > below))
        if len(kept) == self.count:
            return
        dropped = np.delete(rows, kept)
        self.forgotten = float(np.sqrt(self.forgotten**2 + (dropped**2).sum()))
        self.vectors[: len(kept)] = self.vectors[torch.as_tensor(kept)]
        columns = self._columns[np.ix_(kept, kept)]
        self._columns[:] = 0
        self._columns[: len(kept), : len(kept)] = columns
        for flags in (self.expanded, self.fresh, self.new):
            flags[: len(kept)] = flags[kept]
            flags[len(kept) :] = False
        self.count = len(kept)

    def merge_pending(self) -> None:
        """Keep of the pending vectors only the directions into which products led; none is new."""
        done, pending = self.done, self.pending
        left, sizes, right = np.linalg.svd(
            self._columns[np.ix_(pending, done)], full_matrices=False
        )
        rank = int((sizes > self.rounding).sum())
        weights = torch.as_tensor(left[:, :rank].T).to(self.vectors)
        rows = weights @ self.vectors[torch.as_tensor(pending)]
        first = len(done)
        self.vectors[first : first + rank] = rows
        self._columns[first:] = 0
        self._columns[first : first + rank, done] = sizes[:rank, None] * right[:rank]
        self.fresh[first:] = False
        self.count = first + rank

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) == 1:
            image = (self._operator @ rows[0])[None]
        else:
            image = (self._operator @ rows.T).T
        self.products += len(rows)
        size = float(image.norm(dim=1).max())
        if not size < float("inf"):
            raise ValueError(
                f"{self._name}: product {self.products} is NaN or infinite; is the point valid, or "
                "does a value overflow in this dtype?"
            )
        self.scale = max(self.scale, size)
        return image

    def _orthogonalise(self, rows: Tensor) -> tuple[Tensor, np.ndarray]:
        """Rows orthogonal to the basis, and the coordinates taken out, shape ``(count, m)``."""
        basis = self.vectors[: self.count]
        total = 0
        for _ in range(2):
            found = basis @ rows.T
            rows = torch.addmm(rows, found.T, basis, alpha=-1)
            total = total + found
        return rows, total.double().cpu().numpy()

    def _append(self, rows: Tensor, cutoff: float) -> np.ndarray:
        """Add the directions of rows orthogonal to the basis, and longer than the cutoff; returns
        the rows' coordinates in them, shape ``(added, m)``."""
        first, columns = self.count, np.zeros((len(rows), len(rows)))
        for j, row in enumerate(rows):
            new = self.vectors[first : self.count]
            for _ in range(2):
                found = new @ row
                row = row - found @ new
                columns[: len(new), j] += found.double().cpu().numpy()
            norm = float(row.norm())
            if norm > cutoff and self.count < self.capacity:
                self.vectors[self.count] = self._unit(row / norm)
                columns[self.count - first, j] = norm
                self.count += 1
        return columns[: self.count - first]

    def _unit(self, row: Tensor) -> Tensor:
        """A unit vector orthogonal to the basis once more: rounding has grown with division."""
        row = self._orthogonalise(self.project(row[None]))[0][0]
        return row / row.norm()

    def _check_symmetry(self, which: np.ndarray) -> None:
        done = self.done
        above = self._columns[np.ix_(done, which)]
        gap = np.abs(above - self._columns[np.ix_(which, done)].T).max()
        if gap > 10 * self._eps**0.5 * self.scale + self.forgotten:
            raise ValueError(
                f"{self._name}: ⟨v, H u⟩ and ⟨u, H v⟩ differ by {gap:.1e}, where ‖H v‖ ≤ "
                f"{self.scale:.1e}: the operator is not symmetric, or not the same at every "
                "product (dropout, a shuffled loader); operator.probe() tells which"
            )


def _unit_columns(columns: Tensor) -> Tensor:
    """The columns divided by their norms; zeros stay."""
    return columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
