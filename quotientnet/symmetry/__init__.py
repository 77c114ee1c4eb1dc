"""The symmetry group of a module: derived, explained and verified."""

from quotientnet.symmetry.coarsest import layer_scale_group
from quotientnet.symmetry.discover import discover
from quotientnet.symmetry.epsilon import Approximation
from quotientnet.symmetry.explanation import Coverage, Pinned, Symmetry
from quotientnet.symmetry.links import Link, Naming
from quotientnet.symmetry.rules import RULES, Call, rule
from quotientnet.symmetry.scales import LogScale

__all__ = [
    "discover", "layer_scale_group", "Symmetry", "Pinned", "Coverage", "Approximation", "Link",
    "Naming", "rule", "RULES", "Call", "LogScale",
]  # fmt: skip
