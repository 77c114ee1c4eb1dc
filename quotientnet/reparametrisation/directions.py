"""Directions of a scaling group that shrink many coordinates at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor

from quotientnet.group import ScalingGroup, as_group
from quotientnet.reparametrisation.exact_part import exact_part
from quotientnet.reparametrisation.scales import coordinates_of
from quotientnet.symmetry import Symmetry, layer_scale_group

__all__ = ["Blocks", "blocks_of", "shrinking_direction"]

_REACH = 1e4
"""The largest growth that a search considers against a shrinkage by 1."""

_DENSE = 1 << 27
"""Entries of the matrix of exponents, where tensors have to be taken apart."""


@dataclass(frozen=True)
class Blocks:
    """Coordinates that the whole group scales alike.

    Attributes:
        group: The group the blocks belong to.
        parent: The group whose coordinates :meth:`lift` gives.
        rows: The exponents of each block, integers, shape ``(blocks, dimension)``.
        index: The block of each coordinate, −1 where passive, shape ``(size,)``.
    """

    group: ScalingGroup
    parent: ScalingGroup
    rows: np.ndarray
    index: Tensor

    @property
    def sizes(self) -> np.ndarray:
        """The number of coordinates of each block."""
        kept = self.index[self.index >= 0]
        return torch.bincount(kept, minlength=len(self.rows)).numpy()

    def coordinates(self, chosen: np.ndarray) -> Tensor:
        """The coordinates in chosen blocks, boolean, shape ``(size,)``."""
        return torch.from_numpy(np.append(chosen, False))[self.index]

    def tensors(self, chosen: np.ndarray) -> tuple[str, ...]:
        """The names of the parameters with coordinates in chosen blocks."""
        return tuple(self.parent.layout.count(self.coordinates(chosen)))

    def lift(self, direction: np.ndarray) -> Tensor:
        """The parent's coordinates of a direction of the group."""
        t = torch.from_numpy(np.asarray(direction, dtype=np.float64))
        if self.parent is self.group:
            return t
        return coordinates_of(self.parent, self.group.exponents(t))


def blocks_of(symmetry: ScalingGroup | Symmetry, caller: str) -> Blocks:
    """The blocks of the layer-scale group, or of the whole group where that one is trivial.

    Raises:
        ValueError: The group has no generators, none that is exact, or is too large to be taken
            apart.
    """
    parent, group = as_group(symmetry, caller), exact_part(symmetry, caller)
    if group.dimension == 0:
        raise ValueError(
            f"{caller}: the group has no generators, so the model has no other equivalent point; "
            "print(discover(model, inputs)) says what pins it"
        )
    coarse = layer_scale_group(group)
    if coarse.dimension:
        rows, index = _tensor_rows(coarse)
    elif group.dimension * group.layout.size <= _DENSE:
        coarse = group
        rows, index = _entry_rows(group)
    else:
        raise ValueError(
            f"{caller}: no element of the group scales whole tensors, and with {group.dimension} "
            f"generators on {group.layout.size} coordinates it is too large to be taken apart; "
            "pass a subgroup"
        )
    rows, inverse = np.unique(rows, axis=0, return_inverse=True)
    index = torch.from_numpy(inverse.reshape(-1))[index]
    index[group.layout.parameter_size :] = -1
    return Blocks(coarse, parent, rows, index)


def _tensor_rows(group: ScalingGroup) -> tuple[np.ndarray, Tensor]:
    """One row a tensor, of a group that scales tensors uniformly."""
    compact = group.compact_exponents(torch.eye(group.dimension, dtype=torch.float64))
    entries = group.layout.entries
    rows = np.zeros((len(entries), group.dimension))
    for number, entry in enumerate(entries):
        for term in compact.get(entry.name, ()):
            rows[number] += term.reshape(group.dimension).numpy()
    lengths = torch.tensor([entry.numel for entry in entries])
    return rows, torch.repeat_interleave(torch.arange(len(entries)), lengths)


def _entry_rows(group: ScalingGroup) -> tuple[np.ndarray, Tensor]:
    rows = group.exponents(torch.eye(group.dimension, dtype=torch.float64)).T.numpy()
    return rows, torch.arange(group.layout.size)


def shrinking_direction(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The direction that shrinks as many coordinates as possible, and what it shrinks.

    An integer program over the exponents: maximise the number of coordinates in blocks with
    ``(A τ)_b ≤ −1``. Among the directions that shrink these blocks, the one that changes others
    least.

    Returns:
        ``τ``, shape ``(dimension,)``, and for each block whether it is shrunk.
    """
    rows, sizes = blocks.rows, blocks.sizes
    count, dimension = rows.shape
    programme = milp(
        np.concatenate([np.zeros(dimension), -sizes]),
        integrality=np.repeat([0, 1], [dimension, count]),
        bounds=Bounds(
            np.repeat([-_REACH, 0], [dimension, count]),
            np.repeat([_REACH, 1], [dimension, count]),
        ),
        constraints=LinearConstraint(
            np.hstack([rows, (_REACH + 1) * np.eye(count)]), ub=np.full(count, _REACH)
        ),
        options={"node_limit": 20_000},
    )
    shrunk = programme.x[dimension:] > 0.5
    # A second programme: the least growth, and the exponents exactly −1 or below.
    signs = np.concatenate([rows, -rows])
    growth = linprog(
        np.concatenate([np.zeros(dimension), [1.0]]),
        A_ub=np.vstack(
            [
                np.hstack([signs, -np.ones((2 * count, 1))]),
                np.hstack([rows[shrunk], np.zeros((shrunk.sum(), 1))]),
            ]
        ),
        b_ub=np.concatenate([np.zeros(2 * count), np.full(shrunk.sum(), -1.0)]),
        bounds=[(None, None)] * dimension + [(0, None)],
    )
    return growth.x[:dimension], shrunk
