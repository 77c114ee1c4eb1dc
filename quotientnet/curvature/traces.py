"""Traces of symmetric operators."""

from __future__ import annotations

from math import sqrt

import torch

from quotientnet.estimate import Estimate
from quotientnet.operator import Operator

__all__ = ["hutchinson_trace"]


def hutchinson_trace(
    operator: Operator, *, samples: int = 100, generator: torch.Generator | None = None
) -> Estimate:
    """The trace by random signs: the mean of ``⟨s, H s⟩`` with ``s_i = ±1``.

    Unbiased; its error does not depend on the diagonal of ``H``.

    Args:
        operator: The symmetric operator.
        samples: Number of sign vectors, at least 2.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        The estimate, its ``error`` one standard error.

    Raises:
        ValueError: Fewer than 2 samples, or a product that is NaN or infinite.
    """
    if samples < 2:
        raise ValueError(f"hutchinson_trace: samples must be at least 2, got {samples}")
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    draws = []
    for _ in range(samples):
        bits = torch.randint(
            0, 2, (operator.size,), device=operator.device, generator=generator
        )
        s = bits.to(operator.dtype) * 2 - 1
        draws.append(torch.dot(s, operator @ s))
    values = torch.stack(draws).double()
    if not torch.isfinite(values).all():
        raise ValueError(
            "hutchinson_trace: a product is NaN or infinite; is the point valid?"
        )
    return Estimate(
        float(values.mean()), float(values.std()) / sqrt(samples), True, samples
    )
