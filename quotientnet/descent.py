"""Ways down a sum of exponentials: sweeps in closed form, Newton's method, sets moved as one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log1p

import numpy as np
import torch
from torch import Tensor

from quotientnet.aggregation import crossing, merged, partitions
from quotientnet.exponent_matrix import exponent_matrix
from quotientnet.exponents import crowd, sums_by_exponent
from quotientnet.gram import Gram
from quotientnet.group import ScalingGroup

__all__ = ["Descent", "State"]

_SWEEPS = 60
"""Closed-form sweeps at most, before Newton's method."""

_CLOSE = 1e-3
"""A residual from which Newton's method needs no sweeps before it."""

_CLOSE_IF_SMALL = 0.9
"""The same where a Newton step costs no more than a sweep."""

_NEAR = 0.5
"""A sweep that moves no exponent further is followed by Newton's method."""

_HALVINGS = 40
"""Of the bracket of a generator's own minimiser, to 2e-9: Newton's method follows."""

_FAR, _STRIDE = 1000.0, 30.0
"""The largest move of one sweep, and the largest change of a coordinate in one multiplication."""

_STAGES = 10_000
"""Multiplications at most: what is further has left the range of numbers."""

_BALANCED = 1e-10
"""The largest relative residual of a minimum."""

_EXACT = 1e-13
"""Errors of exponents that need no further care."""

_ROUNDING = 4 * np.finfo(np.float64).eps
"""The relative error of a term."""

_LOST = 1e-13
"""A residual that may be all rounding."""

_ERROR = 1e-6
"""The largest error of an exponent, by an estimate, with which a minimum counts as found."""

_AGGREGATED = 4096
"""Up to this many generators sets are looked for that hold together."""

_PIECE = 1 << 17
"""Terms multiplied at once, a part of the cache."""

_SETTLED = 1e-7
"""A Newton step that moves no exponent further is the last one: its error is the square."""


@dataclass
class State:
    """Where a descent ended; see :class:`~quotientnet.exponential.Minimum`."""

    value: float
    residual: float
    error: float
    iterations: int
    converged: bool


