"""Where entries are: distinct tuples, rows of a matrix, vectors along axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.scales import compact
from quotientnet.symmetry.translations.shifts import Picked, Seen, narrowed

__all__ = [
    "length",
    "unique_rows",
    "told_apart",
    "told_apart_by_strides",
    "vectors",
    "rows_of",
]


def length(index: Tensor, axis: int) -> int:
    """1 if an index tensor does not vary along an axis."""
    return compact(index).shape[axis] if index.ndim else 1


def unique_rows(columns: Sequence[Tensor]) -> np.ndarray:
    """The distinct tuples of entries of tensors of one shape, shape ``(rows, columns)``."""
    columns = [t.reshape(-1).numpy() for t in narrowed(columns)]
    return np.stack(columns, 1)[first_of_each(columns)[0]]


def first_of_each(columns) -> tuple[np.ndarray, np.ndarray]:
    """One place of each distinct tuple, and the number of each place's tuple."""
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        span = int(column.max(initial=0)) + 1
        number = np.unique(number * span + column, return_inverse=True)[1].reshape(-1)
    return np.unique(number, return_index=True)[1], number


def told_apart(summed: Tensor, lead: int, shape: Sequence[int]):
    """The axes of a leaf that tell rows apart, and each row's number along these.

    Nothing where a row is not all that there is along the other axes, in one order.
    """
    summed = summed.flatten(lead)
    lead, length = summed.shape[:-1], summed.shape[-1]
    rows, rest, kept = torch.zeros(lead, dtype=torch.long), summed * 0, []
    stride = prod(shape)
    for axis, size in enumerate(shape):
        stride //= size
        place = summed // stride % size
        if size > 1 and bool((place == place[..., :1]).all()):
            rows = rows * size + place[..., 0]
            kept.append(axis)
        else:
            rest = rest * size + place
    whole = length * prod(shape[a] for a in kept) == prod(shape)
    first = rest.reshape(-1, length)[:1]
    if not (whole and first.unique().numel() == length and (rest == first).all()):
        return None, None
    return tuple(kept), rows


def told_apart_by_strides(x: Seen, others, axes):
    """As :func:`told_apart`, for whole rows or columns of a view, without a look at every entry."""
    shape, entries = x.leaf.shape, x.entries
    if not x.strided or len(shape) < 2 or shape[0] < 2:
        return None
    place = entries
    for a in axes:
        place = place.narrow(a, 0, 1)
    place = place.permute(*others, *axes).flatten(len(others))[..., 0]
    length, step = prod(shape[1:]), 1
    for a in sorted(axes, key=lambda a: (entries.stride(a), entries.shape[a])):
        if entries.shape[a] > 1 and entries.stride(a) != step:
            break
        step *= entries.shape[a]
    else:
        if step == length and not (place % length).any():
            return (0,), place // length
    wide = [a for a in axes if entries.shape[a] > 1]
    if len(shape) == 2 and shape[1] > 1 and len(wide) == 1:
        if entries.stride(wide[0]) == shape[1] and entries.shape[wide[0]] == shape[0]:
            return (1,), place % shape[1]
    return None


def vectors(indices: Sequence[Tensor], axes) -> tuple[np.ndarray, Tensor]:
    """The distinct vectors along axes, shape ``(rows, K, terms)``, and where each of them is."""
    ndim = indices[0].ndim
    lead = [a for a in range(ndim) if a - ndim not in axes]
    small = narrowed(indices)
    # Summed axes in full, the others narrowed.
    shape = [
        small[0].shape[a] if a in lead else indices[0].shape[a] for a in range(ndim)
    ]
    order = [*lead, *(a + ndim for a in axes)]
    rows = [t.expand(shape).permute(order).flatten(len(lead)) for t in small]
    stacked = torch.stack([r.reshape(-1, r.shape[-1]) for r in rows], -1).numpy()
    flat = stacked.reshape(len(stacked), -1)
    first, number = first_of_each(list(flat.T))
    kept = [1 if a - ndim in axes else n for a, n in enumerate(shape)]
    return stacked[first], torch.from_numpy(number).view(kept)


def rows_of(factor: Seen, axes) -> tuple[Picked, Tensor]:
    """The entries of each row, and the number of the row at each place."""
    ndim = len(factor.shape)
    lead = [a for a in range(ndim) if a - ndim not in axes]
    order = [*lead, *(a + ndim for a in axes)]
    entries = factor.entries.permute(order)
    rows = prod(entries.shape[: len(lead)])
    size = rows, entries.numel() // max(rows, 1)
    if factor.strided:
        view = tuple(entries.shape), entries.stride(), entries.storage_offset()
        picked = Picked(size, view, None)
    else:
        picked = Picked(size, None, entries.reshape(size))
    shape = [1 if a - ndim in axes else n for a, n in enumerate(factor.shape)]
    return picked, torch.arange(rows).view(shape)
