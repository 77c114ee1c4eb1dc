"""A measure as a report calls it, and when two of its values are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot, isfinite

import torch

from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.point import Point

__all__ = ["Measure", "KINDS", "covers"]

KINDS = {"exact": 1e-8, "search": 1e-6, "sampled": 1e-8, "rough": 1e-2}
"""The largest relative change that counts as none, by how a value is found."""


@dataclass(frozen=True)
class Measure:
    """A measure as a report calls it.

    Attributes:
        label: Its name.
        paper: Where it comes from; rows are grouped by it.
        function: ``function(point, group, generator)``. It may refuse with a ``ValueError``.
        kind: ``"exact"`` for formulas; ``"search"`` for an ascent or an eigenvalue, which is known
            to the tolerance of its iteration; ``"sampled"`` for an estimate with a standard error;
            ``"rough"`` for a search among kinks, where rounding decides on the third digit.
        fresh: Whether it gets other random numbers at every point, so that agreement is no
            artefact. An ascent that may end at one of several maxima gets the same ones.
        note: ``note(point)``, what a reader of the value must know, or None.
    """

    label: str
    paper: str
    function: Callable[[Point, ScalingGroup, torch.Generator], Estimate]
    kind: str = "exact"
    fresh: bool = True
    note: Callable[[Point], str | None] | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"Measure: {self.label!r} is of kind {self.kind!r}, it must be one of "
                f"{', '.join(KINDS)}"
            )

    def same(self, one: Estimate, other: Estimate, eps: float) -> bool:
        """Whether two values agree as well as this kind of measure can tell.

        Args:
            one: At one point.
            other: At another.
            eps: The rounding unit of the dtype.
        """
        a, b = one.value, other.value
        if not (isfinite(a) and isfinite(b)):
            return a == b
        slack = 4 * hypot(one.error, other.error) if self.kind == "sampled" else 0.0
        bound = max(KINDS[self.kind], 1e3 * eps) * max(abs(a), abs(b))
        return a == b or abs(a - b) <= bound + slack


def covers(claims: Sequence[str], moves: str) -> bool:
    """Whether claims of ``Estimate.invariant_to`` say that a value is unchanged under moves.

    Layer scales are unit scales. The group of the layer-scale quotient is that of layer scales;
    those of the other quotients have all scales that leave the network unchanged.
    """
    of_quotients = [
        c for c in claims if c.endswith("'s group") or c == "the group given"
    ]
    if any("LayerScale" in c for c in of_quotients) and moves == "layer scales":
        return True
    if any("LayerScale" not in c for c in of_quotients):
        return moves.startswith(("layer", "unit", "filter")) or moves in claims
    return moves in claims or (moves == "layer scales" and "unit scales" in claims)
