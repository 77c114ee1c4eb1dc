"""The blocks of parameters that a scale of their own moves, such as normalised filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from quotientnet.group import ScalingGroup, as_group

__all__ = ["NormalisedBlocks", "normalised_blocks"]


@dataclass(frozen=True)
class NormalisedBlocks:
    """Disjoint blocks of parameters, each with a generator of its own.

    Attributes:
        index: The number of each entry's block, −1 outside all of them: an integer array that
            broadcasts to the tensor's shape, by the names of the tensors that have blocks.
        generators: The generator of each block, shape ``(count,)``.
    """

    index: dict[str, np.ndarray]
    generators: np.ndarray


def normalised_blocks(group: ScalingGroup) -> NormalisedBlocks:
    """The supports of generators that scale all they touch alike: yi2019 Def. 2.2.

    A generator counts when its exponents on parameters are all equal and not 0, and it shares no
    entry with another that counts; its block is its whole support, in as many tensors as that
    has. Batch normalisation gives each filter before it one block, together with the filter's
    bias; layer normalisation gives the whole layer one; a normalised residual stream gives all
    that write to it one. A hidden unit's generator scales two sides oppositely and does not count,
    nor do those of a batch normalisation's own scale and shift. Running statistics do not matter.

    Args:
        group: A scaling group, or what :func:`~quotientnet.discover` returned.

    Example:
        >>> from quotientnet import ParameterLayout, Scale, ScalingGroup, Unit
        >>> layout = ParameterLayout({"filters": (2, 3), "bias": (2,), "last": (1, 2)})
        >>> conv = Unit("conv", 2, (Scale("filters", 0), Scale("bias", 0)))
        >>> found = normalised_blocks(ScalingGroup.from_units(layout, [conv]))
        >>> found.index["filters"].tolist(), found.index["bias"].tolist()
        ([[0], [1]], [0, 1])
    """
    group = as_group(group, "normalised_blocks")
    parts = {e.name: group.incidence.get(e.name, ()) for e in group.layout.entries}
    parts = {n: terms for n, terms in parts.items() if not group.layout[n].passive}
    kept = np.flatnonzero(_perhaps_uniform(group, parts))
    matrices = dict(_exponents(group.classes[:, kept], parts))
    lowest, highest = _bounds([m.tocoo() for m, _ in matrices.values()], len(kept))
    uniform = lowest == highest
    crowded = np.zeros(len(kept), dtype=bool)
    for matrix, _ in matrices.values():
        own = matrix[:, uniform]
        shared = own[np.diff(own.indptr) > 1].indices
        crowded[np.flatnonzero(uniform)[shared]] = True
    counted = uniform & ~crowded
    index = {}
    for name, (matrix, shape) in matrices.items():
        own = matrix[:, counted].tocoo()
        if own.nnz:
            owner = np.full(matrix.shape[0], -1)
            owner[own.row] = own.col
            index[name] = owner.reshape(shape)
    return NormalisedBlocks(index, kept[counted])


def _perhaps_uniform(group: ScalingGroup, parts) -> np.ndarray:
    """The generators that no tensor shows to have two exponents, shape ``(dimension,)``.

    Only tensors that a generator scales through one term are looked at: their terms cannot
    cancel, and need not be spread over their entries.
    """
    found = []
    for terms in parts.values():
        rows = [
            (t.coefficient * group.classes[np.unique(t.index)]).tocoo() for t in terms
        ]
        touched = sum(
            (np.bincount(np.unique(r.col), minlength=group.dimension) for r in rows), 0
        )
        for r in rows:
            alone = touched[r.col] == 1
            found.append(
                sparse.coo_array((r.data[alone], (r.row[alone], r.col[alone])), r.shape)
            )
    lowest, highest = _bounds(found, group.dimension)
    return lowest >= highest


def _bounds(matrices, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest nonzero exponent of each generator; ±∞ if it has none."""
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    for matrix in matrices:
        np.minimum.at(lowest, matrix.col, matrix.data)
        np.maximum.at(highest, matrix.col, matrix.data)
    return lowest, highest


def _exponents(classes: sparse.csr_array, parts):
    """By tensor, the nonzero exponents of entries that stand for all scaled alike, and their
    shape; tensors that the generators do not reach are left out."""
    reached = np.diff(classes.indptr) > 0
    for name, terms in parts.items():
        terms = [term for term in terms if reached[term.index].any()]
        if not terms:
            continue
        shape = np.broadcast_shapes(*(term.index.shape for term in terms))
        matrix = sum(
            t.coefficient * classes[np.broadcast_to(t.index, shape).reshape(-1)]
            for t in terms
        )
        matrix = sparse.csr_array(matrix)
        matrix.eliminate_zeros()
        yield name, (matrix, shape)
