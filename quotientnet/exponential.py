"""The one convex solver: sums of exponentials of linear functions, minimised and certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from functools import partial
from math import inf, nan

import numpy as np
import torch
from torch import Tensor

from quotientnet.couplings import reduced
from quotientnet.descent import Descent, State
from quotientnet.exponents import compact_group, fixed_entries
from quotientnet.gram import Gram
from quotientnet.group import ScalingGroup, as_group
from quotientnet.layout import Entry
from quotientnet.options import require_number
from quotientnet.recession import Recession, recession

__all__ = ["Minimum", "minimise_exponentials"]


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
        vanishing: Which terms tend to 0 in an infimum that is not attained: by the name of an
            entry, a mask that broadcasts to its shape.
    """

    t: Tensor = field(repr=False)
    value: float
    runaways: tuple[str, ...]
    residual: float
    error: float
    iterations: int
    converged: bool
    vanishing: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def attained(self) -> bool:
        """Whether the infimum is a minimum."""
        return not self.runaways


@np.errstate(over="ignore", invalid="ignore")  # what comes of either is refused at the end
def minimise_exponentials(
    group: ScalingGroup,
    coefficients: Tensor | Callable[[Entry], Tensor],
    linear: Tensor | None = None,
    *,
    factor: float = 1.0,
    start: Tensor | None = None,
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
        start: Coordinates near the minimum, shape ``(dimension,)``, if some are known. They save
            time and change nothing else.
        max_iterations: Newton steps at most.

    Returns:
        The minimum; where it is not attained, the infimum and the generators that run away.

    Raises:
        TypeError: ``coefficients`` is no tensor or function, ``factor`` no number.
        ValueError: Coefficients that are negative, NaN or infinite, named by entry; ``linear`` of
            another shape or not finite; a factor of 0; a minimum or coefficients, all of them,
            beyond the range of float64.

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
    if 0 < float(program.terms.max()) < torch.finfo(torch.float64).tiny:
        raise ValueError(
            "minimise_exponentials: all coefficients are below 2e-308, where float64 loses its "
            "digits; multiply linear and coefficients by a number"
        )
    lost, compact = (
        recession(program.group, program.terms, program.linear),
        program.group.layout,
    )
    names = tuple(group.names[j] for j in np.flatnonzero(lost.moving))
    if lost.unbounded:
        state = State(-inf, 0.0, 0.0, 0, True)
    else:
        program.drop(lost)
        if start is not None:
            program.begin(factor * start.detach().cpu().numpy())
        program.descend(max_iterations)
        # Once more from the coefficients themselves: what over- or underflowed on the way is right.
        program.restart(lost)
        state = program.minimise(max_iterations)
        state.value += program.constant
    if np.isnan(state.value):
        raise ValueError(
            "minimise_exponentials: the minimum is beyond all numbers; divide linear and "
            "coefficients by a number"
        )
    t = torch.from_numpy(np.where(lost.moving, nan, program.coordinates) / factor)
    masks = {e.name: lost.vanishing[e.slice].reshape(e.shape) for e in compact.entries}
    return Minimum(t, state.value, names, *astuple(state)[1:], masks if names else {})


class _Program(Descent):
    """The terms of a user's problem, summed over axes along which nothing varies.

    Attributes:
        constant: The terms that no generator moves.
    """

    def __init__(self, whole: ScalingGroup, coefficients, linear, factor: float):
        require_number(factor, "minimise_exponentials", "factor", least=-inf, most=inf)
        if not factor or not np.isfinite(factor):
            raise ValueError(
                f"minimise_exponentials: factor must be finite and not 0, got {factor}"
            )
        level = _checked_linear(whole, linear) / factor
        if not callable(coefficients):
            whole.layout.check(coefficients, "minimise_exponentials", "coefficients")
            if coefficients.ndim != 1:
                raise ValueError(
                    f"minimise_exponentials: coefficients must have shape ({whole.layout.size},), "
                    f"got {tuple(coefficients.shape)}"
                )
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

    def begin(self, start: np.ndarray) -> None:
        """Go to given coordinates, unless the terms have no numbers there."""
        start, terms = start[~self._rest], self.terms.clone()
        self.move(start)
        if not torch.isfinite(self.terms.sum()):
            self.t, self.terms = self.t - start, terms

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
        self.follow(self.t)


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
