"""What a measure returns: a number with how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, its error, and what it cost.

    Attributes:
        value: The number.
        error: Its uncertainty in the same unit: a residual bound, or one standard error; 0 for
            formulas that are exact up to rounding.
        converged: Whether the requested accuracy was reached.
        cost: Products with an operator, or backward passes, that were spent.
        invariant_to: The symmetries under which the exact value does not change: ``"layer
            scales"``, ``"unit scales"``, ``"filter scales"`` (of filters that batch normalisation
            normalises), ``"output scale"``, ``"output shift"``, or the group of a manifold.
        layers: The part of each parameter tensor, by its name, where the measure has parts.
    """

    value: float
    error: float
    converged: bool
    cost: int
    invariant_to: tuple[str, ...] = ()
    layers: Mapping[str, Estimate] = field(default_factory=dict)
