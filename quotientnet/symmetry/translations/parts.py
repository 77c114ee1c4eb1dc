"""What unknown moves are made of: parts of parameters, products, what is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from quotientnet.symmetry.translations.shifts import Leaf, Picked

__all__ = ["Part", "Product", "Absorbed"]


@dataclass(frozen=True, eq=False)
class Part:
    """Unknown moves of a parameter: a vector for each index along the kept axes.

    Attributes:
        leaf: The parameter.
        kept: Axes with an unknown for each index; along the others the unknown is a vector.
        start: The first unknown.
        centred: Whether these vectors have mean zero.
        flat: Whether they are constant vectors, of one number.
    """

    leaf: Leaf
    kept: tuple[int, ...]
    start: int
    centred: bool = False
    flat: bool = False

    @property
    def count(self) -> int:
        """The number of unknowns."""
        return prod(self.leaf.shape[a] for a in self.kept)

    @property
    def length(self) -> int:
        """The numbers that each unknown is made of."""
        return 1 if self.flat else self.leaf.numel // max(self.count, 1)

    @property
    def slice(self) -> slice:
        """Its unknowns."""
        return slice(self.start, self.start + self.count)


@dataclass(frozen=True, eq=False)
class Product:
    """Unknowns that are sums of products of others with known numbers, or with data.

    Attributes:
        start: The first of them.
        pairs: For each, the number of a row of ``inputs`` and of ``entries``, shape ``(P, 2)``.
        inputs: Unknowns, shape ``(rows, K, terms)``.
        coefficients: Of the terms.
        leaf: What they are multiplied with; ``None`` for data.
        entries: Where, a matrix ``(R, K)``.
    """

    start: int
    pairs: np.ndarray
    inputs: np.ndarray
    coefficients: np.ndarray
    leaf: Leaf | None = None
    entries: Picked | None = None

    @property
    def slice(self) -> slice:
        """Its unknowns."""
        return slice(self.start, self.start + len(self.pairs))


@dataclass(frozen=True)
class Absorbed:
    """What an operation forgets: unknowns, and the number of the record of the operation."""

    record: int
    unknowns: np.ndarray
