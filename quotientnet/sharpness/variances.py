"""The convex problem behind normalised sharpness: a variance for each row and each column."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log1p

import torch
from torch import Tensor

from quotientnet.exponential import minimise_exponentials
from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.units import Term

__all__ = ["Variances", "minimise_variances"]

_SWEEPS = 60
"""Sweeps before Newton's method takes over: dense matrices need 5 to 20, banded ones any number."""

_STEPS, _DENSE = 40, 2048
"""Newton steps at most, on so many rows and columns at most."""

_RIDGE = 1e-13
"""Added to the scaled second derivative, which does not see ``x + s, y - s``."""

_TOLERANCE = 1e-13
"""The imbalance of a row at which sweeps end; the value's error is of the order of its square."""


@dataclass(frozen=True)
class Variances:
    """The minimiser of :func:`~quotientnet.sharpness.variances.minimise_variances`.

    Attributes:
        rows: The variance of each row, float64; infinite for a row without curvature, 0 for a row
            without weight, and NaN for rows that run away together with columns.
        columns: The same for columns, shape ``(groups · columns,)``.
        value: The minimum, or the infimum.
        error: A bound of what is missing to it, 0 if it was reached.
        iterations: Sweeps and Newton steps.
        converged: Whether it was reached.
    """

    rows: Tensor
    columns: Tensor
    value: float
    error: float
    iterations: int
    converged: bool


def minimise_variances(
    curvature: Tensor, squares: Tensor, groups: int = 1
) -> Variances:
    r"""The least of :math:`\sum_{ij} h_{ij} e^{x_i + y_j} + v_{ij} e^{-x_i - y_j}`.

    Rows and columns without curvature or without weight are left out first: their terms vanish
    in the infimum. Then each side is minimised in turn in closed form,

    .. math:: e^{2 x_i} = \frac{\sum_j v_{ij} e^{-y_j}}{\sum_j h_{ij} e^{y_j}},

    and what has not converged, such as banded matrices, is left to Newton's method. Where that
    does not converge either, because the infimum is not attained,
    :func:`~quotientnet.exponential.minimise_exponentials` finds out which rows and columns run
    away.

    Args:
        curvature: ``h ≥ 0``, shape ``(rows, columns)``.
        squares: ``v ≥ 0``, of the same shape.
        groups: The rows come in so many groups, each with columns of its own.

    Returns:
        The variances :math:`e^{x_i}` and :math:`e^{y_j}`, and the value.

    Example:
        >>> import torch
        >>> from quotientnet.sharpness.variances import minimise_variances
        >>> h, v = torch.tensor([[1.0, 4.0]]).double(), torch.tensor([[9.0, 1.0]]).double()
        >>> round(minimise_variances(h, v).value, 9)  # 2 (√9 + √4)
        10.0
    """
    h, v = (t.double().unflatten(0, (groups, -1)) for t in (curvature, squares))
    rows, columns = _alive(h, v)
    kept = rows & columns
    left = [torch.where(kept, t, 0.0) for t in (h, v)]
    a, b, iterations, done = _sweep(*left, rows, columns)
    if not done and sum(h.shape[1:]) <= _DENSE:
        a, b, steps, done = _newton(*left, a, b, rows, columns)
        iterations += steps
    if done:
        value = float((a * left[0] * b).sum() + (left[1] / (a * b)).sum())
        error = 0.0
    else:
        found = minimise_exponentials(
            _group(h.shape), torch.cat([t.flatten() for t in left])
        )
        a, b = _unpacked(found.t.exp().to(h.device), h.shape)
        value, iterations = found.value, iterations + found.iterations
        done = found.converged
        error = 0.0 if done else found.residual * value
    a = torch.where(rows, a, _lost(h.sum(2, keepdim=True), v.sum(2, keepdim=True)))
    b = torch.where(columns, b, _lost(h.sum(1, keepdim=True), v.sum(1, keepdim=True)))
    return Variances(a.flatten(), b.flatten(), value, error, iterations, done)


