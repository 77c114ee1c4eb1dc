"""What calls refuse as numbers, and whose name an error bears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from numbers import Integral, Real

__all__ = ["errors_of", "require_integer", "require_real"]


def require_integer(
    value: int, caller: str, name: str, least: int = 1, most: float = inf
) -> int:
    """An integer from ``least`` to ``most``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}")
    return int(_between(value, caller, name, least, most))


def require_real(
    value: float, caller: str, name: str, least: float = 0.0, most: float = inf
) -> float:
    """A finite number from ``least`` to ``most``.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be a number, got {value!r}")
    return float(_between(value, caller, name, least, most))


def _between(value, caller: str, name: str, least, most):
    if not least <= value <= most or value == inf:
        finite = "at least {}{}" if most == inf else "between {} and {}"
        range_ = finite.format(least, "" if most == inf else most)
        raise ValueError(f"{caller}: {name} must be {range_}, got {value}")
    return value


@contextmanager
def errors_of(caller: str) -> Iterator[None]:
    """Errors of the derivation that ``caller`` starts name ``caller``, not ``discover``."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("discover:"):
            raise
        text = str(error).replace("discover:", f"{caller}:", 1)
        raise ValueError(text) from error.__cause__
