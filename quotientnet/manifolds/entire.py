"""Trigonometric functions of a squared angle, smooth through zero."""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor

__all__ = ["cos_sqrt", "sinc_sqrt", "versine_sqrt"]

_TERMS = 7
"""Terms of each series; at ``x = 0.05`` the next one is below 1e-20."""


def cos_sqrt(x: Tensor) -> Tensor:
    """``cos √x`` as the entire function it is: also for ``x ≤ 0``, with all derivatives."""
    return _entire(x, torch.cos, 0)


def sinc_sqrt(x: Tensor) -> Tensor:
    """``sin √x / √x``."""
    return _entire(x, lambda angle: torch.sin(angle) / angle, 1)


def versine_sqrt(x: Tensor) -> Tensor:
    """``(cos √x − 1) / x``, without cancellation."""
    return -_entire(x, lambda angle: 2 * (torch.sin(angle / 2) / angle) ** 2, 2)


def _entire(x: Tensor, wide, shift: int) -> Tensor:
    """``Σ_k (−x)^k / (2k + shift)!``, by its closed form away from zero."""
    small = x < 0.05
    near = torch.where(small, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for k in reversed(range(_TERMS)):
        series = series * -near + 1 / factorial(2 * k + shift)
    return torch.where(
        small, series, wide(torch.where(small, torch.ones_like(x), x).sqrt())
    )
