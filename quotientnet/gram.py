"""Solves with ``Aᵀ diag(weight) A``, the Gram matrix of a group's exponents."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from quotientnet import exact

__all__ = ["Gram"]

_DENSE = 1024
"""Up to this many generators the pseudo-inverse is formed; beyond, conjugate gradients."""


class Gram:
    """``M = Aᵀ diag(weight) A``, positive semidefinite, set up once and solved often.

    ``M`` is kept as a sparse matrix plus a product of thin sparse matrices: a dense layer
    couples every row class with every column class by the same number, which is one rank-one
    term and not a dense block. Where ``M`` is singular (generators that move only entries of
    weight zero, or move together), :meth:`solve` still answers consistent systems: ``A x`` is
    then unique even though ``x`` is not.

    Args:
        group: The scaling group.
        weight: Non-negative weights, shape ``(size,)``, boolean or floating; 1 if omitted.
    """

    def __init__(self, group, weight: Tensor | None = None):
        if weight is not None and tuple(weight.shape) != (group.layout.size,):
            raise ValueError(
                f"Gram: weight has shape {tuple(weight.shape)}, it needs ({group.layout.size},)"
            )
        self.dimension = group.dimension
        self._group = group
        self._mask = None if weight is None else weight.detach() != 0
        parts = _class_parts(group, weight)
        classes = group.classes.astype(np.float64)
        self._sparse = sparse.csr_array(
            classes.T @ parts.sparse(classes.shape[0]) @ classes
        )
        self._left, self._right = (
            classes.T @ factor for factor in parts.factors(classes.shape[0])
        )

    @cached_property
    def rank(self) -> int:
        """The rank of ``A`` on the entries of nonzero weight, exactly."""
        return exact.rank(_spanning_rows(self._group, self._mask) @ self._group.classes)

    def solve(self, b: Tensor) -> Tensor:
        """A solution ``x`` of ``M x = b`` in float64, differentiable in ``b``.

        Args:
            b: Right-hand sides in the range of ``M``, shape ``(..., dimension)``.

        Raises:
            RuntimeError: Conjugate gradients, used for many generators, did not reach a relative
                residual of 1e-9.
        """
        b = b.to(torch.float64)
        if self.dimension <= _DENSE:
            return b @ self._pseudo_inverse(b.device)
        return _IterativeSolve.apply(b, self)

    def to_dense(self) -> np.ndarray:
        """``M`` as an array; for tests and small groups."""
        return self._sparse.toarray() + (self._left @ self._right.T).toarray()

    def _pseudo_inverse(self, device) -> Tensor:
        cache = self.__dict__.setdefault("_inverses", {})
        if device not in cache:
            matrix = self.to_dense()
            scale = np.sqrt(_inverse_or_zero(np.diagonal(matrix).copy()))
            values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
            top = values[-1] if values.size else 1.0
            kept = values > 8 * top * max(self.dimension, 1) * np.finfo(np.float64).eps
            half = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
            inverse = half @ half.T
            cache[device] = torch.from_numpy(inverse).to(device)
        return cache[device]

    @cached_property
    def _precondition(self):
        """An approximate inverse: exact for a diagonal plus thin products, else Jacobi."""
        low_rank = np.asarray(self._left.multiply(self._right).sum(axis=1)).reshape(-1)
        own = self._sparse.diagonal()
        if self._sparse.nnz > np.count_nonzero(own):
            inverse = _inverse_or_zero(own + low_rank)[:, None]
            return lambda r: inverse * r
        # Woodbury; the tiny ridge keeps a singular M invertible, the iteration removes its effect.
        inverse = _inverse_or_zero(own * (1 + 1e-8))[:, None]
        left, right = (
            self._left.multiply(inverse).tocsr(),
            self._right.multiply(inverse).T.tocsr(),
        )
        core = np.linalg.inv(np.eye(left.shape[1]) + (self._right.T @ left).toarray())
        return lambda r: inverse * r - left @ (core @ (right @ r))

    def _apply(self, x: np.ndarray) -> np.ndarray:
        return self._sparse @ x + self._left @ (self._right.T @ x)

    def conjugate_gradients(
        self, b: np.ndarray, tolerance: float = 1e-15
    ) -> np.ndarray:
        """Solutions of ``M x = b`` for the columns of ``b``, each to a relative residual.

        Stops at ``tolerance``, or at rounding level when no column has improved for a while.
        """
        size = np.sqrt(
            np.maximum((b * self._precondition(b)).sum(0), np.finfo(np.float64).tiny)
        )
        x, r, p, rho = np.zeros_like(b), b.copy(), np.zeros_like(b), np.ones(b.shape[1])
        best, best_x, stale = np.full(b.shape[1], np.inf), x, 0
        for _ in range(20 * self.dimension + 100):
            z = self._precondition(r)
            rho_next = (r * z).sum(0)
            error = np.sqrt(np.maximum(rho_next, 0)) / size
            improved = error < best
            stale = 0 if improved.any() else stale + 1
            best_x = np.where(improved, x, best_x)
            best = np.where(improved, error, best)
            if best.max(initial=0.0) <= tolerance or (
                stale > 50 and best.max() < 1e-12
            ):
                break
            p = z + np.divide(rho_next, rho, out=np.zeros_like(rho), where=rho > 0) * p
            q = self._apply(p)
            curvature = (p * q).sum(0)
            step = np.divide(
                rho_next, curvature, out=np.zeros_like(rho), where=curvature > 0
            )
            x, r, rho = x + step * p, r - step * q, rho_next
        if best.max(initial=0.0) > 1e-9:
            raise RuntimeError(
                "Gram.solve: conjugate gradients stopped at a relative residual of "
                f"{best.max():.1e}; "
                "is the right-hand side finite and in the range?"
            )
        return best_x


def _inverse_or_zero(diagonal: np.ndarray) -> np.ndarray:
    """``1/diagonal``, 0 where it is 0: generators that move nothing."""
    return np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)


class _IterativeSolve(torch.autograd.Function):
    """``M⁺ b`` as an autograd function: ``M`` is symmetric, so backward is the same solve."""

    @staticmethod
    def forward(ctx, b: Tensor, gram: Gram) -> Tensor:
        ctx.gram = gram
        columns = b.detach().cpu().numpy().reshape(-1, gram.dimension).T
        x = gram.conjugate_gradients(np.ascontiguousarray(columns))
        return torch.from_numpy(np.ascontiguousarray(x.T)).reshape(b.shape).to(b.device)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _IterativeSolve.apply(grad, ctx.gram), None


class _Parts:
    """``Gᵀ diag(weight) G`` over classes, as triplets and rank-one products."""

    def __init__(self):
        self._rows, self._columns, self._values = [], [], []
        self._left, self._right = [], []

    def add(self, rows, columns, values) -> None:
        """Add triplets; arrays broadcast against each other."""
        rows, columns, values = np.broadcast_arrays(rows, columns, values)
        self._rows.append(rows.reshape(-1))
        self._columns.append(columns.reshape(-1))
        self._values.append(values.reshape(-1).astype(np.float64))

    def add_symmetric(self, rows, columns, values) -> None:
        """Add triplets and their transpose."""
        self.add(rows, columns, values)
        self.add(columns, rows, values)

    def add_product(self, left: np.ndarray, right: np.ndarray, factor: float) -> None:
        """Add ``factor * (u vᵀ + v uᵀ)``, where ``u`` and ``v`` count the classes in each list."""
        self._left += [(left, factor), (right, factor)]
        self._right += [(right, 1.0), (left, 1.0)]

    def sparse(self, count: int) -> sparse.csr_array:
        """The triplets, duplicates summed."""
        if not self._rows:
            return sparse.csr_array((count, count), dtype=np.float64)
        data = np.concatenate(self._values)
        where = (np.concatenate(self._rows), np.concatenate(self._columns))
        return sparse.csr_array(sparse.coo_array((data, where), shape=(count, count)))

    def factors(self, count: int) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The thin matrices whose product is the rest."""
        return _counts(self._left, count), _counts(self._right, count)


