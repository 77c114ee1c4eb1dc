r"""Quadrature of high order for :math:`\int_{-1}^{1} |s|^p h(s)\, ds` with a smooth ``h``."""

from __future__ import annotations

import numpy as np
from scipy.special import roots_jacobi

__all__ = ["power_rule"]


def power_rule(p: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Nodes and weights of a rule for the weight :math:`|s|^p` on ``[-1, 1]``.

    If ``p`` is even, ``h = |h̃|^p`` is smooth across zero, and the rule is Gauss' on the whole
    interval, exact for polynomials of degree ``4 count − 1``. Otherwise ``h`` may have a kink at
    zero, where both halves have a Gauss-Jacobi rule of their own, exact to degree
    ``2 count − 1``.

    Args:
        p: At least 1.
        count: Nodes on each side of zero, at least 1.

    Returns:
        Nodes, none of them 0, and positive weights, ``2 count`` of each.

    Example:
        >>> nodes, weights = power_rule(2, 2)
        >>> round(float((weights * nodes**4).sum()), 12), round(2 / 7, 12)
        (0.285714285714, 0.285714285714)
    """
    whole = p % 2 == 0
    power = (p - 1) / 2 if whole else p
    # Gauss-Jacobi for the weight x^power on [0, 1]; x = s² on the whole interval.
    roots, weights = roots_jacobi(count, 0.0, power)
    x, weights = (1 + roots) / 2, weights / 2 ** (power + 1)
    s, weights = (np.sqrt(x), weights / 2) if whole else (x, weights)
    return np.concatenate([-s[::-1], s]), np.concatenate([weights[::-1], weights])
