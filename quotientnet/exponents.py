"""The exponents of a group seen from its generators: sums and largest entries by exponent."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.couplings import reduced
from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout

__all__ = [
    "compact_group", "compact_sums", "fixed_entries", "crowd", "sums_by_exponent",
    "largest_by_side", "entries_above", "rows_at",
]  # fmt: skip


def compact_group(group: ScalingGroup) -> ScalingGroup:
    """The same group on entries that stand for all that are scaled alike in one tensor."""
    return group.derived("compact", lambda: _compact_group(group))


def _compact_group(group: ScalingGroup) -> ScalingGroup:
    shapes = {
        name: np.broadcast_shapes(*(term.index.shape for term in group.incidence[name]))
        for name in group.layout.names
        if name in group.incidence
    }
    layout = ParameterLayout(shapes) if shapes else group.layout
    return ScalingGroup(layout, group.incidence, group.classes, group.names)


def compact_sums(group: ScalingGroup, values: Tensor) -> Tensor:
    """``values``, shape ``(size,)``, summed over what an entry of :func:`compact_group` stands
    for, in float64."""
    small = compact_group(group)
    pieces = [
        reduced(values[entry.slice].reshape(entry.shape), entry.shape, target.shape)
        for target in small.layout.entries
        for entry in (group.layout[target.name],)
    ]
    return torch.cat([piece.reshape(-1) for piece in pieces])


def fixed_entries(terms) -> np.ndarray | None:
    """Entries on which two opposite terms cancel, as those on the diagonal of a residual map."""
    if len(terms) != 2 or terms[0].coefficient + terms[1].coefficient:
        return None
    a, b = (term.index for term in terms)
    if not np.intersect1d(a, b).size:
        return None
    return np.equal(*np.broadcast_arrays(a, b))


def crowd(group: ScalingGroup) -> int:
    """An upper bound on the number of generators that move one entry, at least 1."""
    each = np.diff(group.classes.indptr)
    crowds = (
        sum(int(each[term.index].max(initial=0)) for term in terms)
        for terms in group.incidence.values()
    )
    return max([1, *crowds])


def sums_by_exponent(group: ScalingGroup, values: Tensor) -> dict[int, np.ndarray]:
    """Sums of ``values``, shape ``(size,)``, over the entries of each generator, by exponent.

    Where two terms move an entry by the same generator, it counts for both.
    """
    sums = {}
    for coefficient, each in group.class_sums(values).items():
        each = each.cpu().numpy()
        for exponent, (rows, columns) in group.links.items():
            total = np.bincount(columns, each[rows], group.dimension)
            key = coefficient * exponent
            sums[key] = sums.get(key, 0.0) + total
    return sums


def largest_by_side(group: ScalingGroup, values: Tensor):
    """The largest of ``values`` among entries that grow with a generator, and that shrink.

    Returns:
        Three arrays of shape ``(2, dimension)``, growing entries first: the largest value
        (``-inf`` if there is none), its entry and that entry's exponent.
    """
    found = [[], [], [], []]
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        view = values[entry.slice].reshape(entry.shape)
        numbers = torch.arange(entry.start, entry.start + entry.numel).reshape(
            entry.shape
        )
        for term in terms:
            top, where = _largest(view, numbers, term)
            top, where, classes = _largest_of_each(top, where, term.index.reshape(-1))
            links = group.classes[classes].tocoo()
            exponent = term.coefficient * links.data
            for part, piece in zip(
                found, (links.col, exponent, top[links.row], where[links.row])
            ):
                part.append(piece)
    generator, exponent, top, where = (np.concatenate([*p, []]) for p in found)
    shape = (2, group.dimension)
    best = np.full(shape, -np.inf), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for side, own in enumerate((exponent > 0, exponent < 0)):
        order = np.flatnonzero(own)[np.argsort(top[own], kind="stable")]
        target = generator[order].astype(np.int64)
        for array, source in zip(best, (top, where, exponent)):
            array[side, target] = source[order]
    return best


def entries_above(
    group: ScalingGroup, values: Tensor, bounds: np.ndarray
) -> np.ndarray:
    """Entries whose value reaches the bound of one of their generators, shape ``(size,)``.

    Args:
        group: The group.
        values: Shape ``(size,)``.
        bounds: Shape ``(2, dimension)``: for entries that grow with a generator, and that shrink.
    """
    found = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        view = values[entry.slice].reshape(entry.shape)
        mask = found[entry.slice].reshape(entry.shape)
        for term in terms:
            classes, place = np.unique(term.index, return_inverse=True)
            links = group.classes[classes].tocoo()
            side = (term.coefficient * links.data < 0).astype(int)
            lowest = np.full(len(classes), np.inf)
            np.minimum.at(lowest, links.row, bounds[side, links.col])
            lowest = lowest[place].reshape(term.index.shape)
            bound = torch.from_numpy(lowest).to(values.device)
            mask |= (view >= bound) & torch.isfinite(view)
    return found.cpu().numpy()


def _largest(view: Tensor, numbers: Tensor, term) -> tuple[np.ndarray, np.ndarray]:
    """The largest value at each position of a term's index, and its entry."""
    rest = [axis for axis in range(view.ndim) if axis not in term.axes]
    order = [*term.axes, *rest]
    flat = view.permute(order).reshape(term.index.size, -1)
    top, place = flat.max(1)
    ids = numbers.permute(order).reshape(term.index.size, -1)
    return top.cpu().numpy(), ids.gather(1, place.cpu()[:, None])[:, 0].numpy()


def _largest_of_each(top: np.ndarray, where: np.ndarray, classes: np.ndarray):
    """The largest of the positions that share a class."""
    order = np.lexsort((top, classes))
    last = np.flatnonzero(np.diff(classes[order], append=-1))
    return top[order][last], where[order][last], classes[order][last]


def rows_at(group: ScalingGroup, places: np.ndarray) -> sparse.csr_array:
    """The rows of ``A`` at the given entries, sparse, shape ``(len(places), dimension)``."""
    lines, classes, data = [], [], []
    for name, terms in group.incidence.items():
        entry = group.layout[name]
        here = np.flatnonzero((places >= entry.start) & (places < entry.slice.stop))
        shape = entry.shape or (1,)
        position = np.unravel_index(places[here] - entry.start, shape)
        for term in terms:
            lines.append(here)
            classes.append(np.broadcast_to(term.index, shape)[position])
            data.append(np.full(len(here), float(term.coefficient)))
    where = tuple(np.concatenate([*p, np.empty(0, int)]) for p in (lines, classes))
    values = np.concatenate([*data, np.empty(0)])
    shape = (len(places), group.classes.shape[0])
    return sparse.csr_array(
        sparse.coo_array((values, where), shape=shape) @ group.classes
    )
