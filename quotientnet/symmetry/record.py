"""What happened at one operation of a graph."""

from __future__ import annotations

from dataclasses import dataclass

from quotientnet.symmetry.guards import Guard
from quotientnet.symmetry.scales import LogScale

__all__ = ["Record"]


@dataclass
class Record:
    """What happened at one operation.

    Attributes:
        place: The module that called it, by name.
        operation: Its name in aten.
        treatment: ``"rule"``, ``"pins"``, ``"unknown"`` or ``"constant"``.
        outputs: The output channels of a layer.
        eps: What a normalisation adds to the variance, and its input's log-scale.
        node: Its name in the graph.
        kind: The class of the module.
        called: Whether it is an operation, not an input or output of the graph.
        guard: If all it does is to guard a division, how.
    """

    place: str
    operation: str
    treatment: str
    node: str
    kind: str = ""
    called: bool = True
    outputs: LogScale | None = None
    eps: tuple[float, LogScale] | None = None
    guard: Guard | None = None

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        return (
            f"{self.operation} in {self.place}{kind}" if self.place else self.operation
        )