def _alive(h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, ``(groups, rows, 1)``, and columns, ``(groups, 1, columns)``, with both kinds of
    terms among those that are left."""
    rows = torch.ones_like(h[:, :, :1], dtype=torch.bool)
    columns = torch.ones_like(h[:, :1], dtype=torch.bool)
    while True:
        before = int(rows.sum() + columns.sum())
        for axis in (2, 1):
            both = [
                (torch.where(rows & columns, t, 0.0) > 0).any(axis, True)
                for t in (h, v)
            ]
            if axis == 2:
                rows = rows & both[0] & both[1]
            else:
                columns = columns & both[0] & both[1]
        if int(rows.sum() + columns.sum()) == before:
            return rows, columns


def _sweep(h: Tensor, v: Tensor, rows: Tensor, columns: Tensor):
    """Variances of rows and columns, the number of sweeps, and whether they have converged."""
    a, b = torch.ones_like(h[:, :, :1]), torch.ones_like(h[:, :1])
    for iteration in range(_SWEEPS + 1):
        up = torch.where(rows, h @ b.mT, 1.0)
        down = torch.where(rows, v @ (1 / b).mT, 1.0)
        gap = (a * up - down / a).abs() / (a * up + down / a)
        if iteration and float(gap.max()) <= _TOLERANCE:
            return a, b, iteration, True
        a = (down / up).sqrt()
        up = torch.where(columns, a.mT @ h, 1.0)
        down = torch.where(columns, (1 / a).mT @ v, 1.0)
        b = (down / up).sqrt()
    return a, b, _SWEEPS, False


def _group(shape: torch.Size) -> ScalingGroup:
    """A generator for each row and for each column of each group."""
    groups, rows, columns = shape
    own = torch.arange(groups * rows).reshape(groups, rows, 1).numpy()
    other = (
        groups * rows + torch.arange(groups * columns).reshape(groups, 1, -1).numpy()
    )
    terms = {
        name: (Term(own, sign), Term(other, sign))
        for name, sign in (("curvature", 1), ("weight", -1))
    }
    return ScalingGroup(ParameterLayout(dict.fromkeys(terms, tuple(shape))), terms)


def _unpacked(t: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    groups, rows, columns = shape
    own, other = t.split([groups * rows, groups * columns])
    return own.reshape(groups, rows, 1), other.reshape(groups, 1, columns)


def _lost(h: Tensor, v: Tensor) -> Tensor:
    """The variance of what was left out: where its own terms send it; 1 if it has none."""
    one, nan = torch.ones_like(h), torch.full_like(h, torch.nan)
    alone = torch.where(v > 0, torch.full_like(h, inf), one)
    return torch.where(h > 0, torch.where(v > 0, nan, torch.zeros_like(h)), alone)


def _newton(h: Tensor, v: Tensor, a: Tensor, b: Tensor, rows: Tensor, columns: Tensor):
    """As :func:`_sweep`, from there, by damped Newton steps on rows and columns together."""
    x, y, count = a.log(), b.log(), h.shape[1]
    alive = torch.cat([rows[:, :, 0], columns[:, 0]], 1)
    for iteration in range(_STEPS):
        e = (x + y).exp()
        terms, slopes = h * e + v / e, h * e - v / e
        total = torch.cat([terms.sum(2), terms.sum(1)], 1)
        slope = torch.cat([slopes.sum(2), slopes.sum(1)], 1)
        total = torch.where(alive, total, 1.0)
        if not torch.isfinite(total).all():
            break
        if float((slope / total).abs().max()) <= _TOLERANCE:
            return x.exp(), y.exp(), iteration, True
        scale = total.rsqrt()
        matrix = torch.diag_embed(torch.full_like(total, 1 + _RIDGE))
        matrix[:, :count, count:] = (
            terms * scale[:, :count, None] * scale[:, None, count:]
        )
        matrix[:, count:, :count] = matrix[:, :count, count:].mT
        step = -scale * torch.linalg.solve(matrix, scale * slope)
        step = torch.where(alive, step, 0.0)
        change = step[:, :count, None] + step[:, None, count:]
        size = float(torch.where(h + v > 0, change, 0.0).abs().max())
        step = step * (log1p(size) / size if size > 1 else 1.0)
        x, y = x + step[:, :count, None], y + step[:, None, count:]
    return a, b, _STEPS, False
