"""Balance by largest entries: cross-layer equalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from quotientnet.exponents import (
    compact_group,
    crowd,
    entries_above,
    fixed_entries,
    largest_by_side,
    rows_at,
)
from quotientnet.group import ScalingGroup

__all__ = ["Equalisation", "equalise"]

_SWEEPS = 20_000
_LARGE = 700.0
"""The largest logarithm of a level, in units of a generator's entries."""

_ROUND = 24
"""Sweeps between attempts to solve for the equations that are active."""

_PARTS = (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 32)
"""Parts of the way to their solution that are tried."""

_AHEAD, _WIDEST = 64.0, 0.3
"""Entries are watched that are so many gaps below the largest, at most so far."""


@dataclass(frozen=True)
class Equalisation:
    """The result of :func:`equalise`.

    Attributes:
        t: Group coordinates, float64, shape ``(dimension,)``.
        residual: The largest difference of the logarithms of two sides.
        iterations: Sweeps.
    """

    t: Tensor
    residual: float
    iterations: int


def equalise(
    w: Tensor, group: ScalingGroup, levels: Tensor, *, tolerance: float = 1e-13
) -> Equalisation:
    """Equal largest entries among those that grow with a generator and those that shrink.

    Every generator moves to its own equality, all at once and damped; these moves are no farther
    apart than the points they start from, so rounding does not grow. When the entries
    that are largest have settled, their linear equations are solved, which is exact if they have
    one solution.

    Args:
        w: A point, shape ``(n,)``; running statistics do not count.
        group: The scaling group.
        levels: Differences of squared largest entries, shape ``(dimension,)``.
        tolerance: On the logarithms of two sides.

    Raises:
        RuntimeError: No convergence.
    """
    small, values = compact_group(group), _logarithms(w, group)
    t, sweeps, margin = np.zeros(group.dimension), 0, 0.0
    near = _Near(small, values, levels.numpy(), margin)
    while not near.gap.size <= tolerance:
        if sweeps >= _SWEEPS or not np.isfinite(near.gap.size):
            raise RuntimeError(
                f"equalise: after {sweeps} sweeps two sides still differ by {near.gap.size:.1e} "
                "in their logarithms"
            )
        moved, count = near.sweep(tolerance)
        sweeps += count
        t, values = t + moved, _moved(small, values, moved)
        size = near.gap.size
        margin = min(_AHEAD * size, _WIDEST) if 2 * size < _WIDEST else 0.0
        near = _Near(small, values, levels.numpy(), margin)
        if near.gap.size > tolerance:
            jump = _jump(small, values, levels.numpy(), near)
            if jump is not None:
                t, values = t + jump, _moved(small, values, jump)
                near = _Near(small, values, levels.numpy(), margin)
    return Equalisation(torch.from_numpy(t), near.gap.size, sweeps)


def _moved(group: ScalingGroup, values: Tensor, step: np.ndarray) -> Tensor:
    return values + group.exponents(torch.from_numpy(step).to(values.device))


def _jump(group: ScalingGroup, values: Tensor, levels, near: _Near):
    """A part of the way to the solution for the largest entries that brings all sides nearer."""
    solution = near.gap.solution()
    if solution is None:
        return None
    for part in _PARTS:
        landed = _Near(group, _moved(group, values, part * solution), levels, 0.0)
        if landed.gap.size <= (1 - part / 4) * near.gap.size:
            return part * solution
    return None


def _logarithms(w: Tensor, group: ScalingGroup) -> Tensor:
    """The logarithms of the largest entries that are scaled alike, on the compact group."""
    pieces = []
    for entry in compact_group(group).layout.entries:
        full = group.layout[entry.name]
        piece = w[full.slice].reshape(full.shape).double().abs().log_()
        axes = [a for a, n in enumerate(entry.shape) if n != full.shape[a]]
        piece = piece.amax(axes, keepdim=True) if axes else piece
        fixed = fixed_entries(group.incidence.get(entry.name, ()))
        if fixed is not None:
            piece = piece.masked_fill(torch.from_numpy(fixed).to(w.device), -np.inf)
        if full.passive:
            piece = torch.full_like(piece, -np.inf)
        pieces.append(piece.reshape(-1))
    return torch.cat(pieces)


