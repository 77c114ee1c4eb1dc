"""Entries that fit any scale: those that are always zero or infinite, and those nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.scales import PINNED, ZERO, LogScale, compact

__all__ = ["any_scale", "with_any_scale", "without_gaps", "focused", "merged"]


def any_scale(x: LogScale) -> Tensor:
    """Which entries of a log-scale fit any, 1 long along axes that this does not vary along."""
    found = torch.zeros([1] * len(x.shape), dtype=torch.bool)
    for _, index in x.terms:
        found = found | (compact(index) == ZERO)
    return compact(found)


def with_any_scale(x: LogScale, where: Tensor) -> LogScale:
    """``x``, and any scale where a mask says, of a shape that broadcasts to that of ``x``."""
    return x + LogScale([(1, torch.where(where, ZERO, PINNED))], x.shape)


def merged(x: LogScale) -> LogScale | None:
    """``x`` as one unknown an entry, if it is one already but for entries that fit any scale."""
    proper = [(c, i) for c, i in x.terms if not _only_gaps(compact(i))]
    if len(proper) > 1 or (proper and proper[0][0] != 1):
        return None
    index = compact(proper[0][1]) if proper else torch.full([1] * len(x.shape), PINNED)
    return LogScale([(1, torch.where(any_scale(x), ZERO, index))], x.shape)


def without_gaps(x: LogScale, axes: Sequence[int]) -> tuple[LogScale, Tensor] | None:
    """``x`` with the scale of another place where it fits any, and where that is.

    Places are replaced as a whole: it must not depend on ``axes`` where they are, nor on several
    others if ``x`` varies along these. ``None`` if it does.
    """
    gaps = any_scale(x)
    wide = [a for a, n in enumerate(gaps.shape) if n > 1]
    if bool(gaps.all()) or any(a % gaps.ndim in wide for a in axes):
        return None
    terms = [(c, compact(i)) for c, i in x.terms]
    proper = [(c, i) for c, i in terms if not _only_gaps(i)]
    if any((i == ZERO).any() for _, i in proper) or any(
        i.shape[a] > 1 for _, i in proper for a in wide
    ):
        if len(wide) != 1:
            return None
        (axis,) = wide
        place = torch.arange(gaps.shape[axis])
        gap = gaps.reshape(-1)
        place = torch.where(gap, place[~gap][0], place)
        proper = [
            (c, i.index_select(axis, place) if i.shape[axis] > 1 else i)
            for c, i in proper
        ]
    return LogScale(proper, x.shape), gaps


def _only_gaps(index: Tensor) -> bool:
    """Whether a term only says where any scale fits."""
    return bool((index <= PINNED).all()) and bool((index == ZERO).any())


def focused(terms: Sequence[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
    """Terms of an equation without places that other places say the same as.

    What only says where any scale fits is left out along axes that nothing else varies along.
    """
    gaps = [i for i, _ in terms if i.max() <= PINNED]
    rest = [(i, c) for i, c in terms if i.max() > PINNED]
    if not gaps:
        return list(terms)
    gap = gaps[0]
    for other in gaps[1:]:
        gap = np.minimum(gap, other)
    for axis, size in enumerate(gap.shape):
        if size > 1 and all(i.shape[axis] == 1 for i, _ in rest):
            gap = gap.max(axis, keepdims=True)
    return rest + [(gap, 1)] if (gap == ZERO).any() else rest
