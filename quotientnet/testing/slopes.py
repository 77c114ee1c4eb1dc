"""Orders of convergence: how fast an error falls with the step, read off where it can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, log10, nan

import numpy as np

from quotientnet.options import require_number

__all__ = ["Slope", "STEPS", "fit_slope", "measure_slope"]

STEPS = tuple(10.0 ** (-k / 3) for k in range(28))
"""The steps tried unless told otherwise: 1 to 1e-9, three a decade."""

_WINDOW, _STRAIGHT, _ABOVE = 6, 0.03, 10.0


@dataclass(frozen=True)
class Slope:
    """The order at which an error falls, with the window of steps it was read from.

    Attributes:
        wanted: The order that the law asks for, at least.
        order: The slope of ``log error`` over ``log step``, infinite where nothing is seen above
            rounding, NaN where errors are not finite, but for the largest steps.
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
    Where there are not as many, shorter ones will do, of three at least. The order wanted has no
    part in the choice.

    Args:
        steps: Positive, in falling order, seven or more.
        errors: One for each step.
        wanted: The order that the law asks for.
        rounding: Errors up to this are rounding.

    Returns:
        The slope; of order NaN where an error is not finite, infinite where fewer than three errors
        are above rounding.

    Raises:
        TypeError: ``wanted`` or ``rounding`` is no number.
        ValueError: One of them is NaN; fewer than seven steps, steps that do not fall, or another
            number of errors.
    """
    require_number(wanted, "fit_slope", "wanted", least=-inf)
    require_number(rounding, "fit_slope", "rounding")
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
    seen = [isfinite(e) and e > _ABOVE * floor for e in errors]
    widths = range(_WINDOW, 2, -1)
    fits = next(filter(None, (_fits(steps, errors, seen, n) for n in widths)), [])
    if not fits:
        order = inf if floor <= _ABOVE * rounding else 0.0
        return Slope(wanted, order, (steps[-1], steps[start]), floor, steps, errors)
    straight = [fit for fit in fits if fit[1] <= _STRAIGHT]
    order, _, *window = straight[0] if straight else min(fits, key=lambda fit: fit[1])
    return Slope(wanted, order, tuple(window), floor, steps, errors)


def _fits(steps, errors, seen, width: int) -> list[tuple[float, float, float, float]]:
    """Lines through so many neighbouring errors that are above rounding, the smallest steps first:
    order, distance from the line, and the smallest and largest step."""
    return [
        (
            *_line(steps[k : k + width], errors[k : k + width]),
            steps[k + width - 1],
            steps[k],
        )
        for k in range(len(steps) - width, -1, -1)
        if all(seen[k : k + width])
    ]


def _line(steps, errors) -> tuple[float, float]:
    """The slope of the line through points in logarithms, and the root mean square off it."""
    x, y = np.array([log10(h) for h in steps]), np.log10(errors)
    order, offset = np.polyfit(x, y, 1)
    return float(order), float(np.sqrt(np.mean((order * x + offset - y) ** 2)))
