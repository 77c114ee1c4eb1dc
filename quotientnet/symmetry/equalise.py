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
    fixed_entries,
    largest_by_side,
    rows_at,
)
from quotientnet.group import ScalingGroup

__all__ = ["Equalisation", "equalise"]

_SWEEPS = 20_000
_BETWEEN = 8
"""Sweeps between attempts to solve for the equations that are active."""


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
    x = _Logarithms(w, group, levels.numpy())
    gap = x.gap()
    for sweep in range(_SWEEPS):
        residual = gap.size
        if residual <= tolerance:
            return Equalisation(torch.from_numpy(x.t), residual, sweep)
        jump = gap.solution() if sweep % _BETWEEN == _BETWEEN - 1 else None
        if jump is not None:
            x.move(jump)
            landed = x.gap()
            if landed.size < residual:
                gap = landed
                continue
            x.move(-jump)
        x.move(gap.own_steps / x.crowd)
        gap = x.gap()
    raise RuntimeError(
        f"equalise: after {_SWEEPS} sweeps two sides still differ by {gap.size:.1e} in their "
        "logarithms"
    )


class _Logarithms:
    """The logarithms of a point's entries, and the coordinates it was moved by."""

    def __init__(self, w: Tensor, group: ScalingGroup, levels: np.ndarray):
        self.group, self.levels = compact_group(group), levels
        self.crowd, self.t = crowd(group), np.zeros(group.dimension)
        pieces = []
        for entry in self.group.layout.entries:
            full = group.layout[entry.name]
            piece = w[full.slice].reshape(full.shape).double().abs().log()
            axes = [a for a, n in enumerate(entry.shape) if n != full.shape[a]]
            piece = piece.amax(axes, keepdim=True) if axes else piece
            fixed = fixed_entries(group.incidence.get(entry.name, ()))
            if fixed is not None:
                piece = piece.masked_fill(torch.from_numpy(fixed).to(w.device), -np.inf)
            if full.passive:
                piece = torch.full_like(piece, -np.inf)
            pieces.append(piece.reshape(-1))
        self.values = torch.cat(pieces)

    def move(self, step: np.ndarray) -> None:
        """Add a step to the coordinates; the entries follow."""
        self.t = self.t + step
        exponents = self.group.exponents(torch.from_numpy(step).to(self.values.device))
        self.values = self.values + exponents

    def gap(self) -> _Gap:
        """How far each generator is from equality where the entries are now."""
        return _Gap(self.group, self.levels, *largest_by_side(self.group, self.values))


class _Gap:
    r"""The difference of the two sides, :math:`M^+ - M^- - \mathrm{asinh}(\tfrac c2 e^{-M^+-M^-})`,
    with :math:`M` the logarithms of the largest entries; without the last term for level 0.

    Of generators with one side, only those with a level of its sign have an equality.
    """

    def __init__(self, group: ScalingGroup, levels: np.ndarray, top, where, exponents):
        self._group, self._where = group, where
        finite = np.isfinite(top)
        both, sign = finite.all(0), np.array([[1.0], [-1.0]])
        active = finite & (both | (sign * levels > 0))
        top = np.where(active, top, 0.0)
        tilt = 0.5 * np.where(both, levels, 0.0) * np.exp(-top.sum(0))
        alone = active.any(0) & ~both
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
        rows = rows_at(self._group, self._where.reshape(-1))
        count = len(self.value)
        weights = [sparse.diags_array(w) for w in self._weights]
        idle = sparse.diags_array((self._speed == 0).astype(float))
        matrix = weights[0] @ rows[:count] + weights[1] @ rows[count:] + idle
        try:
            step = splu(sparse.csc_array(matrix)).solve(-self.value)
        except RuntimeError:  # singular: these equations leave a choice
            return None
        return step if np.isfinite(step).all() else None
