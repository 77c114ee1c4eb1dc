"""What calls refuse as numbers and seeds: one wording for all options."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real

import torch

__all__ = ["grown", "require_count", "require_number", "seeded"]


def require_number(
    value: float,
    caller: str,
    name: str,
    *,
    least: float = 0.0,
    most: float = inf,
    strict: bool = False,
    below: float = inf,
) -> float:
    """A finite number from ``least`` to ``most``, and less than ``below``.

    Args:
        value: What was given.
        caller: Who is to be named in errors.
        name: Of the option.
        least: The smallest that is allowed, or the largest that is not.
        most: The largest that is allowed.
        strict: Whether ``least`` itself is refused.
        below: The smallest that is not allowed.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{caller}: {name} must be a number, got {type(value).__name__}"
        )
    if not (least <= value <= most and value < below) or (strict and value == least):
        range_ = f"above {least:g}" if strict else f"at least {least:g}"
        upper = f"at most {most:g}" if most < inf else f"below {below:g}"
        upper = "finite" if most == below == inf else upper
        raise ValueError(f"{caller}: {name} must be {range_} and {upper}, got {value}")
    return float(value)


def require_count(
    value: int, caller: str, name: str, least: int = 1, most: float = inf
) -> int:
    """An integer from ``least`` to ``most``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}")
    if not least <= value <= most:
        upper = "" if most == inf else f" and at most {most}"
        raise ValueError(
            f"{caller}: {name} must be an integer of at least {least}{upper}, got {value}"
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


def seeded(seed: int, caller: str) -> torch.Generator:
    """A generator on the host.

    Raises:
        TypeError: ``seed`` is no integer.
        ValueError: It is negative, or beyond 64 bits.
    """
    require_count(seed, caller, "seed", least=0, most=2**64 - 1)
    return torch.Generator().manual_seed(seed)
