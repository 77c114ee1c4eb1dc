"""The part of a symmetry that the ``eps`` of normalisations leaves exact."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from quotientnet import exact
from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry import Symmetry

__all__ = ["exact_part"]

_NEGLIGIBLE = 1e-9
"""Up to this relative change when its input is halved, a normalisation counts as exact."""


def exact_part(group: ScalingGroup | Symmetry, caller: str) -> ScalingGroup:
    """The elements that change nothing that an approximate normalisation reads.

    Those are the elements that leave all running statistics as they are. Only a ``Symmetry`` knows
    of approximations; a group, or a symmetry without any, is returned whole.

    Raises:
        ValueError: No element but the neutral one is exact.
    """
    whole = as_group(group, caller)
    sizes = [a.size for a in getattr(group, "approximate", ())]
    if all(size is not None and size <= _NEGLIGIBLE for size in sizes):
        return whole
    rows = _passive_rows(whole)
    basis = exact.null_space(exact.echelon(exact.rows_of(rows)), whole.dimension)
    if whole.dimension and not basis.shape[1]:
        raise ValueError(
            f"{caller}: every element of the group changes what a normalisation with an eps reads; "
            "lower its eps, or pass symmetry.group to use them all the same"
        )
    return ScalingGroup(whole.layout, whole.incidence, whole.classes @ basis)


def _passive_rows(group: ScalingGroup) -> sparse.csr_array:
    """The exponents of the running statistics, a sparse integer matrix."""
    count, blocks = group.classes.shape[0], []
    for entry in group.layout.entries:
        if not entry.passive:
            continue
        total = sparse.csr_array((entry.numel, count), dtype=np.int64)
        for term in group.incidence.get(entry.name, ()):
            index = np.broadcast_to(term.index, entry.shape).reshape(-1)
            values = np.full(entry.numel, term.coefficient)
            where = (np.arange(entry.numel), index)
            total = total + sparse.csr_array((values, where), shape=total.shape)
        blocks.append(total)
    empty = sparse.csr_array((0, count), dtype=np.int64)
    return sparse.csr_array(sparse.vstack([empty, *blocks]) @ group.classes)
