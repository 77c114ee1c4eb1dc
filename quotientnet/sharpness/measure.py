"""A measure as a report calls it, and when two of its values are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot

import torch

from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.point import Point

__all__ = ["Measure", "KINDS"]

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
    """

    label: str
    paper: str
    function: Callable[[Point, ScalingGroup, torch.Generator], Estimate]
    kind: str = "exact"
    fresh: bool = True

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
        slack = 4 * hypot(one.error, other.error) if self.kind == "sampled" else 0.0
        bound = max(KINDS[self.kind], 1e3 * eps) * max(abs(a), abs(b))
        return a == b or abs(a - b) <= bound + slack
