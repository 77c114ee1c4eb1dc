"""What a report is about: a loss, its symmetry, and elements of it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from quotientnet.objective import Objective
from quotientnet.symmetry import Symmetry

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A network to report on.

    Attributes:
        name: Of the network.
        objective: Its loss.
        symmetry: What ``discover`` says of it.
        facts: More to print and to write down, such as accuracies.
        elements: Group elements by name, beside random ones.
        points: How many random ones.
    """

    name: str
    objective: Objective
    symmetry: Symmetry
    facts: Mapping[str, float] = field(default_factory=dict)
    elements: Mapping[str, Tensor] = field(default_factory=dict)
    points: int = 2