class Descent:
    """The terms where they are now, and ways to move them.

    Attributes:
        group: The group on the terms.
        terms: ``c_i e^{(A t)_i}``, float64, shape ``(size,)``.
        linear: ``b``, with the factor absorbed.
        t: The coordinates, with the factor absorbed.
        iterations: Sweeps and Newton steps so far.
    """

    def __init__(self, group: ScalingGroup, terms: Tensor, linear: np.ndarray):
        self.group, self.terms, self.linear = group, terms, linear
        self.t, self.iterations = np.zeros(group.dimension), 0

    @property
    def _matrix(self):
        """The group's exponents where they are written down, or None."""
        return exponent_matrix(self.group) if self.terms.is_cpu else None

    # -- sums over the terms ---

    def gradient(self) -> tuple[np.ndarray, float]:
        """``Aᵀm − b``, and its largest entry relative to the magnitudes of its terms."""
        if self._matrix is not None:
            terms = self.terms.numpy()
            gradient = terms @ self._matrix.a - self.linear
            size = terms @ self._matrix.magnitudes + abs(self.linear)
        else:
            sums = sums_by_exponent(self.group, self.terms)
            gradient = sum((e * s for e, s in sums.items()), -self.linear)
            size = sum((abs(e) * s for e, s in sums.items()), abs(self.linear))
        ratio = np.divide(abs(gradient), size, np.zeros_like(size), where=size > 0)
        return gradient, float(ratio.max(initial=0.0))

    @property
    def value(self) -> float:
        """The sum now, without the constant."""
        return float(self.terms.sum()) - float(self.linear @ self.t)

    # -- moves ---

    def move(self, step: np.ndarray) -> None:
        """Add a step to the coordinates; the terms follow."""
        self.t = self.t + step
        self.follow(step)

    def follow(self, step: np.ndarray) -> None:
        """Multiply the terms by what a step makes of them."""
        # A far step in stages, so that no factor leaves the range of numbers.
        stages = 1 + int(min(abs(step).max(initial=0.0) / _STRIDE, _STAGES))
        if self._matrix is not None:
            factors = torch.from_numpy(np.exp(self._matrix.a @ (step / stages)))
            for _ in range(stages):
                self.terms.mul_(factors)
            return
        views = self.group.layout.unflatten(self.terms)
        for name, factors in self._scales(step / stages).items():
            for piece, *parts in _chunks(views[name], [f.exp() for f in factors]):
                for part in parts * stages:
                    piece.mul_(part)

    def reach(self, step: np.ndarray) -> float:
        """A bound on the largest change of an exponent."""
        if self._matrix is not None:
            return float(abs(self._matrix.a @ step).max(initial=0.0))
        reach = 0.0
        for factors in self._scales(step).values():
            top = sum(float(f.max()) for f in factors if f.numel())
            bottom = sum(float(f.min()) for f in factors if f.numel())
            reach = max(reach, abs(top), abs(bottom))
        return reach

    def _scales(self, step: np.ndarray) -> dict[str, list[Tensor]]:
        return self.group.compact_exponents(
            torch.from_numpy(step).to(self.terms.device)
        )

    # -- minimisation ---

    def minimise(self, iterations: int) -> State:
        """Sweeps, Newton's method, and sets as a whole, from where the terms are now."""
        step, gram = self.descend(iterations)
        residual, error = self.gradient()[1], 0.0
        if step < inf:
            error = _ROUNDING / max(gram.weakest(), 1e-300)
            if error > _EXACT and len(self.t) <= _AGGREGATED:
                residual = max(self._settle_sets(gram), self.gradient()[1])
                step, error = 0.0, _EXACT
        converged = step <= _SETTLED and residual <= _BALANCED and error <= _ERROR
        return State(
            self.value, residual, max(step * step, error), self.iterations, converged
        )

    def descend(self, iterations: int) -> tuple[float, Gram]:
        """Sweeps unless they are done, then Newton's method: the last step's reach, and the last
        matrix."""
        if self.gradient()[1] > (_CLOSE if self._matrix is None else _CLOSE_IF_SMALL):
            self._sweep()
        return self._newton(iterations)

    def _newton(self, iterations: int) -> tuple[float, Gram]:
        step, tolerance, gram = inf, 1e-2, Gram(self.group, self.terms)
        gradient, residual = self.gradient()
        for _ in range(iterations if self.t.size else 0):
            found = gram.solve(
                torch.from_numpy(-gradient), tolerance=tolerance, strict=False
            )
            delta = found.numpy()
            step = self.reach(delta)
            self.move(delta if step <= 1 else delta * (log1p(step) / step))
            tolerance = min(1e-2, max(step * step, 1e-8))
            before = residual
            gradient, residual = self.gradient()
            self.iterations += 1
            # Below rounding a step is noise in the weakest direction.
            if step <= _SETTLED or (step <= 1 and before <= residual <= _LOST):
                return min(step, _SETTLED), gram
            gram = Gram(self.group, self.terms)
        return step if self.t.size else 0.0, gram

    def _settle_sets(self, gram: Gram) -> float:
        """Move sets that hold together as one each; the largest residual of any."""
        worst = 0.0
        for labels in partitions(gram.to_dense()):
            group, basis = merged(self.group, labels)
            sets = Descent(group, crossing(group, self.terms), self.linear @ basis)
            sets.descend(_SWEEPS)
            worst = max(worst, sets.gradient()[1])
            self.move(basis @ sets.t)
        return worst

    def _sweep(self) -> None:
        """Every generator to its own minimiser, damped so that the sum cannot grow.

        By convexity ``e^{y_1 + … + y_q} ≤ (1/q) Σ e^{q y_j}``, and the right side is minimised.
        """
        most = crowd(self.group)
        for _ in range(_SWEEPS):
            sums = sums_by_exponent(self.group, self.terms)
            step = _own_minimisers(sums, self.linear) / most
            self.iterations += 1
            self.move(step)
            if self.reach(step) <= _NEAR:
                return


def _own_minimisers(sums: dict[int, np.ndarray], linear: np.ndarray) -> np.ndarray:
    """For each generator the ``x`` that minimises ``Σ_e S_e e^{e x} − b x``; 0 where none does.

    The root of an increasing function, bracketed and halved in the logarithm.
    """
    with np.errstate(divide="ignore"):
        logs = {e: np.log(abs(e) * s) for e, s in sums.items()}
        level = np.log(abs(linear))
    none = np.full(len(linear), -inf)
    up = [(e, log) for e, log in logs.items() if e > 0]
    down = [(e, log) for e, log in logs.items() if e < 0]
    up.append((0, np.where(linear < 0, level, none)))
    down.append((0, np.where(linear > 0, level, none)))

    def total(parts, x):
        return np.logaddexp.reduce([log + e * x for e, log in parts])

    low, high = np.full(len(linear), -_FAR), np.full(len(linear), _FAR)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rises = total(up, middle) > total(down, middle)
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    zero = np.zeros(len(linear))
    idle = np.isneginf(total(up, zero)) | np.isneginf(total(down, zero))
    return np.where(idle, 0.0, (low + high) / 2)


def _chunks(view: Tensor, parts: list[Tensor]):
    """Rows of a tensor that fit the cache, with what multiplies them."""
    if not view.is_cpu or view.numel() <= _PIECE or view.ndim == 0:
        yield view, *parts
        return
    rows = max(_PIECE * len(view) // view.numel(), 1)
    for start in range(0, len(view), rows):
        stop = start + rows
        yield view[start:stop], *(p[start:stop] if len(p) > 1 else p for p in parts)