def _counts(columns, count: int) -> sparse.csr_array:
    shape = (count, len(columns))
    if not columns:
        return sparse.csr_array(shape, dtype=np.float64)
    rows = np.concatenate([classes for classes, _ in columns])
    data = np.concatenate(
        [np.full(classes.shape, factor) for classes, factor in columns]
    )
    position = np.concatenate([np.full(c.shape, j) for j, (c, _) in enumerate(columns)])
    return sparse.csr_array(sparse.coo_array((data, (rows, position)), shape=shape))


def _class_parts(group, weight: Tensor | None) -> _Parts:
    parts = _Parts()
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        tensor = (
            None
            if weight is None
            else weight[entry.slice].reshape(entry.shape).detach()
        )
        for term in terms:
            total = _reduced(tensor, entry.shape, term.index.shape)
            parts.add(term.index, term.index, total * term.coefficient**2)
        for a, b in combinations(terms, 2):
            _add_pair(parts, a, b, tensor, entry.shape)
    return parts


def _add_pair(
    parts: _Parts, a, b, weight: Tensor | None, shape: tuple[int, ...]
) -> None:
    """The coupling of two terms of one parameter: every entry links its two classes."""
    factor = float(a.coefficient * b.coefficient)
    common = tuple(max(i, j) for i, j in zip(a.index.shape, b.index.shape))
    multiplicity = np.prod(shape) / np.prod(common)
    separable = not set(a.axes) & set(b.axes)
    if separable and weight is None:
        parts.add_product(
            a.index.reshape(-1), b.index.reshape(-1), factor * multiplicity
        )
        return
    if separable and weight.dtype == torch.bool:
        missing = multiplicity - _reduced(weight, shape, common)
        if 2 * np.count_nonzero(missing) < missing.size:
            parts.add_product(
                a.index.reshape(-1), b.index.reshape(-1), factor * multiplicity
            )
            where = np.nonzero(missing)
            rows, columns = (np.broadcast_to(t.index, common)[where] for t in (a, b))
            parts.add_symmetric(rows, columns, -factor * missing[where])
            return
    values = _reduced(weight, shape, common)
    where = np.nonzero(np.broadcast_to(values, common))
    rows, columns = (np.broadcast_to(t.index, common)[where] for t in (a, b))
    parts.add_symmetric(rows, columns, factor * np.broadcast_to(values, common)[where])


