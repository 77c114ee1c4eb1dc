"""What training refuses as an option."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real

__all__ = ["grown", "require_count", "require_number"]


def require_number(
    value: float,
    caller: str,
    name: str,
    *,
    least: float = 0.0,
    most: float = inf,
    strict: bool = False,
) -> float:
    """A finite number from ``least`` to ``most``.

    Args:
        value: What was given.
        caller: Who is to be named in errors.
        name: Of the option.
        least: The smallest that is allowed, or the largest that is not.
        most: The smallest that is not allowed.
        strict: Whether ``least`` itself is refused.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if not isinstance(value, Real):
        raise TypeError(
            f"{caller}: {name} must be a number, got {type(value).__name__}"
        )
    if not least <= value < most or (strict and value == least):
        range_ = f"above {least:g}" if strict else f"at least {least:g}"
        below = "finite" if most == inf else f"below {most:g}"
        raise ValueError(f"{caller}: {name} must be {range_} and {below}, got {value}")
    return float(value)


def require_count(value: int, caller: str, name: str, least: int = 1) -> int:
    """An integer of at least ``least``.

    Raises:
        ValueError: It is less, or no integer.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"{caller}: {name} must be an integer of at least {least}, got {value!r}"
        )
    return int(value)


def grown(value: float, growth: float, times: int, caller: str, name: str) -> float:
    """``value * growth**times``.

    Raises:
        ValueError: It is beyond all numbers.
    """
    try:
        return value * growth**times
    except OverflowError:
        raise ValueError(
            f"{caller}: {name} has grown {times} times by {growth}, beyond all numbers; let it "
            "grow less, or less often"
        ) from None
