"""Random combinations of a model's derivatives, at random points and on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from quotientnet.symmetry.derivative import Slopes
from quotientnet.symmetry.exactly import Degenerate
from quotientnet.symmetry.replica import (
    Replica,
    drawn_again,
    relative_change,
)

__all__ = ["RandomRows"]


class RandomRows:
    """Rows that every symmetry annihilates: derivatives of the results by scales of the entries.

    Args:
        replica: The model; its ``caller`` is named in errors.
        inputs: Positional and keyword arguments, to be drawn again.
        seed: Of points and inputs.
    """

    def __init__(self, replica: Replica, inputs: tuple[tuple, Mapping], seed: int):
        self.replica, self.inputs = replica, inputs
        self.generator = torch.Generator().manual_seed(seed)
        self._slopes = Slopes(replica)

    def draw(self, count: int = 1) -> Tensor:
        """Rows of norm 1 at one new point and on new inputs, shape ``(count, n)``.

        Raises:
            RuntimeError: Every random point made a normalisation see a constant channel.
            ValueError: A derivative is not finite.
        """
        for _ in range(100):
            with suppress(Degenerate):
                return self._draw(count)
        raise RuntimeError(
            f"{self.replica.caller}: at 100 random points a normalisation saw a constant channel; "
            "its derivatives say nothing there. Are the example inputs large enough?"
        )

    def _draw(self, count: int) -> Tensor:
        args, kwargs = self.some_inputs()
        w = self.replica.random_point(self.generator)
        rows = self._slopes(w, args, kwargs, self._weights, count)
        sizes = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if not torch.isfinite(sizes).all():
            bad = ~torch.isfinite(rows).all(0).cpu()
            names = ", ".join(self.replica.layout.count(bad))
            raise ValueError(
                f"{self.replica.caller}: a derivative at a random point is not finite, by {names}"
            )
        return rows.div_(sizes.clamp(min=1e-300))

    def some_inputs(self) -> tuple[tuple, dict]:
        """The inputs with other numbers."""
        return tree_map_only(
            Tensor, lambda x: drawn_again(x, self.generator), self.inputs
        )

    def _weights(self, y: Tensor, count: int) -> Tensor:
        """Random, and such that every feature counts by its own size."""
        noise = torch.randn(
            (count, *y.shape), generator=self.generator, dtype=torch.float64
        ).to(y.device)
        size = y.detach().abs()
        features = size.amax(0, keepdim=True) if y.ndim > 1 else size.amax()
        return noise / features.clamp(min=1e-30)

    def jump(self, directions: np.ndarray, live: np.ndarray) -> float:
        """How far a random scaling along directions changes the outputs, applied in full."""
        if not directions.shape[1]:
            return 0.0
        basis, mask = torch.from_numpy(directions), torch.from_numpy(live)

        def exponents() -> Tensor:
            mix = torch.randn(len(basis.T), generator=self.generator, dtype=basis.dtype)
            along, whole = basis @ mix, torch.zeros(len(mask), dtype=basis.dtype)
            whole[mask] = along / along.abs().amax()
            return whole

        return self._change(exponents)

    def effect(self, entries: Tensor) -> float:
        """How far random scales of the entries of a mask change the outputs."""

        def exponents() -> Tensor:
            noise = torch.randn(len(entries), generator=self.generator)
            return torch.where(entries, 2 * noise.double(), 0.0)

        return self._change(exponents) if entries.any() else 0.0

    def _change(self, draw: Callable[[], Tensor]) -> float:
        """The largest change of the outputs by scales with random exponents."""
        changes = [0.0]
        for _ in range(8):
            args, kwargs = self.some_inputs()
            w = self.replica.random_point(self.generator)
            exponents = draw().to(w)
            with suppress(Degenerate):
                here, _ = self.replica.run(w, args, kwargs)
                there, _ = self.replica.run(exponents.exp() * w, args, kwargs)
                changes += [relative_change(a, b) for a, b in zip(here, there)]
        return max(changes)
