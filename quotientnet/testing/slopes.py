"""Orders of convergence: how fast an error falls with the step, read off where it can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, log10, nan

import numpy as np

__all__ = ["Slope", "STEPS", "fit_slope", "measure_slope"]

STEPS = tuple(10.0 ** (-k / 3) for k in range(28))
"""The steps tried unless told otherwise: 1 to 1e-9, three a decade."""

_WINDOW, _STRAIGHT, _ABOVE = 6, 0.03, 10.0


@dataclass(frozen=True)
class Slope:
    """The order at which an error falls, with the window of steps it was read from.

    Attributes:
        wanted: The order that the law asks for, at least.
        order: The slope of ``log error`` over ``log step``, infinite where all errors are rounding,
            NaN where nothing can be read: errors that are not finite, but for the largest steps, or
            too few above rounding.
        window: The smallest and the largest step of the fit.
        floor: What counts as rounding: errors up to this are not looked at.
        steps: The steps, in falling order.
        errors: The error at each.
    """

    wanted: float
    order: float
    window: tuple[float, float]
    floor: float
    steps: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def violation(self) -> float:
        """How much is missing of the order wanted."""
        return (
            self.order
            if self.order != self.order
            else max(self.wanted - self.order, 0.0)
        )

    def __str__(self) -> str:
        if self.order == inf:
            return f"no error above rounding, {self.floor:.0e}"
        return (
            f"order {self.order:.2f} between steps {self.window[0]:.0e} and {self.window[1]:.0e}, "
            f"{self.wanted:g} wanted"
        )


def measure_slope(
    error: Callable[[float], float],
    wanted: float,
    *,
    steps=STEPS,
    rounding: float = 0.0,
) -> Slope:
    """The order at which ``error(step)`` falls.

    Args:
        error: From a step to a number that is not negative.
        wanted: The order it should have, at least.
        steps: Positive, in falling order.
        rounding: Errors up to this are rounding, whatever the smallest steps say.
    """
    return fit_slope(steps, [float(error(h)) for h in steps], wanted, rounding=rounding)


def fit_slope(steps, errors, wanted: float, *, rounding: float = 0.0) -> Slope:
    """The order of errors that were measured already.

    Rounding is what is left at the three smallest steps, or ``rounding`` if that is more. An order
    is a statement on small steps: of all windows of six neighbouring steps whose errors are all
    ten times above rounding, that of the smallest steps is taken in which the points lie on a line.
    The order wanted has no part in the choice.

    Args:
        steps: Positive, in falling order, seven or more.
        errors: One for each step.
        wanted: The order that the law asks for.
        rounding: Errors up to this are rounding.

    Returns:
        The slope; of order NaN where an error is not finite or no window is left.

    Raises:
        ValueError: Fewer than seven steps, steps that do not fall, or another number of errors.
    """
    steps, errors = tuple(map(float, steps)), tuple(map(float, errors))
    falling = all(a > b > 0 for a, b in zip(steps, steps[1:]))
    if len(steps) <= _WINDOW or len(errors) != len(steps) or not falling:
        raise ValueError(
            f"fit_slope: needs more than {_WINDOW} positive steps in falling order and an error "
            f"for each, got {len(steps)} steps and {len(errors)} errors"
        )
    start = next((k for k, e in enumerate(errors) if isfinite(e)), len(steps))
    if not all(map(isfinite, errors[start:])) or len(steps) - start <= _WINDOW:
        return Slope(wanted, nan, (nan, nan), nan, steps, errors)
    floor = max(rounding, *errors[-3:])
    seen = [e > _ABOVE * floor for e in errors]
    if not any(seen[start:]):
        flat = inf if max(errors[start:]) <= _ABOVE * rounding else 0.0
        return Slope(wanted, flat, (steps[-1], steps[start]), floor, steps, errors)
    ends = range(len(steps), start + _WINDOW - 1, -1)
    fits = [
        (*_line(steps[k - _WINDOW : k], errors[k - _WINDOW : k]), k)
        for k in ends
        if all(seen[k - _WINDOW : k])
    ]
    if not fits:
        return Slope(wanted, nan, (nan, nan), floor, steps, errors)
    straight = [fit for fit in fits if fit[1] <= _STRAIGHT]
    order, _, end = straight[0] if straight else min(fits, key=lambda fit: fit[1])
    window = steps[end - 1], steps[end - _WINDOW]
    return Slope(wanted, order, window, floor, steps, errors)


def _line(steps, errors) -> tuple[float, float]:
    """The slope of the line through points in logarithms, and the root mean square off it."""
    x, y = np.array([log10(h) for h in steps]), np.log10(errors)
    order, offset = np.polyfit(x, y, 1)
    return float(order), float(np.sqrt(np.mean((order * x + offset - y) ** 2)))
