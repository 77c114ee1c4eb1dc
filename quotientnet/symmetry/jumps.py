"""Which generators leave a model unchanged when they are applied in full."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from quotientnet.group import ScalingGroup
from quotientnet.symmetry.links import Naming
from quotientnet.symmetry.rows import RandomRows
from quotientnet.symmetry.sound import Trial

__all__ = ["InFull"]

_REACHES = 0.7, 3.0, 7.0
"""Log-scales up to these: a jump may be near or far."""

_POINTS = 12
"""How many points and inputs, the first of them the user's own."""

_TOLERANCE = 1e-9


class InFull:
    """A group tried out on a model, a part of its generators at a time.

    Args:
        rows: The model and its inputs.
        group: What its derivatives allow.
        seed: Of elements.
    """

    def __init__(self, rows: RandomRows, group: ScalingGroup, seed: int):
        self.group, self.trials = group, []
        self._generator = torch.Generator().manual_seed(seed)
        replica = rows.replica
        for number in range(_POINTS):
            start = (
                replica.random_point(self._generator) if number else replica.w.clone()
            )
            inputs = rows.some_inputs() if number else rows.inputs
            trial = Trial(replica, group, "own", *inputs, start)
            with suppress(ValueError):  # a constant channel
                trial.violation(group.identity(device=start.device))
                self.trials.append(trial)

    def changes(self, basis: np.ndarray) -> bool:
        """Whether combinations of generators, shape ``(some, dimension)``, change the outputs."""
        mixed = torch.from_numpy(basis).double()
        for trial in self.trials:
            for reach in _REACHES:
                t = torch.rand(len(mixed), generator=self._generator).double()
                t = (2 * t - 1) @ mixed
                largest = float(self.group.exponents(t).abs().amax())
                t = (reach * t / max(largest, 1e-300)).to(trial.start.device)
                with suppress(ValueError):
                    # Both ways: often one alone crosses something.
                    if any(not trial.violation(s) <= _TOLERANCE for s in (t, -t)):
                        return True
        return False

    def without_jumps(self, namings: Sequence[Naming]) -> tuple[np.ndarray, list[int]]:
        """Combinations that change nothing, a row each, and the generators that are in none.

        Generators that jump one by one, as the rows of what is only compared, are also tried all
        together, those of one place and kind.
        """
        eye = np.eye(self.group.dimension, dtype=np.int64)
        good = self._sound(np.arange(self.group.dimension))
        bad = np.setdiff1d(np.arange(self.group.dimension), good)
        together: dict[tuple[str, str], list[int]] = {}
        for j in bad.tolist():
            together.setdefault((namings[j].place, namings[j].parts), []).append(j)
        rows, left = [eye[good]], []
        for generators in together.values():
            total = eye[generators].sum(0, keepdims=True)
            if len(generators) > 1 and not self.changes(total):
                rows.append(total)
            else:
                left += generators
        return np.concatenate(rows), left

    def _sound(self, generators: np.ndarray) -> np.ndarray:
        """Those that change nothing: all, or the sound ones of both halves."""
        if not len(generators) or not self.changes(
            np.eye(self.group.dimension, dtype=np.int64)[generators]
        ):
            return generators
        if len(generators) == 1:
            return generators[:0]
        half = len(generators) // 2
        parts = self._sound(generators[:half]), self._sound(generators[half:])
        return np.concatenate(parts)
