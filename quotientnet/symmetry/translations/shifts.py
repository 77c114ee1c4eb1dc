"""By how much a value moves, as a sum of unknowns that entries share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from quotientnet.symmetry.scales import compact

__all__ = [
    "NOTHING",
    "ANYWHERE",
    "Term",
    "Shift",
    "Averages",
    "plain",
    "Leaf",
    "Seen",
    "Picked",
    "narrowed",
]

NOTHING = 0
"""The unknown that is 0."""

ANYWHERE = 0
"""The site of what does not depend on the data."""


class Term(NamedTuple):
    """``coefficient · u[index]``, at entry ``e`` a linear function of the data of ``site[e]``.

    Attributes:
        coefficient: A number.
        site: Whose data each entry depends on: int64, of the value's shape.
        index: The unknown of each entry, likewise.
    """

    coefficient: float
    site: Tensor
    index: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Term:
        """The same change of shape applied to both index tensors."""
        site, index = (function(t) for t in (self.site, self.index))
        return Term(self.coefficient, _thin(site), _thin(index))

    @property
    def constant(self) -> bool:
        """Whether it does not depend on the data."""
        site = compact(self.site)
        return site.numel() == 0 or site.numel() == 1 and int(site) == ANYWHERE


class Shift:
    """A value of the graph: by how much it moves. Without terms it does not move at all.

    Args:
        shape: Of the value.
        terms: Index tensors are expanded to the shape.
    """

    def __init__(self, shape: Sequence[int], terms: Iterable[Term] = ()):
        self.shape = tuple(shape)
        self.terms = [t.map(lambda i: i.expand(self.shape)) for t in terms]

    def map(self, function: Callable[[Tensor], Tensor]) -> Shift:
        """The same change of shape applied to every index tensor."""
        shape = function(torch.zeros((), dtype=torch.long).expand(self.shape)).shape
        return Shift(shape, [t.map(function) for t in self.terms])

    def __mul__(self, factor: float) -> Shift:
        terms = [t._replace(coefficient=factor * t.coefficient) for t in self.terms]
        return Shift(self.shape, terms if factor else ())

    def __add__(self, other: Shift) -> Shift:
        shape = torch.broadcast_shapes(self.shape, other.shape)
        result, terms = [], Shift(shape, [*self.terms, *other.terms]).terms
        for term in terms:
            for n, known in enumerate(result):
                if _same(term.index, known.index) and _same(term.site, known.site):
                    sum_ = known.coefficient + term.coefficient
                    result[n] = known._replace(coefficient=sum_)
                    break
            else:
                result.append(term)
        return Shift(shape, [t for t in result if t.coefficient])

    def groups(self) -> list[list[Term]]:
        """Terms that depend on the same data, together."""
        groups: list[list[Term]] = []
        for term in self.terms:
            for group in groups:
                if _same(group[0].site, term.site):
                    group.append(term)
                    break
            else:
                groups.append([term])
        return groups


def plain(x: Shift) -> Shift:
    """``x`` without what is known of its entries: after an operation that changes them."""
    return Shift(x.shape, x.terms)


class Averages(Shift):
    """Nonnegative numbers that add up to one along an axis of the tensor that they were made as.

    Args:
        entries: The position of each number there, that axis the last one.
        length: Of that axis.
    """

    def __init__(self, entries: Tensor, length: int):
        super().__init__(entries.shape)
        self.entries, self.length = entries, length

    def map(self, function: Callable[[Tensor], Tensor]) -> Averages:
        """The same change of shape applied to the positions."""
        return Averages(function(self.entries), self.length)

    def along(self, axes: Sequence[int]) -> bool:
        """Whether sums over axes are over exactly one whole set of weights."""
        last = self.entries.movedim(tuple(axes), tuple(range(-len(axes), 0)))
        last = last.flatten(last.ndim - len(axes))
        if last.shape[-1] != self.length:
            return False
        rows, columns = last // self.length, last % self.length
        whole = torch.arange(self.length).expand(columns.shape)
        alike = (rows == rows[..., :1]).all()
        return bool(alike and (columns.sort(-1).values == whole).all())


@dataclass
class Leaf:
    """A parameter, running statistic or constant.

    Attributes:
        name: In the layout; empty for a constant.
        shape: Its shape.
        value: That of a constant.
        parts: How it may move, by kind of use.
        pinned: Whether it may not move.
    """

    name: str
    shape: tuple[int, ...]
    value: Tensor | None = None
    parts: dict = field(default_factory=dict)
    pinned: bool = False

    @property
    def numel(self) -> int:
        """The number of entries."""
        return torch.Size(self.shape).numel()


class Seen:
    """Entries of a leaf, seen through changes of shape.

    Args:
        leaf: The parameter.
        entries: The position in the flattened leaf of each entry; all in order by default.

    Attributes:
        strided: Whether strides tell the positions, as those of a view of the leaf.
    """

    def __init__(self, leaf: Leaf, entries: Tensor | None = None):
        self.leaf, self._entries = leaf, entries
        self.strided = entries is None
        self.shape = leaf.shape if entries is None else tuple(entries.shape)

    @property
    def whole(self) -> bool:
        """Whether this is the leaf as it is."""
        return self._entries is None

    @property
    def entries(self) -> Tensor:
        """The position in the flattened leaf of each entry."""
        if self._entries is None:
            return torch.arange(self.leaf.numel).view(self.shape)
        return self._entries

    def map(self, function: Callable[[Tensor], Tensor]) -> Seen:
        """The same change of shape applied to the entries."""
        before = self.entries
        seen = Seen(self.leaf, function(before))
        memory = (t.untyped_storage().data_ptr() for t in (before, seen.entries))
        seen.strided = self.strided and next(memory) == next(memory)
        return seen


@dataclass(frozen=True)
class Picked:
    """Where the numbers of a matrix are in a flattened leaf.

    Attributes:
        shape: Rows and columns.
        view: Size, stride and offset of a view; or
        index: Positions, shape ``(rows, columns)``.
    """

    shape: tuple[int, int]
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None
    index: Tensor | None

    def of(self, flat: Tensor) -> Tensor:
        """The matrix of numbers."""
        if self.view is None:
            return flat[self.index.to(flat.device)]
        size, stride, offset = self.view
        offset += flat.storage_offset()
        return flat.contiguous().as_strided(size, stride, offset).reshape(self.shape)


def narrowed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one shape, each axis along which none varies narrowed to length 1."""
    small = [compact(t) for t in tensors]
    shape = torch.broadcast_shapes(*(t.shape for t in small))
    return [t.expand(shape) for t in small]


def _thin(index: Tensor) -> Tensor:
    """Expanded along axes where it does not vary: that takes no memory, and is seen at once."""
    return compact(index).expand(index.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = compact(a), compact(b)
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))
