"""What operations read of their arguments for those entries of their results that are read."""

from quotientnet.symmetry.reads import places, products, sums
from quotientnet.symmetry.reads.registry import LITERAL, READS, Reading, reads, united

__all__ = [
    "LITERAL",
    "READS",
    "Reading",
    "reads",
    "united",
    "places",
    "products",
    "sums",
]
