"""The one convex solver: sums of exponentials of linear functions, minimised and certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from functools import partial
from math import inf, log1p, nan

import numpy as np
import torch
from torch import Tensor

from quotientnet.aggregation import crossing, merged, partitions
from quotientnet.couplings import reduced
from quotientnet.exponents import compact_group, crowd, fixed_entries, sums_by_exponent
from quotientnet.gram import Gram
from quotientnet.group import ScalingGroup, as_group
from quotientnet.layout import Entry
from quotientnet.recession import Recession, recession

__all__ = ["Minimum", "minimise_exponentials"]

_SWEEPS = 60
"""Closed-form sweeps at most, before Newton's method."""

_NEAR = 0.5
"""A sweep that moves no exponent further is followed by Newton's method."""

_FAR, _STRIDE = 1000.0, 30.0
"""The largest move of one sweep, and the largest change of a coordinate in one multiplication."""

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


@dataclass(frozen=True)
class Minimum:
    r"""The result of :func:`minimise_exponentials`.

    Attributes:
        t: The minimiser, float64, shape ``(dimension,)``. Coordinates of generators that run away
            are NaN, and the others 0 if the sum is unbounded below; coordinates along which
            nothing changes are arbitrary, 0 for a generator that moves nothing.
        value: The minimum, or the infimum where it is not attained; ``-inf`` if unbounded below.
        runaways: The generators along which the infimum is approached and not attained, by name.
        residual: The largest :math:`|\sum_m c_m e^{a_m^\top t} a_{mj} - b_j|` over generators,
            relative to the sum of the terms' magnitudes.
        error: An estimate of the largest error of an exponent: the last Newton step's change,
            squared, or what rounding makes of the weakest direction, if that is more.
        iterations: Sweeps and Newton steps.
        converged: Whether the tolerance was reached.
    """

    t: Tensor = field(repr=False)
    value: float
    runaways: tuple[str, ...]
    residual: float
    error: float
    iterations: int
    converged: bool

    @property
    def attained(self) -> bool:
        """Whether the infimum is a minimum."""
        return not self.runaways


def minimise_exponentials(
    group: ScalingGroup,
    coefficients: Tensor | Callable[[Entry], Tensor],
    linear: Tensor | None = None,
    *,
    factor: float = 1.0,
    max_iterations: int = 500,
) -> Minimum:
    r"""Minimise :math:`\sum_i c_i e^{\kappa (A t)_i} - b^\top t`, a geometric program.

    Sweeps in closed form bring the terms to one scale: each generator's own minimiser, all at
    once, damped by the number of generators that an entry has, which never goes uphill. Then
    Newton's method with the step :math:`\log(1 + \sigma)/\sigma`, where :math:`\sigma` is the
    largest change of an exponent: it never goes uphill either, so nothing is searched for. All in
    float64. Sets of generators that hold together far more strongly than they hold to the rest are
    moved as one, so that their scale is as exact as the others'. Whether there is a minimum is
    found out before, from the exponents alone.

    Args:
        group: ``A``, by the layout's entries and the generators; or what ``discover`` returned.
        coefficients: ``c ≥ 0``, shape ``(size,)``, or a function that makes the piece of an entry
            (to save memory).
        linear: ``b``, shape ``(dimension,)``; 0 if omitted.
        factor: ``κ``, not 0.
        max_iterations: Newton steps at most.

    Returns:
        The minimum; where it is not attained, the infimum and the generators that run away.

    Raises:
        ValueError: Coefficients that are negative, NaN or infinite, named by entry; ``linear`` of
            another shape or not finite; a factor of 0.

    Note:
        Each iteration reads the coefficients a few times, after summing them over axes along which
        nothing varies; a Newton step solves with a sparse Gram matrix.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.exponential import minimise_exponentials
        >>> layout = qn.ParameterLayout({"a": (1,), "b": (1,)})
        >>> unit = qn.Unit("unit", 1, (qn.Scale("a", None), qn.Scale("b", None, -1)))
        >>> group = qn.ScalingGroup.from_units(layout, [unit])
        >>> found = minimise_exponentials(group, torch.tensor([1.0, 4.0]))
        >>> round(found.value, 9), round(found.t.exp().item(), 9)
        (4.0, 2.0)
    """
    group = as_group(group, "minimise_exponentials")
    program = _Program(group, coefficients, linear, factor)
    lost = recession(program.group, program.terms, program.linear)
    names = tuple(group.names[j] for j in np.flatnonzero(lost.moving))
    if lost.unbounded:
        state = _State(-inf, 0.0, 0.0, 0, True)
    else:
        program.drop(lost)
        program.descend(max_iterations)
        # Once more from the coefficients themselves: what over- or underflowed on the way is right.
        program.restart(lost)
        state = program.minimise(max_iterations)
        state.value += program.constant
    t = torch.from_numpy(np.where(lost.moving, nan, program.coordinates) / factor)
    return Minimum(t, state.value, names, *astuple(state)[1:])


@dataclass
class _State:
    value: float
    residual: float
    error: float
    iterations: int
    converged: bool


