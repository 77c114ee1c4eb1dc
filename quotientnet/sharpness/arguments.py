"""What measures check before they begin, and what several of them claim."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real

from quotientnet.losses import output_invariances

__all__ = [
    "checked_loss", "checked_power", "checked_radius", "checked_restarts", "parameter_names",
    "translations",
]  # fmt: skip


def checked_radius(value: float, caller: str, name: str = "epsilon") -> float:
    """A positive, finite number.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive and finite.
    """
    value = _number(value, caller, name)
    if not 0 < value < inf:
        raise ValueError(f"{caller}: {name} must be positive and finite, got {value}")
    return value


def checked_power(p: float, caller: str, name: str = "p") -> float:
    """An exponent of 1 or more.

    Raises:
        TypeError: It is no number.
        ValueError: It is below 1 or infinite.
    """
    p = _number(p, caller, name)
    if not 1 <= p < inf:
        raise ValueError(f"{caller}: {name} must be at least 1 and finite, got {p}")
    return p


def checked_restarts(restarts: int, caller: str) -> int:
    """A number of random starts.

    Raises:
        ValueError: It is negative or no integer.
    """
    if not isinstance(restarts, Integral) or restarts < 0:
        raise ValueError(f"{caller}: restarts must be 0, 1, 2, …, got {restarts!r}")
    return restarts


def checked_loss(point, caller: str) -> float:
    """``f``, for a quotient by ``1 + f``.

    Raises:
        ValueError: It is −1 or below.
    """
    value = float(point.value)
    if value <= -1:
        raise ValueError(
            f"{caller}: is divided by 1 + f, and the loss is {value:g}; it is meant for losses "
            "that are not negative"
        )
    return value


def translations(point) -> tuple[str, ...]:
    """The invariances of a measure that knows differences of parameters only: shifts of the outputs
    by their bias, where the loss ignores these."""
    ignored = output_invariances(point.objective.loss)
    return ("output shift",) if "output shift" in ignored else ()


def parameter_names(point) -> list[str]:
    """The names of the parameter tensors of a point."""
    return [entry.name for entry in point.layout.entries if not entry.passive]


def _number(value, caller: str, name: str) -> float:
    if isinstance(value, Real) or getattr(value, "ndim", None) == 0:
        return float(value)
    raise TypeError(f"{caller}: {name} must be a number, got {type(value).__name__}")