class _Near:
    """The entries within a margin of the largest: no other can become one by a small move."""

    def __init__(self, group: ScalingGroup, values: Tensor, levels, margin: float):
        top, places, _ = largest_by_side(group, values)
        if margin:
            places = np.flatnonzero(entries_above(group, values, top - margin))
        else:
            places = np.unique(places[np.isfinite(top)])
        self.rows = rows_at(group, places)
        self._values = values[torch.from_numpy(places).to(values.device)].cpu().numpy()
        self._levels, self._crowd = levels, crowd(group)
        weight = float(abs(self.rows).sum(1).max(initial=0.0)) or 1.0
        self._reach = margin / (4 * weight)
        self._largest = _Largest(self.rows)
        self.gap = _Gap(self.rows, self._largest(self._values), levels)

    def sweep(self, tolerance: float) -> tuple[np.ndarray, int]:
        """Damped steps of every generator while no other entry can become the largest.

        The first step is taken in any case; entries have to be looked for again after it.
        """
        moved, count = np.zeros(len(self._levels)), 0
        while self.gap.size > tolerance and count < _ROUND:
            step = self.gap.own_steps / self._crowd
            far = abs(moved + step).max(initial=0.0) > self._reach
            if far and count:
                break
            moved, count = moved + step, count + 1
            if far:
                break
            self._values = self._values + self.rows @ step
            self.gap = _Gap(self.rows, self._largest(self._values), self._levels)
        return moved, count


class _Gap:
    r"""The difference of the two sides,
    :math:`M^+ - M^- - \mathrm{asinh}(\tfrac{c}{2} e^{-M^+-M^-})`,
    with :math:`M` the logarithms of the largest entries; without the last term for level 0.

    Of generators with one side, only those with a level of its sign have an equality.
    """

    def __init__(self, rows: sparse.csr_array, largest, levels: np.ndarray):
        top, self._where, exponents = largest
        self._rows = rows
        finite = np.isfinite(top)
        both, sign = finite.all(0), np.array([[1.0], [-1.0]])
        active = finite & (both | (sign * levels > 0))
        top = np.where(active, top, 0.0)
        both &= levels != 0
        tilt = np.zeros(len(levels))
        size = np.log(0.5 * abs(levels[both])) - top.sum(0)[both]
        tilt[both] = np.sign(levels[both]) * np.exp(np.minimum(size, _LARGE))
        alone = active.any(0) & ~finite.all(0)
        target = 0.5 * np.log(np.where(alone, abs(levels), 1.0))
        self.value = (sign * top).sum(0) - np.arcsinh(tilt)
        self.value -= np.where(active[0], target, -target)
        lean = tilt / np.hypot(1.0, tilt)
        self._weights = np.where(active, sign + lean, 0.0)
        self._speed = (sign * active * exponents).sum(0)

    @property
    def size(self) -> float:
        """The largest difference."""
        return float(abs(self.value).max(initial=0.0))

    @property
    def own_steps(self) -> np.ndarray:
        """How far each generator would have to move, if it moved alone."""
        idle = self._speed == 0
        return np.where(idle, 0.0, -self.value / np.where(idle, 1.0, self._speed))

    def solution(self) -> np.ndarray | None:
        """The Newton step on the equations of the entries that are largest now, if it is one."""
        rows, count = self._rows[self._where.reshape(-1)], len(self.value)
        weights = [sparse.diags_array(w) for w in self._weights]
        idle = sparse.diags_array((self._speed == 0).astype(float))
        matrix = weights[0] @ rows[:count] + weights[1] @ rows[count:] + idle
        try:
            step = splu(sparse.csc_array(matrix)).solve(-self.value)
        except RuntimeError:  # singular: these equations leave a choice
            return None
        return step if np.isfinite(step).all() else None


class _Largest:
    """For each generator the largest value among rows with positive exponent, and with negative."""

    def __init__(self, rows: sparse.csr_array):
        self._shape = (2, rows.shape[1])
        line = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        cell = rows.indices + rows.shape[1] * (rows.data < 0)
        order = np.argsort(cell, kind="stable")
        self._line, self._data = line[order], rows.data[order]
        self._cells, self._starts = np.unique(cell[order], return_index=True)
        self._owner = np.repeat(
            np.arange(len(self._cells)), np.diff(self._starts, append=len(line))
        )

    def __call__(self, values: np.ndarray):
        """Values (``-inf`` if there is none), row numbers, exponents, shape ``(2, dimension)``."""
        each = values[self._line]
        found = np.maximum.reduceat(each, self._starts) if len(each) else each
        place = np.flatnonzero(each == found[self._owner])
        result = []
        for data, empty in ((each, -np.inf), (self._line, 0), (self._data, 0.0)):
            whole = np.full(self._shape[0] * self._shape[1], empty)
            whole[self._cells[self._owner[place]]] = data[place]
            result.append(whole.reshape(self._shape))
        return result
