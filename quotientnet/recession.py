"""Directions along which a sum of exponentials falls for ever: its infimum is not attained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from quotientnet import exact
from quotientnet.exponents import largest_by_side, rows_at, sums_by_exponent
from quotientnet.group import ScalingGroup

__all__ = ["Recession", "recession"]


_REMEMBERED, _SUPPORTS = 1 << 17, 4
"""Up to so many terms the answers for the last few supports are kept."""

_FAR = 1e7
"""Bound on a direction's entries: exponents are small integers, levels are rounded."""


@dataclass(frozen=True)
class Recession:
    """What runs away when ``Σ c_i e^{(A t)_i} − bᵀt`` is minimised.

    Attributes:
        moving: The generators that do, boolean, shape ``(dimension,)``.
        vanishing: The terms that tend to 0, boolean, shape ``(size,)``.
        unbounded: Whether the sum then tends to minus infinity.
        held: Whether the terms that do not vanish determine every generator that moves one.
    """

    moving: np.ndarray
    vanishing: Tensor
    unbounded: bool
    held: bool = False

    def __or__(self, other: Recession) -> Recession:
        return Recession(
            self.moving | other.moving,
            self.vanishing | other.vanishing,
            self.unbounded | other.unbounded,
        )


def _one_sided(group: ScalingGroup, terms: Tensor, linear: np.ndarray) -> Recession:
    """The generators all of whose terms grow, or all shrink, and what follows from their leaving.

    Args:
        group: ``A``.
        terms: ``c ≥ 0``, shape ``(size,)``.
        linear: ``b``, shape ``(dimension,)``.
    """
    moving = np.zeros(group.dimension, dtype=bool)
    vanishing = torch.zeros_like(terms, dtype=torch.bool)
    unbounded, reach = False, None
    while True:
        grows, shrinks = _sides(group, terms)
        leaves = (~shrinks & grows & (linear <= 0)) | (~grows & shrinks & (linear >= 0))
        leaves |= ~grows & ~shrinks & (linear != 0)
        leaves &= ~moving
        if not leaves.any():
            return Recession(moving, vanishing, unbounded)
        unbounded |= bool((linear[leaves] != 0).any())
        moving |= leaves
        reach = reach or group.magnitudes()
        indicator = torch.from_numpy(moving).to(terms)
        vanishing = (terms > 0) & (reach.exponents(indicator) > 0) | vanishing
        terms = terms.masked_fill(vanishing, 0.0)


def _sides(group: ScalingGroup, terms: Tensor) -> list[np.ndarray]:
    """Whether each generator has terms that grow with it, and terms that shrink."""
    sums = sums_by_exponent(group, terms)
    none = np.zeros(group.dimension, dtype=bool)
    return [
        sum((total > 0 for e, total in sums.items() if sign * e > 0), none) > 0
        for sign in (1, -1)
    ]


def recession(group: ScalingGroup, terms: Tensor, linear: np.ndarray) -> Recession:
    """All that runs away, such as sets of units of a residual stream that go together: exact.

    A minimum exists iff no ``d`` has ``(A d)_i ≤ 0`` on every term and ``bᵀd ≥ 0``, one of
    them strictly. Differences of two generators are the edges of a graph, and a term vanishes iff
    its edge is on no cycle; other exponents need a linear program. If the largest terms of each
    generator alone leave nobody a way out, the others are not looked at.

    Args:
        group: ``A``.
        terms: ``c ≥ 0``, shape ``(size,)``.
        linear: ``b``, shape ``(dimension,)``.
    """
    if len(terms) > _REMEMBERED:
        return _recession(group, terms, linear)
    # It depends on which terms there are, not on how large they are.
    support = (terms > 0).cpu().numpy().tobytes(), linear.tobytes(), terms.device
    seen = group.derived("recessions", dict)
    if support not in seen:
        if len(seen) >= _SUPPORTS:
            seen.pop(next(iter(seen)))
        seen[support] = _recession(group, terms, linear)
    return seen[support]


def _recession(group: ScalingGroup, terms: Tensor, linear: np.ndarray) -> Recession:
    found = _one_sided(group, terms, linear)
    terms = terms.masked_fill(found.vanishing, 0.0)
    linear = np.where(found.moving, 0.0, linear)
    if _held(group, terms, linear):
        return replace(found, held=True)
    places = np.flatnonzero((terms > 0).cpu().numpy())
    moving, lost, unbounded = _runaways(rows_at(group, places), linear)
    vanishing = torch.zeros(len(terms), dtype=torch.bool)
    vanishing[torch.from_numpy(places[lost])] = True
    return found | Recession(moving, vanishing.to(terms.device), unbounded)


