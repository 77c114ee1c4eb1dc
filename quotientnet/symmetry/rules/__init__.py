"""The rules of operations: what each needs of the scales of its arguments."""

from quotientnet.symmetry.rules import (
    attention,
    complex_numbers,
    elementwise,
    normalisations,
    products,
    recurrences,
    shapes,
    sums,
    writes,
)
from quotientnet.symmetry.rules.registry import RULES, Call, find_rule, rule

__all__ = ["RULES", "Call", "rule", "find_rule", "attention", "complex_numbers", "elementwise",
           "normalisations", "products", "recurrences", "writes", "shapes", "sums"]  # fmt: skip
