"""How the classes of a group are coupled by weighted entries: ``Gᵀ diag(weight) G`` in parts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["Couplings", "Coupling", "class_couplings", "reduced", "spanning_rows"]

_SMALL = 256
"""Couplings of so few entries are listed one by one."""


@dataclass(frozen=True)
class Coupling:
    """A dense block: ``factor * matrix`` couples the classes ``left`` with the classes ``right``.

    Attributes:
        left: Class of each row.
        right: Class of each column.
        factor: The product of the coefficients.
        matrix: The weights, float64, shape ``(rows, columns)``, on any device.
    """

    left: np.ndarray
    right: np.ndarray
    factor: float
    matrix: Tensor

    def add_to(self, result: np.ndarray, x: np.ndarray) -> None:
        """Add the product with ``x``, shape ``(classes, m)``, and that of the transpose."""
        for matrix, rows, columns in (
            (self.matrix, self.left, self.right),
            (self.matrix.T, self.right, self.left),
        ):
            source = torch.from_numpy(x[columns]).to(matrix.device)
            product = (
                (matrix @ source[:, 0])[:, None] if x.shape[1] == 1 else matrix @ source
            )
            np.add.at(result, rows, self.factor * product.cpu().numpy())

    def mean(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Row sums, column sums and factor of the rank-one matrix with the same sums."""
        rows, columns = (self.matrix.sum(axis).cpu().numpy() for axis in (1, 0))
        total = rows.sum()
        return rows, columns, self.factor / total if total > 0 else 0.0

    def to_sparse(self, count: int) -> sparse.csr_array:
        """The block and its transpose, shape ``(count, count)``."""
        matrix = self.factor * self.matrix.cpu().numpy()
        rows, columns = np.broadcast_arrays(self.left[:, None], self.right)
        where = (rows.reshape(-1), columns.reshape(-1))
        half = sparse.coo_array((matrix.reshape(-1), where), shape=(count, count))
        return sparse.csr_array(half + half.T)


class Couplings:
    """``Gᵀ diag(weight) G`` over classes: triplets, products of thin matrices, dense blocks."""

    def __init__(self, count: int):
        self._count = count
        self.matrices: list[Coupling] = []
        self._rows, self._columns, self._values = [], [], []
        self._products: list[tuple] = []

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
        ones = np.ones(left.shape), np.ones(right.shape)
        self._products.append((left, ones[0], right, ones[1], factor))

    def sparse(self) -> sparse.csr_array:
        """The triplets, duplicates summed."""
        shape = (self._count, self._count)
        if not self._rows:
            return sparse.csr_array(shape, dtype=np.float64)
        data = np.concatenate(self._values)
        where = (np.concatenate(self._rows), np.concatenate(self._columns))
        return sparse.csr_array(sparse.coo_array((data, where), shape=shape))

    def factors(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The thin matrices ``L, R`` with ``L Rᵀ`` the sum of the products."""
        return _thin(self._products, self._count)

    def means(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The same for the dense blocks, each replaced by the rank-one matrix with its sums."""
        products = []
        for block in self.matrices:
            rows, columns, factor = block.mean()
            products.append((block.left, rows, block.right, columns, factor))
        return _thin(products, self._count)


def _thin(products, count: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    left, right = [], []
    for a, u, b, v, factor in products:
        left += [(a, factor * u), (b, factor * v)]
        right += [(b, v), (a, u)]
    return _columns(left, count), _columns(right, count)


def _columns(columns, count: int) -> sparse.csr_array:
    """A sparse matrix whose columns are sums over classes."""
    shape = (count, len(columns))
    if not columns:
        return sparse.csr_array(shape, dtype=np.float64)
    rows = np.concatenate([classes for classes, _ in columns])
    data = np.concatenate([values for _, values in columns])
    position = np.concatenate([np.full(c.shape, j) for j, (c, _) in enumerate(columns)])
    return sparse.csr_array(sparse.coo_array((data, (rows, position)), shape=shape))


def class_couplings(group, weight: Tensor | None) -> Couplings:
    """``Gᵀ diag(weight) G`` of a group, with weights of shape ``(size,)`` or 1."""
    parts = Couplings(group.classes.shape[0])
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        tensor = (
            None
            if weight is None
            else weight[entry.slice].reshape(entry.shape).detach()
        )
        for term in terms:
            total = reduced(tensor, entry.shape, term.index.shape)
            total = total if tensor is None else total.cpu().numpy()
            parts.add(term.index, term.index, total * term.coefficient**2)
        for a, b in combinations(terms, 2):
            _add_pair(parts, a, b, tensor, entry.shape)
    return parts


def _add_pair(parts: Couplings, a, b, weight: Tensor | None, shape) -> None:
    """The coupling of two terms of one parameter: every entry links its two classes."""
    factor = float(a.coefficient * b.coefficient)
    common = tuple(max(i, j) for i, j in zip(a.index.shape, b.index.shape))
    multiplicity = np.prod(shape) / np.prod(common)
    lists = a.index.reshape(-1), b.index.reshape(-1)
    separable = not set(a.axes) & set(b.axes)
    if separable and weight is None:
        parts.add_product(*lists, factor * multiplicity)
        return
    values = reduced(weight, shape, common)
    values = np.broadcast_to(values, common) if weight is None else values
    if separable and weight.dtype == torch.bool:
        missing = multiplicity - values.cpu().numpy()
        if 2 * np.count_nonzero(missing) < missing.size:
            parts.add_product(*lists, factor * multiplicity)
            _add_listed(parts, a, b, -factor * missing, common)
            return
    elif separable and np.prod(common) > _SMALL:
        order = [*a.axes, *b.axes]
        order += [axis for axis in range(len(shape)) if axis not in order]
        matrix = values.permute(order).reshape(lists[0].size, lists[1].size)
        parts.matrices.append(Coupling(*lists, factor, matrix))
        return
    values = values if weight is None else values.cpu().numpy()
    _add_listed(parts, a, b, factor * values, common)


def _add_listed(parts: Couplings, a, b, values: np.ndarray, common) -> None:
    where = np.nonzero(values)
    rows, columns = (np.broadcast_to(t.index, common)[where] for t in (a, b))
    parts.add_symmetric(rows, columns, values[where])


def reduced(weight: Tensor | None, shape, target):
    """The weight summed to ``target``, which broadcasts to ``shape``, as a float64 tensor.

    An array, of the number of entries, where the weight is omitted.
    """
    if weight is None:
        return np.full(target, np.prod(shape) / max(np.prod(target), 1))
    axes = [axis for axis, length in enumerate(target) if length != shape[axis]]
    return (
        weight.sum(axes, keepdim=True, dtype=torch.float64)
        if axes
        else weight.to(torch.float64)
    )


def spanning_rows(group, mask: Tensor | None) -> sparse.csr_array:
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
        vertices, where = np.unique(np.concatenate(classes), return_inverse=True)
        edges = (np.ones(len(classes[0])), where.reshape(2, -1))
        graph = sparse.coo_array(edges, shape=(len(vertices),) * 2)
        labels = connected_components(graph, directed=False)[1]
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        rows = np.stack([vertices, vertices[first][inverse]], axis=1)
    else:
        rows = np.unique(np.stack(classes, axis=1), axis=0)
    data = np.broadcast_to(np.array(coefficients, dtype=np.int64), rows.shape)
    line = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    where = (line.reshape(-1), rows.reshape(-1))
    matrix = sparse.coo_array((data.reshape(-1), where), shape=(len(rows), count))
    return sparse.csr_array(matrix)
