"""Moves of parameters by coefficients: the solved unknowns, with the numbers of a point put in."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.translations.solving import Solved
from quotientnet.symmetry.translations.unknowns import Part, Product

__all__ = ["MoveField"]


class MoveField:
    """How a layout's parameters move when the free unknowns of one part have given values.

    Args:
        layout: The parameters.
        solved: All unknowns by free ones.
        home: The part whose free unknowns are given.
        free: Which of them, by number; others are 0.
    """

    def __init__(
        self, layout: ParameterLayout, solved: Solved, home: Part, free: np.ndarray
    ):
        self.layout, self.home, self.free = layout, home, free
        columns = self._reached(solved)
        self._size = len(columns)
        at = {int(u): n for n, u in enumerate(columns)}
        self.sources = torch.tensor([at[u] for u in free.tolist()])
        self._products = [
            (p, at_of(at, p), _rows(solved, p.inputs.reshape(-1), columns))
            for p in self._live
        ]
        self.parts = []
        for part in solved.unknowns.parts:
            own = np.arange(part.start, part.slice.stop)
            matrix = _rows(solved, own, columns)
            if matrix.count_nonzero():
                self.parts.append((part, matrix))

    def _reached(self, solved: Solved) -> np.ndarray:
        """The free unknowns, and the products that depend on them."""
        reached = np.zeros(solved.unknowns.count, dtype=bool)
        reached[self.free] = True
        self._live: list[Product] = []
        for product in solved.products:
            if product.leaf is None:
                continue
            rows = solved.expression[product.inputs.reshape(-1)] @ reached
            rows = rows.reshape(product.inputs.shape).any((1, 2)) if len(rows) else rows
            moved = rows[product.pairs[:, 0]]
            if moved.any():
                reached[product.slice] = moved
                self._live.append(product)
        return np.flatnonzero(reached)

    @cached_property
    def moved(self) -> dict[str, Tensor]:
        """The entries that move, a mask in the shape of each parameter that does."""
        masks = {}
        for part, matrix in self.parts:
            rows = torch.from_numpy(np.diff(matrix.indptr) > 0)
            mask = decoded(part, rows[:, None].expand(-1, part.length))
            name = part.leaf.name
            masks[name] = masks[name] | mask if name in masks else mask
        return masks

    def move(self, w: Tensor, s: Tensor) -> Tensor:
        """By how much a point moves, shape ``(n,)``.

        Args:
            w: The point.
            s: Values of the free unknowns, shape ``(free, length of the part)``.
        """
        values = w.new_zeros(self._size, s.shape[-1])
        values[self.sources.to(w.device)] = s
        views = self.layout.unflatten(w)
        for product, places, matrix in self._products:
            values[places[0].to(w.device)] = self._multiplied(
                product, places[1], _times(matrix, values), views
            )
        delta = torch.zeros_like(w)
        out = self.layout.unflatten(delta)
        for part, matrix in self.parts:
            own = _times(matrix, values)
            out[part.leaf.name] += decoded(part, own.expand(-1, part.length))
        return delta

    @staticmethod
    def _multiplied(product: Product, own: Tensor, inputs: Tensor, views) -> Tensor:
        """The values of products, shape ``(own, 1)``."""
        weights = inputs.new_tensor(product.coefficients)
        rows = inputs.view(*product.inputs.shape) @ weights
        leaf = product.leaf
        numbers = views[leaf.name] if leaf.name else leaf.value.to(inputs)
        factor = numbers.reshape(-1)[product.entries.to(inputs.device)]
        pairs = torch.from_numpy(product.pairs).to(inputs.device)[own.to(inputs.device)]
        return (rows @ factor.T)[pairs[:, 0], pairs[:, 1]][:, None]


def decoded(part: Part, values: Tensor) -> Tensor:
    """Values of a part's unknowns, shape ``(count, length)``, in the shape of the parameter."""
    shape, kept = part.leaf.shape, part.kept
    length = part.leaf.numel // max(part.count, 1)
    if part.flat:
        values = values.expand(-1, length)
    rest = [a for a in range(len(shape)) if a not in kept]
    values = values.reshape([shape[a] for a in (*kept, *rest)])
    return values.permute(np.argsort([*kept, *rest]).tolist()) if shape else values


def encoded(part: Part, tensor: Tensor) -> Tensor:
    """A parameter as values of a part's unknowns, shape ``(count, length)``."""
    rest = [a for a in range(tensor.ndim) if a not in part.kept]
    values = tensor.permute(*part.kept, *rest).reshape(part.count, -1)
    mean = values.mean(1, keepdim=True)
    return mean if part.flat else values - mean if part.centred else values


def at_of(at: dict[int, int], product: Product) -> tuple[Tensor, Tensor]:
    """Where a product's unknowns are among those reached, and which of its own these are."""
    own = [n for n in range(len(product.pairs)) if product.start + n in at]
    return torch.tensor([at[product.start + n] for n in own]), torch.tensor(own)


def _rows(
    solved: Solved, unknowns: np.ndarray, columns: np.ndarray
) -> sparse.csr_array:
    return solved.expression[unknowns][:, columns].tocsr()


def _times(matrix: sparse.csr_array, values: Tensor) -> Tensor:
    sizes = {"size": matrix.shape, "dtype": values.dtype, "device": values.device}
    crow, column = torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices)
    data = torch.from_numpy(matrix.data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return torch.sparse_csr_tensor(crow, column, data, **sizes) @ values
