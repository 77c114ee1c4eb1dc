"""The scalings that could be symmetries, with which a search by derivatives starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.units import Term

__all__ = ["Candidates", "candidate_scalings"]

_ENTRIES = 1500
"""Up to this many coordinates every entry is a candidate of its own."""


@dataclass(frozen=True)
class Candidates:
    """Scalings of which every symmetry that can be found is a product.

    Attributes:
        group: All of them, one generator each. They are not independent: to scale all rows of a
            matrix is to scale all its columns.
        entries: Whether every entry has its own, or else rows, columns and entries of vectors.
        blocks: By the name of a convolution's weight, the number of groups along its first axis;
            each has its own columns.
    """

    group: ScalingGroup
    entries: bool
    blocks: dict[str, int]

    @property
    def kind(self) -> str:
        """``"entries"`` or ``"rows and columns"``."""
        return "entries" if self.entries else "rows and columns"

    def sums(self, rows: Tensor) -> Tensor:
        """``group.adjoint(rows)``, in one pass over many rows."""
        total, count = [], len(rows)
        for entry, piece in zip(
            self.group.layout.entries, self.group.layout.split(rows)
        ):
            terms = self.group.incidence[entry.name]
            if len(terms) == 2:
                number = self.blocks.get(entry.name, 1)
                a, b = entry.shape[:2]
                blocks = piece.reshape(count, number, a // number, b, -1).sum(-1)
                total.append(blocks.sum(3).flatten(1))
                total.append(blocks.sum(2).flatten(1))
            elif terms[0].coefficient == 1:
                total.append(piece)
            else:
                # A running variance, which goes with the mean before it.
                total.append(piece.new_zeros(count, 0))
        sums = torch.cat(total, 1)
        for entry, piece in zip(
            self.group.layout.entries, self.group.layout.split(rows)
        ):
            term = self.group.incidence[entry.name][0]
            if term.coefficient != 1:
                sums[:, torch.from_numpy(term.index.reshape(-1).copy())] += (
                    term.coefficient * piece
                )
        return sums


def candidate_scalings(
    model: nn.Module, layout: ParameterLayout, entries: bool | None = None
) -> Candidates:
    """The candidate scalings of a model.

    A running variance has no scale of its own: a scale of what is normalised scales its running
    mean once and its variance twice.

    Args:
        model: A module with this layout.
        layout: Its coordinates.
        entries: Whether every entry is a candidate; by default if there are no more than 1500.
    """
    entries = layout.size <= _ENTRIES if entries is None else entries
    blocks = _blocks(model)
    incidence: dict[str, list[Term]] = {}
    count = 0
    for entry in layout.entries:
        mean = f"{entry.name.removesuffix('running_var')}running_mean"
        if entry.passive and mean != entry.name and mean in incidence:
            incidence[entry.name] = [Term(incidence[mean][0].index, 2)]
            continue
        shape, ones = entry.shape, [1] * (len(entry.shape) - 2)
        if entries or len(shape) < 2:
            incidence[entry.name] = [
                Term(count + np.arange(entry.numel).reshape(shape), 1)
            ]
            count += entry.numel
            continue
        number = blocks.get(entry.name, 1)
        rows = np.arange(shape[0])
        columns = np.arange(shape[1]) + rows[:, None] // (shape[0] // number) * shape[1]
        incidence[entry.name] = [
            Term(count + rows.reshape(-1, 1, *ones), 1),
            Term(count + shape[0] + columns.reshape(*shape[:2], *ones), 1),
        ]
        count += shape[0] + number * shape[1]
    return Candidates(ScalingGroup(layout, incidence), entries, blocks)


def _blocks(model: nn.Module) -> dict[str, int]:
    """The groups of convolutions, by the names of their weights."""
    found = {}
    for prefix, child in model.named_modules():
        if isinstance(getattr(child, "groups", None), int):
            found[f"{prefix}.weight" if prefix else "weight"] = child.groups
    return found
