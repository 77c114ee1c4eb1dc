"""Permutations of channels that leave a module's function unchanged."""

from quotientnet.symmetry.permutations import moves, rules
from quotientnet.symmetry.permutations.classes import (
    Move,
    PermutationClass,
    PermutationClasses,
)
from quotientnet.symmetry.permutations.derive import permutation_classes
from quotientnet.symmetry.permutations.matching import Matching, match_channels
from quotientnet.symmetry.permutations.registry import AXIS_RULES, Axes, axis_rule

__all__ = ["permutation_classes", "PermutationClasses", "PermutationClass", "Move", "AXIS_RULES",
           "match_channels", "Matching",
           "Axes", "axis_rule", "moves", "rules"]  # fmt: skip
