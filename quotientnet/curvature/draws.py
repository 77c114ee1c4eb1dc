"""Random signs, their products, and running means that know their error."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, isfinite, sqrt

import torch
from torch import Tensor

from quotientnet.operator import Operator

__all__ = ["LEAST", "Mean", "multiply", "normal", "quadratic", "signs"]

LEAST = 12  # draws before a standard error may end the sampling


def normal(*shape: int, like, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, the same in every dtype up to its rounding.

    Args:
        shape: Of the result.
        like: A tensor or an operator that has the dtype and the device.
        generator: Source of randomness; torch's global one if None.
    """
    kind = {"dtype": torch.float64, "device": like.device}
    return torch.randn(shape, generator=generator, **kind).to(like.dtype)


def signs(operator: Operator, number: int, generator: torch.Generator) -> Tensor:
    """Columns of random signs, shape ``(size, number)``, the same whatever the blocks."""
    columns = [
        torch.randint(
            0, 2, (operator.size,), device=operator.device, generator=generator
        )
        for _ in range(number)
    ]
    return torch.stack(columns, dim=1).to(operator.dtype) * 2 - 1


def multiply(operator: Operator, columns: Tensor, name: str) -> Tensor:
    """``H`` times each column.

    Raises:
        ValueError: A product that is NaN or infinite.
    """
    if columns.shape[1] == 1:
        image = (operator @ columns[:, 0])[:, None]
    else:
        image = operator @ columns
    if not torch.isfinite(image).all():
        raise ValueError(
            f"{name}: a product is NaN or infinite; is the point valid, or does a value overflow "
            "in this dtype?"
        )
    return image


def quadratic(operator: Operator, columns: Tensor, name: str) -> list[float]:
    """``⟨x, H x⟩`` for each column.

    Raises:
        ValueError: One that is NaN or infinite.
    """
    found = (columns * multiply(operator, columns, name)).sum(0).tolist()
    if not all(map(isfinite, found)):
        raise ValueError(f"{name}: a product overflows in this dtype")
    return found


@dataclass
class Mean:
    """A running mean of independent draws.

    Attributes:
        offset: Added to the mean, without error.
        draws: The draws so far.
    """

    offset: float
    draws: list[float]

    @property
    def value(self) -> float:
        """The offset and the mean."""
        return self.offset + sum(self.draws) / len(self.draws)

    @property
    def error(self) -> float:
        """One standard error."""
        mean = sum(self.draws) / len(self.draws)
        spread = hypot(*(draw - mean for draw in self.draws))
        return spread / sqrt((len(self.draws) - 1) * len(self.draws))

    def within(self, tolerance: float | None) -> bool:
        """Whether the standard error is at most ``tolerance · |value|``, after enough draws to
        know it."""
        if tolerance is None or len(self.draws) < LEAST:
            return False
        return self.error <= tolerance * abs(self.value)
