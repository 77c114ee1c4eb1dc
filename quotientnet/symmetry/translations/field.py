"""Moves of parameters by coefficients: the solved unknowns, with the numbers of a point put in."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.translations.parts import Part, Product
from quotientnet.symmetry.translations.solving import Solved

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
        reached, live = self._reached(solved)
        columns = np.flatnonzero(reached)
        self._size = len(columns)
        at = np.cumsum(reached) - 1
        self.sources = torch.from_numpy(at[free])
        self._products = []
        for number in live:
            product = solved.products[number]
            own = np.flatnonzero(reached[product.slice])
            places = torch.from_numpy(at[product.start + own])
            inputs = solved.inputs[number][:, columns]
            self._products.append((product, places, torch.from_numpy(own), inputs))
        here = solved.by_column[:, columns].tocsr()
        starts = here.indptr
        self.parts = [
            (part, here[part.slice])
            for part in solved.unknowns.parts
            if starts[part.slice.stop] > starts[part.start]
        ]

    def _reached(self, solved: Solved) -> tuple[np.ndarray, list[int]]:
        """The free unknowns and the products that depend on them, a mask; and which products."""
        reached, live = np.zeros(solved.unknowns.count, dtype=bool), []
        reached[self.free] = True
        for number, product in enumerate(solved.products):
            if product.leaf is None:
                continue
            rows = (abs(solved.inputs[number]) @ reached).reshape(product.inputs.shape)
            moved = rows.any((1, 2))[product.pairs[:, 0]]
            if moved.any():
                reached[product.slice] = moved
                live.append(number)
        return reached, live

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

    def move_(self, w: Tensor, s: Tensor) -> Tensor:
        """Move a point in place, and return it.

        Args:
            w: The point, shape ``(n,)``, contiguous.
            s: Values of the free unknowns, shape ``(free, length of the part)``.
        """
        values = w.new_zeros(self._size, s.shape[-1])
        values[self.sources.to(w.device)] = s
        views = self.layout.unflatten(w)
        for product, places, own, matrix in self._products:
            values[places.to(w.device)] = self._multiplied(
                product, own, _times(matrix, values), views
            )
        for part, matrix in self.parts:
            own = _times(matrix, values)
            views[part.leaf.name] += decoded(part, own.expand(-1, part.length))
        return w

    @staticmethod
    def _multiplied(product: Product, own: Tensor, inputs: Tensor, views) -> Tensor:
        """The values of products, shape ``(own, 1)``."""
        weights = inputs.new_tensor(product.coefficients)
        rows = inputs.view(*product.inputs.shape) @ weights
        leaf = product.leaf
        numbers = views[leaf.name] if leaf.name else leaf.value.to(inputs)
        factor = product.entries.of(numbers.reshape(-1))
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


def _times(matrix: sparse.csr_array, values: Tensor) -> Tensor:
    sizes = {"size": matrix.shape, "dtype": values.dtype, "device": values.device}
    crow, column = torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices)
    data = torch.from_numpy(matrix.data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return torch.sparse_csr_tensor(crow, column, data, **sizes) @ values
