"""Whether a measure is as invariant as it claims, neither less nor more."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot, inf, isfinite

import torch

from quotientnet.estimate import Estimate
from quotientnet.group import as_group
from quotientnet.options import require_count, require_kind, require_number, require_seed
from quotientnet.orbit import require_invariant
from quotientnet.point import require_point
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.sharpness.measure import KINDS, Measure, covers
from quotientnet.testing.laws import Verdict

__all__ = ["check_invariance"]


def check_invariance(
    measure: str | Measure | Callable,
    point,
    group,
    *,
    invariant: bool | None = None,
    moves: str = "unit scales",
    points: int = 3,
    spread: float = 1.0,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verdict:
    """Whether a measure is the same at equivalent points, as it claims or is said to be.

    Claims are checked both ways: a measure that claims the symmetry must not change under any of
    the random elements, and one that does not claim it must change under one. A measure that says
    too little is as wrong as one that says too much.

    Args:
        measure: A function ``(point, group)`` that returns an :class:`~quotientnet.Estimate` or a
            number; or a measure of the report, by its label.
        point: A :class:`~quotientnet.Point`.
        group: A scaling group under which the loss is invariant, or what ``discover`` returned.
        invariant: What is expected. By default what ``Estimate.invariant_to`` claims, and true for
            measures that return a number.
        moves: How claims call this group's elements: ``"unit scales"`` or ``"layer scales"``.
        points: How many random elements.
        spread: Standard deviation of their coordinates.
        tolerance: The largest relative change that is none; by default 1e-8, or what a measure of
            the report is known to. Four standard errors of an estimate are allowed besides.
        seed: Of the elements, and of the random numbers of a report's measures.

    Returns:
        The verdict on ``measure_is_invariant`` or ``measure_is_not_invariant``, with the element of
        the largest change as its ``sample``. A measure that fails at an equivalent point only is
        not invariant.

    Raises:
        ValueError: A group without generators, or that the loss does not have; no point.
        TypeError: A measure that returns neither an estimate nor a number, or another argument of
            another kind.
        Exception: What the measure raises at the point itself.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.testing import check_invariance
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
        >>> x = torch.randn(9, 3).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, x[:, :2]))
        >>> point = objective.at(objective.layout.flatten(model))
        >>> norm = lambda point, group: float(point.w.norm())
        >>> check_invariance(norm, point, qn.discover(model, x)).holds
        False
        >>> check_invariance("minimum sharpness", point, qn.discover(model, x)).holds
        True
    """
    require_point(point, "check_invariance")
    require_kind(moves, str, "check_invariance", "moves")
    if tolerance is not None:
        require_number(tolerance, "check_invariance", "tolerance")
    require_seed(seed, "check_invariance")
    group = as_group(group, "check_invariance")
    require_count(points, "check_invariance", "points")
    require_number(spread, "check_invariance", "spread", strict=True)
    if not group.dimension:
        raise ValueError(
            "check_invariance: the group has no generators: no measure could fail"
        )
    require_invariant(point, group, "check_invariance")
    measure = _as_measure(measure)
    here = _value(measure, point, group, seed)
    if invariant is None:
        numeric = isinstance(here, _Number)
        invariant = numeric or covers(here.invariant_to, moves)
    allowed = KINDS[measure.kind] if tolerance is None else tolerance
    found = max(
        (_trial(measure, point, group, here, spread, seed, k) for k in range(points)),
        key=lambda trial: inf if trial[0] != trial[0] else trial[0],
    )
    change, t, reason = found
    told = {True: "claimed or expected", False: "not claimed"}[invariant]
    reason = reason or f"the value changes by {change:.1e}, invariance is {told}"
    if not invariant:
        change = 0.0 if change > allowed or change != change else inf
    name = "measure_is_invariant" if invariant else "measure_is_not_invariant"
    case = f"{measure.label}, {points} elements of spread {spread:g}"
    return Verdict(name, change, allowed, seed, case, reason, None, t, points)


class _Number(Estimate):
    """A value without an error or claims, of a measure that returned a number."""


def _as_measure(measure) -> Measure:
    if isinstance(measure, (str, Measure)):
        return as_measures([measure])[0]
    if not callable(measure):
        raise TypeError(
            "check_invariance: measure must be a label or a callable (point, group), got "
            f"{type(measure).__name__}"
        )
    label = getattr(measure, "__name__", type(measure).__name__)
    return Measure(label, "your own", lambda p, g, r: measure(p, g), "sampled")


def _value(measure: Measure, point, group, seed: int) -> Estimate:
    generator = torch.Generator(point.w.device).manual_seed(seed)
    found = measure.function(point, group, generator)
    if isinstance(found, Estimate):
        return found
    try:
        return _Number(float(found), 0.0, True, 0)
    except (TypeError, ValueError):
        raise TypeError(
            f"check_invariance: {measure.label} returned {type(found).__name__}, it must return an "
            "Estimate or a number"
        ) from None


def _trial(measure, point, group, here, spread, seed, number):
    """The relative change under one random element, beyond what errors explain; the element."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    t = group.random(spread=spread, generator=generator)
    there = point.objective.at(group.act(point.w, t.to(point.w.device)))
    fresh = seed + number + 1 if measure.fresh else seed
    try:
        other = _value(measure, there, group, fresh)
    except (ArithmeticError, ValueError, RuntimeError) as error:
        return inf, t, f"{type(error).__name__} at an equivalent point: {error}"
    a, b = here.value, other.value
    if not (isfinite(a) and isfinite(b)):
        return (0.0 if a == b else inf), t, ""
    size = max(abs(a), abs(b), torch.finfo(torch.float64).tiny)
    return max(abs(a - b) - 4 * hypot(here.error, other.error), 0.0) / size, t, ""
