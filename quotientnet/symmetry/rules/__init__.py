"""The rules of operations: what each needs of the scales of its arguments."""

from quotientnet.symmetry.rules import (
    attention,
    complex_numbers,
    elementwise,
    normalisations,
    products,
    shapes,
    sums,
)
from quotientnet.symmetry.rules.registry import RULES, Call, find_rule, rule

__all__ = ["RULES", "Call", "rule", "find_rule", "attention", "complex_numbers", "elementwise",
           "normalisations", "products", "shapes", "sums"]  # fmt: skip
