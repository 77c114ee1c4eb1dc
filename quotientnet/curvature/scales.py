"""Points whose scales take squares of derivatives out of a dtype's range."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from quotientnet.manifolds.vectors import listed
from quotientnet.point import Point

__all__ = [
    "badly_scaled", "finite", "require_finite_diagonal", "require_resolved", "widened",
]  # fmt: skip

REMEDY = (
    "use float64, or move along the orbit to a point of moderate scales first: "
    "objective.at(qn.canonical(w, group))"
)
"""What to do about scales that leave a dtype's range."""


def badly_scaled(point: Point) -> bool:
    """Whether weights have sizes at which squares of derivatives may leave the dtype's range.

    That is an entry of more than the 16th root of the largest number, or a matrix of entries of
    less than its inverse: 256 in float32, 2e19 in float64.
    """
    limit = torch.finfo(point.w.dtype).max ** (1 / 16)
    for entry, piece in zip(point.layout.entries, point.layout.split(point.w)):
        size = float(piece.abs().max()) if entry.numel and not entry.passive else 1.0
        if size > limit or (len(entry.shape) > 1 and 0 < size < 1 / limit):
            return True
    return False


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float64, in which every square of it is a normal number or 0.

    Raises:
        ValueError: It has entries that have lost digits, or that float64 cannot square.
    """
    least = torch.finfo(tensor.dtype).tiny
    tensor, info = tensor.double(), torch.finfo(torch.float64)
    least, sizes = max(least, info.tiny**0.5), tensor.abs()
    if ((sizes > info.max**0.5) | ((sizes > 0) & (sizes < least))).any():
        raise ValueError(f"ggn: derivatives or their squares leave the dtype's range; {REMEDY}")
    return tensor


def finite(value: float, caller: str) -> float:
    """The value of a measure.

    Raises:
        ValueError: It is NaN or infinite.
    """
    if not isfinite(value):
        raise ValueError(f"{caller}: the sum is {value}: it overflows; {REMEDY}")
    return value


def require_finite_diagonal(point: Point, diagonal: Tensor, caller: str) -> None:
    """Refuse second derivatives, shape ``(size,)``, that overflow.

    Raises:
        ValueError: Some are NaN or infinite; the message names their tensors.
    """
    bad = ~torch.isfinite(diagonal)
    if bad.any():
        raise ValueError(
            f"{caller}: squares of derivatives overflow {point.w.dtype} in "
            f"{listed(point.layout.count(bad))}; {REMEDY}"
        )


def require_resolved(point: Point, diagonal: Tensor, caller: str) -> None:
    """Refuse second derivatives that are so small, against the squares of their parameters, that
    the dtype has lost their digits.

    An entry is known to no better than the smallest number of its dtype; times the squares of the
    parameters these errors must add up to no more than 1,000 units of rounding of the sum itself.

    Args:
        point: The point.
        diagonal: Shape ``(size,)``, of the point's dtype.
        caller: Who says so.

    Raises:
        ValueError: They do not, or some are NaN or infinite.
    """
    require_finite_diagonal(point, diagonal, caller)
    info = torch.finfo(point.w.dtype)
    root = info.smallest_normal**0.5 * info.eps**0.5
    w = point.w.double()[: point.layout.parameter_size]
    sizes = w * diagonal[: len(w)].double().abs().sqrt()
    lost = (w * root).square()
    allowed = 1e3 * info.eps * float(sizes.square().sum())
    if float(lost.sum()) > max(allowed, info.tiny**0.5):
        worst = torch.zeros(point.layout.size, dtype=torch.bool, device=w.device)
        worst[: len(w)] = lost == lost.max()
        raise ValueError(
            f"{caller}: squares of derivatives underflow {point.w.dtype}, against parameters as "
            f"large as those of {listed(point.layout.count(worst))}; {REMEDY}"
        )
