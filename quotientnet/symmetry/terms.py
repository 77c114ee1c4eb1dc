"""Sums of unknowns over the entries of a tensor, as pairs of an index array and a coefficient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from quotientnet.symmetry.scales import ZERO, compact

__all__ = ["Terms", "collected", "groups_of_axes", "narrowed"]

Terms = Sequence[tuple[np.ndarray, int]]

_LARGEST = 1 << 10
"""The largest exponent: a scale of 2 to this power overflows."""


def collected(terms, find: Callable) -> list[tuple[np.ndarray, int]]:
    """Terms with merged unknowns, compact, coefficients of equal ones added, zeros left out."""
    total: dict[tuple, tuple[np.ndarray, int]] = {}
    for c, index in terms:
        merged = find(compact(index).numpy())
        merged = compact(torch.from_numpy(merged)).contiguous().numpy()
        if not merged.any():
            continue
        key = (merged.shape, merged.tobytes())
        total[key] = (merged, total.get(key, (merged, 0))[1] + c)
        if abs(total[key][1]) > _LARGEST:
            raise OverflowError(f"an exponent beyond {_LARGEST}")
    return [(index, c) for index, c in total.values() if c or (index == ZERO).any()]


def groups_of_axes(terms: Terms) -> list[list[tuple[np.ndarray, int]]]:
    """Terms joined while they vary along a common axis; constants with the last of them."""
    groups: list[tuple[set[int], list]] = []
    constants = []
    for index, c in terms:
        axes = {a for a, n in enumerate(index.shape) if n > 1 and index.strides[a]}
        if not axes:
            constants.append((index, c))
            continue
        joined = [(index, c)]
        for other in [group for group in groups if group[0] & axes]:
            groups.remove(other)
            axes, joined = axes | other[0], other[1] + joined
        groups.append((axes, joined))
    if not groups:
        return [constants] if constants else []
    groups[-1][1].extend(constants)
    return [joined for _, joined in groups]


def narrowed(index: np.ndarray) -> np.ndarray:
    """``index`` with expanded axes of length 1."""
    steps = zip(index.shape, index.strides)
    return index[tuple(slice(0, n if step else 1) for n, step in steps)]
