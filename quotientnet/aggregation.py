"""Sets of generators that hold together far more strongly than they hold to the rest.

In a residual stream, units can feed each other a million times more than the outside. How the set
as a whole is scaled is then lost in the rounding of its own couplings. As one generator it is not:
its couplings cancel exactly, in integers, and only what crosses its boundary counts.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from quotientnet.group import ScalingGroup

__all__ = ["partitions", "merged", "crossing"]


def partitions(matrix: np.ndarray) -> list[np.ndarray]:
    """Nested partitions into sets that hold together, coarser ones last: a label a generator.

    Args:
        matrix: ``Aᵀ diag(terms) A``, shape ``(k, k)``.
    """
    scale = np.sqrt(np.diagonal(matrix))
    scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    coupling = np.abs(scale[:, None] * matrix * scale)
    np.fill_diagonal(coupling, 0.0)
    found, last = [], len(matrix)
    for threshold in 10.0 ** np.arange(0.0, -19.0, -0.5):
        count, labels = connected_components(
            sparse.csr_array(coupling > threshold), directed=False
        )
        if count < last:
            found.append(labels)
            last = count
    return found


def merged(group: ScalingGroup, labels: np.ndarray) -> tuple[ScalingGroup, np.ndarray]:
    """The subgroup in which each set moves as one, and the matrix from its coordinates."""
    count = int(labels.max()) + 1
    where = np.arange(len(labels)), labels
    shape = (len(labels), count)
    basis = sparse.csr_array((np.ones(len(labels), dtype=np.int64), where), shape=shape)
    names = [f"set {j}" for j in range(count)]
    classes = group.classes @ basis
    return ScalingGroup(group.layout, group.incidence, classes, names), basis


def crossing(group: ScalingGroup, terms: Tensor) -> Tensor:
    """The terms whose exponents do not cancel, 0 elsewhere."""
    dice = torch.Generator().manual_seed(0)
    t = group.random(generator=dice).to(terms.device)
    return torch.where(group.exponents(t).abs() > 1e-9, terms, 0.0)