def _reduced(
    weight: Tensor | None, shape: tuple[int, ...], target: tuple[int, ...]
) -> np.ndarray:
    """The weight summed to ``target``, which broadcasts to ``shape``; 1 where omitted."""
    if weight is None:
        return np.full(target, np.prod(shape) / max(np.prod(target), 1))
    axes = [axis for axis, length in enumerate(target) if length != shape[axis]]
    weight = weight.to(torch.float64)
    return (weight.sum(axes, keepdim=True) if axes else weight).cpu().numpy()


def _spanning_rows(group, mask: Tensor | None) -> sparse.csr_array:
    """Rows over classes that span those of ``G`` on the entries kept by ``mask``."""
    count, blocks = group.classes.shape[0], []
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        kept = (
            None
            if mask is None
            else mask[entry.slice].reshape(entry.shape).cpu().numpy()
        )
        blocks.append(_spanning_rows_of(terms, kept, entry.shape, count))
    return sparse.csr_array(
        sparse.vstack([sparse.csr_array((0, count), dtype=np.int64), *blocks])
    )


def _spanning_rows_of(terms, kept, shape, count: int) -> sparse.csr_array:
    common = np.broadcast_shapes(*(term.index.shape for term in terms))
    classes = [np.broadcast_to(term.index, common) for term in terms]
    if kept is not None:
        axes = tuple(
            axis for axis, length in enumerate(common) if length != shape[axis]
        )
        active = kept.any(axis=axes, keepdims=True)
        classes = [c[active] for c in classes]
    classes = [c.reshape(-1) for c in classes]
    coefficients = [term.coefficient for term in terms]
    if len(terms) == 2 and sum(coefficients) == 0:
        # Differences along the edges of a graph span the differences within its components.
        graph = sparse.coo_array(
            (np.ones(len(classes[0])), tuple(classes)), shape=(count, count)
        )
        labels = connected_components(graph, directed=False)[1]
        vertices = np.flatnonzero(np.bincount(np.concatenate(classes), minlength=count))
        _, first, inverse = np.unique(
            labels[vertices], return_index=True, return_inverse=True
        )
        rows = np.stack([vertices, vertices[first][inverse]], axis=1)
    else:
        rows = np.unique(np.stack(classes, axis=1), axis=0)
    data = np.broadcast_to(np.array(coefficients, dtype=np.int64), rows.shape)
    line = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    where = (line.reshape(-1), rows.reshape(-1))
    matrix = sparse.coo_array((data.reshape(-1), where), shape=(len(rows), count))
    return sparse.csr_array(matrix)