class _Descent:
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
        self._crowd = crowd(group)

    # -- sums over the terms ---

    def gradient(self) -> tuple[np.ndarray, float]:
        """``Aᵀm − b``, and its largest entry relative to the magnitudes of its terms."""
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
        self._follow(step)

    def _follow(self, step: np.ndarray) -> None:
        # A far step in stages, so that no factor leaves the range of numbers.
        stages = 1 + int(abs(step).max(initial=0.0) / _STRIDE)
        views = self.group.layout.unflatten(self.terms)
        for name, factors in self._scales(step / stages).items():
            for piece, *parts in _chunks(views[name], [f.exp() for f in factors]):
                for part in parts * stages:
                    piece.mul_(part)

    def reach(self, step: np.ndarray) -> float:
        """A bound on the largest change of an exponent."""
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

    def minimise(self, iterations: int) -> _State:
        """Sweeps, Newton's method, and sets as a whole, from where the terms are now."""
        step, gram = self.descend(iterations)
        residual, error = self.gradient()[1], 0.0
        if step < inf:
            error = _ROUNDING / max(gram.weakest(), 1e-300)
            if error > _EXACT and len(self.t) <= _AGGREGATED:
                residual = max(self._settle_sets(gram), self.gradient()[1])
                step, error = 0.0, _EXACT
        converged = step <= _SETTLED and residual <= _BALANCED and error <= _ERROR
        return _State(
            self.value, residual, max(step * step, error), self.iterations, converged
        )

    def descend(self, iterations: int) -> tuple[float, Gram]:
        """Sweeps, then Newton's method: the last step's reach, and the last matrix."""
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
            sets = _Descent(group, crossing(group, self.terms), self.linear @ basis)
            sets.descend(_SWEEPS)
            worst = max(worst, sets.gradient()[1])
            self.move(basis @ sets.t)
        return worst

    def _sweep(self) -> None:
        """Every generator to its own minimiser, damped so that the sum cannot grow.

        By convexity ``e^{y_1 + … + y_q} ≤ (1/q) Σ e^{q y_j}``, and the right side is minimised.
        """
        for _ in range(_SWEEPS):
            sums = sums_by_exponent(self.group, self.terms)
            step = _own_minimisers(sums, self.linear) / self._crowd
            self.iterations += 1
            self.move(step)
            if self.reach(step) <= _NEAR:
                return


class _Program(_Descent):
    """The terms of a user's problem, summed over axes along which nothing varies.

    Attributes:
        constant: The terms that no generator moves.
    """

    def __init__(self, whole: ScalingGroup, coefficients, linear, factor: float):
        if not factor or not np.isfinite(factor):
            raise ValueError(
                f"minimise_exponentials: factor must be finite and not 0, got {factor}"
            )
        level = _checked_linear(whole, linear) / factor
        if not callable(coefficients):
            whole.layout.check(coefficients, "minimise_exponentials", "coefficients")
            coefficients = partial(_piece, coefficients.detach())
        self._source = whole, coefficients
        _check_coefficients(whole, coefficients)
        small = compact_group(whole)
        terms, self.constant = self._summed(small)
        super().__init__(small, terms, level)
        self._rest = np.zeros(whole.dimension, dtype=bool)

    def _summed(self, small: ScalingGroup) -> tuple[Tensor, float]:
        """The coefficients summed, and the sum of all that no generator moves."""
        (whole, coefficients), pieces, constant = self._source, [], 0.0
        for entry in whole.layout.entries:
            piece = coefficients(entry).reshape(entry.shape)
            if entry.name not in whole.incidence:
                constant += float(piece.sum(dtype=torch.float64))
                continue
            piece = reduced(piece, entry.shape, small.layout[entry.name].shape)
            fixed = fixed_entries(whole.incidence[entry.name])
            if fixed is not None:
                fixed = torch.from_numpy(fixed).to(piece.device)
                constant += float(piece[fixed].sum())
                piece = piece.masked_fill(fixed, 0.0)
            pieces.append(piece.reshape(-1))
        if not pieces:
            pieces.append(torch.zeros(small.layout.size, dtype=torch.float64))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone(), constant

    def drop(self, lost: Recession) -> None:
        """Leave out the terms that vanish, and generators that the rest does not determine."""
        self.terms.masked_fill_(lost.vanishing, 0.0)
        if not lost.held:
            self._rest = np.zeros(len(self.t), dtype=bool)
            self._rest[Gram(self.group, self.terms > 0).free_generators] = True
            self.group = self.group.without(self._rest)
            self.t, self.linear = self.t[~self._rest], self.linear[~self._rest]

    @property
    def coordinates(self) -> np.ndarray:
        """All coordinates, 0 for generators that rest."""
        whole = np.zeros(len(self._rest))
        whole[~self._rest] = self.t
        return whole

    def restart(self, lost: Recession) -> None:
        """The terms anew at the present coordinates, without those that vanish."""
        del self.terms  # to be made anew, not twice
        self.terms, _ = self._summed(self.group)
        self.terms.masked_fill_(lost.vanishing, 0.0)
        self._follow(self.t)


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
    for _ in range(70):
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


def _piece(coefficients: Tensor, entry: Entry) -> Tensor:
    return coefficients[entry.slice]


def _check_coefficients(group: ScalingGroup, coefficients) -> None:
    for entry in group.layout.entries:
        piece = coefficients(entry)
        # A sum is NaN or infinite if an entry is, and cheaper to look at.
        low = float(piece.min()) if piece.numel() else 0.0
        if low < 0 or not np.isfinite(float(piece.sum(dtype=torch.float64))):
            bad = int((~torch.isfinite(piece) | (piece < 0)).sum())
            raise ValueError(
                f"minimise_exponentials: {bad} coefficients of {entry.name!r} are negative, NaN "
                "or infinite, or their sum overflows; they must be finite and at least 0"
            )


def _checked_linear(group: ScalingGroup, linear) -> np.ndarray:
    if linear is None:
        return np.zeros(group.dimension)
    b = torch.as_tensor(linear, dtype=torch.float64).detach().cpu().numpy()
    if b.shape != (group.dimension,) or not np.isfinite(b).all():
        raise ValueError(
            f"minimise_exponentials: linear must be finite and of shape ({group.dimension},), one "
            f"number a generator; got shape {b.shape}"
        )
    return b
