"""The symmetry group of a module: derived, explained and verified."""

from quotientnet.symmetry.balance import (
    Balancing,
    balance,
    balancing,
    canonical,
    default_levels,
)
from quotientnet.symmetry.coarsest import layer_scale_group
from quotientnet.symmetry.complete import Completeness, verify_complete
from quotientnet.symmetry.discover import discover
from quotientnet.symmetry.epsilon import Approximation
from quotientnet.symmetry.explanation import Coverage, Pinned, Symmetry
from quotientnet.symmetry.finding import NumericalSymmetry
from quotientnet.symmetry.links import Link, Naming
from quotientnet.symmetry.migration import (
    Part,
    ScaleMapping,
    ScaleMappings,
    scale_mappings,
)
from quotientnet.symmetry.normalised import NormalisedBlocks, normalised_blocks
from quotientnet.symmetry.numerical import discover_numerically
from quotientnet.symmetry.permutations import (
    Matching,
    Move,
    PermutationClass,
    PermutationClasses,
    match_channels,
    permutation_classes,
)
from quotientnet.symmetry.rules import RULES, Call, rule
from quotientnet.symmetry.scales import LogScale
from quotientnet.symmetry.smoothing import ChannelSizes, channel_sizes, smoothing
from quotientnet.symmetry.sound import Soundness, verify_sound
from quotientnet.symmetry.transform import OPTIMIZER_UNITS, transform
from quotientnet.symmetry.translations import Translation
from quotientnet.symmetry.translations.complete import verify_translations_complete
from quotientnet.symmetry.translations.gauge import fix_translations
from quotientnet.symmetry.translations.sound import verify_translations

__all__ = [
    "discover", "discover_numerically", "Symmetry", "NumericalSymmetry",
    "Pinned", "Coverage", "Approximation", "Link", "Naming",
    "layer_scale_group", "normalised_blocks", "NormalisedBlocks", "transform", "OPTIMIZER_UNITS",
    "canonical", "balance", "balancing", "Balancing", "default_levels", "verify_sound", "Soundness",
    "scale_mappings", "ScaleMappings", "ScaleMapping", "Part",
    "channel_sizes", "ChannelSizes", "smoothing",
    "permutation_classes", "PermutationClasses", "PermutationClass", "Move",
    "match_channels", "Matching",
    "Translation", "verify_translations", "verify_translations_complete",
    "fix_translations",
    "verify_complete", "Completeness", "rule", "RULES", "Call", "LogScale",
]  # fmt: skip
