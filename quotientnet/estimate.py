"""What a measure returns: a number with how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, its error, and what it cost.

    Attributes:
        value: The number.
        error: Its uncertainty in the same unit: a residual bound, or one standard error.
        converged: Whether the requested accuracy was reached.
        cost: Products with an operator, or backward passes, that were spent.
        invariant_to: The symmetries under which the exact value does not change.
    """

    value: float
    error: float
    converged: bool
    cost: int
    invariant_to: tuple[str, ...] = ()
