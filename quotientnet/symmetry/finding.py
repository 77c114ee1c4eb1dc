"""What ``discover_numerically`` returns: a group, and how far it can be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from quotientnet.group import ScalingGroup
from quotientnet.symmetry.explanation import Found, count_of, units_of
from quotientnet.symmetry.links import Naming
from quotientnet.symmetry.sound import Soundness

__all__ = ["NumericalSymmetry"]


@dataclass(frozen=True)
class NumericalSymmetry(Found):
    """The scaling group of a module as its derivatives show it. ``print`` it for a summary.

    Attributes:
        group: The group, with a name for every generator.
        namings: Where each generator acts.
        training: The mode of the module.
        candidates: ``"entries"`` if every entry could have had its own scale, else ``"rows and
            columns"``: a symmetry that is no product of candidates is not found.
        gap: The smallest pivot over the largest that counts as zero: how clear the dimension is.
        rows: The number of random combinations of derivatives.
        points: The number of random points they were taken at.
        idle: The parameters, at least some entries of which have no effect at all. Their scale is
            free: a bias goes with its rows, others with nothing.
        unseen: Parameters with an effect, at least some entries of which have no derivative: they
            are only compared, or read by an operation that autograd takes for constant. No
            generator scales them, nor what needs their scale.
        jumps: Generators that derivatives allow and that, applied in full, change the outputs:
            they cross a threshold or a comparison. They are not in the group.
        soundness: The outcome of applying random elements in full.
    """

    group: ScalingGroup
    namings: tuple[Naming, ...] = field(repr=False)
    training: bool
    candidates: str
    gap: float
    rows: int
    points: int
    idle: tuple[str, ...]
    unseen: tuple[str, ...]
    jumps: tuple[Naming, ...]
    soundness: Soundness = field(repr=False)

    def to_json(self) -> str:
        """Everything as JSON: names, the table of generators, how it was found and verified."""
        names = ("candidates", "gap", "rows", "points", "idle", "unseen")
        facts = {name: getattr(self, name) for name in names} | {
            "jumps": [str(naming) for naming in self.jumps],
            "violation": self.soundness.violation,
        }
        return json.dumps(self.facts() | facts)

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        number = count_of(self.group.dimension, "generator")
        lines = [f"{number} ({mode} mode), found numerically"]
        lines += [f"  {line}" for line in units_of(self.namings)]
        if self.jumps:
            lines.append(
                "left out: derivatives allow them, but in full they cross a jump (a threshold, a "
                "comparison)"
            )
            lines += [f"  {line}" for line in units_of(self.jumps)]
        if self.idle:
            lines.append(f"no effect, at least in part: {', '.join(self.idle)}")
        if self.unseen:
            lines.append(
                "not scaled, an effect without derivatives (a comparison, an operation that "
                f"autograd does not know): {', '.join(self.unseen)}"
            )
        lines += [
            f"candidates: {self.candidates}",
            f"gap {self.gap:.0e}, after {self.rows} derivatives at {self.points} random points",
            str(self.soundness),
        ]
        return "\n".join(lines)
