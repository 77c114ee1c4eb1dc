"""The rules of operations: what each needs of the scales of its arguments."""

from quotientnet.symmetry.rules import (
    attention,
    axis_products,
    complex_numbers,
    elementwise,
    fourier,
    linear_algebra,
    losses,
    normalisations,
    pins,
    products,
    recurrences,
    shapes,
    sums,
    windows,
    writes,
)
from quotientnet.symmetry.rules.registry import RULES, Call, find_rule, reason_of, rule

__all__ = ["RULES", "Call", "rule", "find_rule", "reason_of", "attention", "axis_products",
           "complex_numbers", "elementwise", "fourier", "linear_algebra", "losses",
           "normalisations", "pins", "products", "recurrences", "shapes", "sums", "windows",
           "writes"]  # fmt: skip
