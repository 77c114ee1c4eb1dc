"""The log-scales of a tensor's entries, as sums of unknowns that are shared between entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

__all__ = [
    "PINNED",
    "ZERO",
    "LogScale",
    "Leaf",
    "Unset",
    "compact",
    "scales_among",
    "varies",
    "first",
]

PINNED = 0
"""The unknown that is 0: what it scales cannot be scaled."""

ZERO = -1
"""The unknown of an entry that is always zero, or infinite: any scale fits it."""


class LogScale:
    """``Σ_m coefficient_m u[index_m]``: for each entry of a tensor, its log-scale.

    Index tensors are int64 and of the tensor's full shape; along axes where a scale is constant
    they are expanded, and so take no memory. Operations on shapes act on them literally.

    Args:
        terms: Pairs of an integer coefficient and an index tensor.
        shape: Of the tensor; index tensors are expanded to it.
    """

    def __init__(self, terms: Sequence[tuple[int, Tensor]], shape: Sequence[int]):
        self.shape = tuple(shape)
        self.terms = tuple((c, index.expand(self.shape)) for c, index in terms)

    def map(self, function: Callable[[Tensor], Tensor]) -> LogScale:
        """The same change of shape applied to every index tensor."""
        if not self.terms:
            return LogScale((), function(torch.zeros(()).expand(self.shape)).shape)
        moved = [(c, function(index)) for c, index in self.terms]
        return LogScale(moved, moved[0][1].shape)

    def __add__(self, other: LogScale) -> LogScale:
        shape = torch.broadcast_shapes(self.shape, other.shape)
        return LogScale(self.terms + other.terms, shape)

    def __mul__(self, factor: int) -> LogScale:
        terms = [(factor * c, index) for c, index in self.terms] if factor else ()
        return LogScale(terms, self.shape)

    __rmul__ = __mul__

    def __neg__(self) -> LogScale:
        return -1 * self

    def __sub__(self, other: LogScale) -> LogScale:
        return self + -other

    def __repr__(self) -> str:
        return f"LogScale(shape={self.shape}, terms={len(self.terms)})"


@dataclass
class Leaf:
    """A parameter or running statistic: its log-scale, as far as its uses have determined it."""

    name: str
    shape: tuple[int, ...]
    terms: list[tuple[int, Tensor]] = field(default_factory=list)
    known: Tensor | None = None
    """Which entries are determined, flat; ``None`` for none, an empty tensor for all."""

    @cached_property
    def entries(self) -> Tensor:
        """The position of each entry, of the parameter's shape; views of it tell what they hold.

        Made when needed and dropped once the parameter is determined: it is as large as that.
        """
        return torch.arange(self.numel).view(self.shape)

    def complete_with(self, terms: Sequence[tuple[int, Tensor]]) -> None:
        """Determine every entry."""
        self.terms, self.known = list(terms), torch.empty(0, dtype=torch.bool)
        self.__dict__.pop("entries", None)

    @property
    def complete(self) -> bool:
        """Whether every entry is determined."""
        return self.known is not None and self.known.numel() == 0

    @property
    def numel(self) -> int:
        """The number of entries."""
        return torch.Size(self.shape).numel()


class Unset(LogScale):
    """Entries of a leaf, seen through changes of shape, whose log-scale the next use determines.

    Args:
        leaf: The parameter.
        entries: The position in the flattened parameter of each entry.
        seen: If they are a view, a tensor without values that is the same view of one of the
            leaf's shape: positions are made only when they are asked for.
    """

    def __init__(
        self, leaf: Leaf, entries: Tensor | None = None, seen: Tensor | None = None
    ):
        if entries is None and seen is None:
            seen = torch.empty(leaf.shape, dtype=torch.int64, device="meta")
        self.leaf, self._entries, self.seen = leaf, entries, seen
        self.shape = tuple((entries if seen is None else seen).shape)

    @property
    def entries(self) -> Tensor:
        """The position in the flattened parameter of each entry."""
        if self.seen is None:
            return self._entries
        size, step = self.seen.shape, self.seen.stride()
        return self.leaf.entries.as_strided(size, step, self.seen.storage_offset())

    @property
    def terms(self):
        """Not determined yet."""
        raise TypeError(f"the log-scale of {self.leaf.name!r} is not determined yet")

    def map(self, function: Callable[[Tensor], Tensor]) -> Unset:
        """The same change of shape applied to the entries."""
        if self.seen is not None:
            with suppress(RuntimeError, NotImplementedError):  # it needs values
                seen = function(self.seen)
                own = self.seen.untyped_storage()._cdata
                if seen.untyped_storage()._cdata == own:
                    return Unset(self.leaf, seen=seen)
        return Unset(self.leaf, function(self.entries))

    def order(self) -> list[int] | None:
        """The permutation of axes that makes this the whole leaf in order; None if none does."""
        if self.seen is None:
            return None  # a copy: the order in memory tells nothing
        if self.seen.numel() != self.leaf.numel or self.seen.storage_offset():
            return None
        axes = sorted(range(self.seen.ndim), key=lambda a: -self.seen.stride(a))
        return axes if self.seen.permute(axes).is_contiguous() else None

    @property
    def distinct(self) -> bool:
        """Whether no entry of the leaf is seen twice."""
        steps = (self._entries if self.seen is None else self.seen).stride()
        if any(n > 1 and s == 0 for n, s in zip(self.shape, steps)):
            return False
        whole = self.order() is not None
        return whole or len(self.entries.unique()) == self.entries.numel()

    @property
    def undetermined(self) -> bool:
        """Whether no entry is determined."""
        known = self.leaf.known
        return known is None or not (
            self.leaf.complete or bool(known[self.entries].any())
        )

    def read(self) -> LogScale:
        """The log-scale of these entries, all of which are determined."""
        leaf, order = self.leaf, self.order()
        if order is not None:
            ordered = [self.shape[a] for a in order]
            back = [order.index(a) for a in range(len(order))]
            terms = [(c, i.reshape(ordered).permute(back)) for c, i in leaf.terms]
        else:
            terms = [(c, i.reshape(-1)[self.entries]) for c, i in leaf.terms]
        return LogScale([(c, compact(index)) for c, index in terms], self.shape)

    def determine(self, value: LogScale) -> None:
        """Let these entries of the leaf have the log-scale ``value``, of the same shape."""
        leaf, order = self.leaf, self.order()
        if leaf.known is None and order is not None:
            leaf.complete_with(
                [(c, i.permute(order).reshape(leaf.shape)) for c, i in value.terms]
            )
            return
        if leaf.known is None:
            leaf.known = torch.zeros(leaf.numel, dtype=torch.bool)
        where = self.entries.reshape(-1)
        slots = [(c, index.reshape(-1).clone()) for c, index in leaf.terms]
        free = list(range(len(slots)))
        for c, index in value.terms:
            slot = next((m for m in free if slots[m][0] == c), None)
            if slot is None:
                slots.append((c, torch.full((leaf.numel,), PINNED)))
                slot = len(slots) - 1
            else:
                free.remove(slot)
            slots[slot][1][where] = index.reshape(-1)
        leaf.terms = [(c, index.view(leaf.shape)) for c, index in slots]
        leaf.known[where] = True
        if bool(leaf.known.all()):
            leaf.known = torch.empty(0, dtype=torch.bool)


def compact(index: Tensor) -> Tensor:
    """``index`` with each axis along which it does not vary narrowed to length 1."""
    # Expanded axes first: what is compared then has no copies.
    for axis in range(index.ndim):
        if index.stride(axis) == 0 and index.shape[axis] > 1:
            index = index.narrow(axis, 0, 1)
    for axis in range(index.ndim):
        if index.shape[axis] > 1:
            one = index.narrow(axis, 0, 1)
            if bool((index.narrow(axis, 1, 1) == one).all()) and bool(
                (index == one).all()
            ):
                index = one
    return index


def scales_among(arguments) -> Iterator[LogScale]:
    """The log-scales among the arguments of an operation, in lists and mappings as well."""
    if isinstance(arguments, LogScale):
        yield arguments
    elif isinstance(arguments, Mapping):
        yield from scales_among(list(arguments.values()))
    elif isinstance(arguments, (list, tuple)):
        for argument in arguments:
            yield from scales_among(argument)


def varies(index: Tensor, axes: Sequence[int]) -> bool:
    """Whether an index tensor varies along one of the axes; it is 1 long where it does not."""
    return any(index.shape[a] > 1 and index.stride(a) != 0 for a in axes)


def first(x: LogScale, axes: Sequence[int]) -> LogScale:
    """``x`` at the first place along ``axes``, which are kept with length 1."""
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]

    def narrow(index: Tensor) -> Tensor:
        return index[tuple(slice(0, n) for n in shape)]

    return LogScale([(c, narrow(index)) for c, index in x.terms], shape)
