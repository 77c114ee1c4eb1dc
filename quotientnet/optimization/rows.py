"""Tables of tensors whose first dimension counts the starting points."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Rows", "Iterate", "column"]


@dataclass(frozen=True)
class Rows:
    """A dataclass of tensors with one row for each starting point."""

    def take(self, rows: Tensor):
        """Some of the rows, in order; the table itself if that is all of them."""
        every = rows.all() if rows.dtype == torch.bool else len(rows) == len(self)
        if every:
            return self
        return type(self)(*(value[rows] for value in self._values()))

    def put(self, rows: Tensor, part):
        """A copy in which some rows, in order, are replaced by those of ``part``."""
        if not len(rows) or len(rows) == len(self):
            return part if len(rows) else self
        pairs = zip(self._values(), part._values())
        return type(self)(*(old.index_put((rows,), new) for old, new in pairs))

    def where(self, chosen: Tensor, other):
        """Rows of ``self`` where ``chosen``, of ``other`` elsewhere."""
        pairs = zip(self._values(), other._values())
        return type(self)(*(torch.where(column(chosen, a), a, b) for a, b in pairs))

    @classmethod
    def stack(cls, parts):
        """One table of tables with one row each."""
        return cls(
            *(torch.cat(values) for values in zip(*(p._values() for p in parts)))
        )

    def _values(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self._values()[0])


@dataclass(frozen=True)
class Iterate(Rows):
    """Points at which a function to be minimised has been evaluated.

    Attributes:
        point: Shape ``(rows, *point)``.
        value: Shape ``(rows,)``.
        gradient: The Riemannian gradient, shape ``(rows, *point)``.
        norm: Its length in the metric, shape ``(rows,)``.
        scale: The magnitude that sets the rounding of values: of the value, of what relative
            changes of the point's entries add to it, and of those before, slowly forgotten.
    """

    point: Tensor
    value: Tensor
    gradient: Tensor
    norm: Tensor
    scale: Tensor

    @property
    def noise(self) -> Tensor:
        """Differences of values up to this size are rounding."""
        return 10 * torch.finfo(self.point.dtype).eps * self.scale

    def after(self, start: Iterate) -> Iterate:
        """These iterates, with the scale of those that they follow."""
        return replace(self, scale=torch.maximum(self.scale, 0.9 * start.scale))


def column(row: Tensor, like: Tensor) -> Tensor:
    """Numbers of shape ``(rows,)``, shaped to multiply ``like``, of shape ``(rows, ...)``."""
    return row.reshape(-1, *[1] * (like.ndim - 1))