def _held(group: ScalingGroup, terms: Tensor, linear: np.ndarray) -> bool:
    """Whether the largest terms alone admit no direction but 0, of the generators that count."""
    top, places, _ = largest_by_side(group, terms)
    rows = rows_at(group, np.unique(places[top > 0]))
    used = (top > 0).any(0)
    moving, lost, _ = _runaways(rows, linear)
    if moving.any() or lost.any():
        return False
    return not np.isin(exact.free_columns(rows), np.flatnonzero(used)).any()


def _runaways(rows: sparse.csr_array, linear: np.ndarray):
    """The generators that run away, the rows that vanish, and whether the sum is unbounded."""
    graph = _as_edges(rows, linear)
    return _by_program(rows, linear) if graph is None else _by_cycles(*graph)


def _as_edges(rows: sparse.csr_array, linear: np.ndarray):
    """Tail, head and row of each edge (the last node is the ground), or None.

    A row ``+p −q`` carries the flow ``m`` from ``q`` to ``p``, a row with one generator exchanges
    it with the ground. Generators with levels must be drains, with terms of the level's sign
    only, or all of them sources: what a drain takes can then always come from the ground.
    """
    count, lengths = rows.shape[1], np.diff(rows.indptr)
    if (lengths > 2).any():
        return None
    first = rows.indptr[:-1]
    pairs = first[lengths == 2]
    if (rows.data[pairs] + rows.data[pairs + 1]).any():
        return None
    line = np.repeat(np.arange(rows.shape[0]), lengths)
    grows, shrinks = (np.zeros(count, dtype=bool) for _ in range(2))
    grows[rows.indices[rows.data > 0]] = True
    shrinks[rows.indices[rows.data < 0]] = True
    mixed = ((linear > 0) & shrinks).any() or ((linear < 0) & grows).any()
    if mixed or ((linear > 0).any() and (linear < 0).any()):
        return None
    tail, head = (np.full(rows.shape[0], count) for _ in range(2))
    head[line[rows.data > 0]] = rows.indices[rows.data > 0]
    tail[line[rows.data < 0]] = rows.indices[rows.data < 0]
    drains, sources = np.flatnonzero(linear > 0), np.flatnonzero(linear < 0)
    level = np.full(len(drains), count), np.full(len(sources), count)
    return (
        np.concatenate([tail, drains, level[1]]),
        np.concatenate([head, level[0], sources]),
        lengths > 0,
        count,
    )


def _by_cycles(tail, head, real, count: int):
    """What lies on no cycle: the generators, the rows, and whether a level is among it."""
    shape = (count + 1, count + 1)
    graph = sparse.coo_array((np.ones(len(tail), dtype=np.int8), (tail, head)), shape)
    label = connected_components(graph, directed=True, connection="strong")[1]
    broken = label[tail] != label[head]
    loose = np.zeros(label.max() + 1, dtype=bool)
    loose[label[tail[broken]]] = loose[label[head[broken]]] = True
    loose[label[count]] = False
    lines = len(real)
    return loose[label[:count]], broken[:lines] & real, bool(broken[lines:].any())


def _by_program(rows: sparse.csr_array, linear: np.ndarray):
    """The same by linear programs: first what vanishes, then the fewest generators that do it."""
    unique, inverse = _distinct(rows)
    level = linear / (abs(linear).max(initial=0.0) or 1.0)
    conditions = sparse.vstack([unique, sparse.csr_array(-level[None])]).tocsr()
    lines, count = conditions.shape
    slack = sparse.hstack([conditions, sparse.eye_array(lines)])
    objective = np.r_[np.zeros(count), -np.ones(lines)]
    bounds = [(-_FAR, _FAR)] * count + [(0, 1)] * lines
    found = _solved(linprog(objective, slack, np.zeros(lines), bounds=bounds))
    lost = found[count:] > 0.5
    # A smallest d with (A d)_i ≤ −1 where terms vanish, 0 elsewhere.
    apart = sparse.hstack([conditions, -conditions])
    sparse_d = linprog(
        np.ones(2 * count), apart[lost], -np.ones(lost.sum()), apart[~lost],
        np.zeros((~lost).sum()),
    ) if lost.any() else None  # fmt: skip
    d = np.zeros(count)
    if sparse_d is not None:
        x = _solved(sparse_d)
        d = x[:count] - x[count:]
    return np.abs(d) > 1e-6, lost[:-1][inverse], bool(lost[-1])


def _solved(result) -> np.ndarray:
    if result.status != 0:
        raise RuntimeError(
            f"recession: the linear program was not solved: {result.message}"
        )
    return result.x


def _distinct(rows: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """The distinct rows, and which of them each row is."""
    rows.sort_indices()
    keys: dict[tuple, int] = {}
    inverse, first = np.empty(rows.shape[0], dtype=np.int64), []
    for i, (a, b) in enumerate(zip(rows.indptr[:-1], rows.indptr[1:])):
        key = (rows.indices[a:b].tobytes(), rows.data[a:b].tobytes())
        if key not in keys:
            keys[key] = len(first)
            first.append(i)
        inverse[i] = keys[key]
    return rows[first], inverse
