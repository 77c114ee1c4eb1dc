"""Whether a group is all there is: the scalings that leave a model's derivatives unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.derivative import Degenerate, slope
from quotientnet.symmetry.replica import Replica, drawn_again

__all__ = ["Completeness", "verify_complete"]

_ENTRIES = 1500
"""Up to this many coordinates every entry is a candidate of its own."""

_NEGLIGIBLE = 1e-9
"""Singular values and column norms below this, relative to the largest, are zeros."""


@dataclass(frozen=True)
class Completeness:
    """The outcome of :func:`verify_complete`.

    Attributes:
        derived: The dimension of the group, on parameters that have an effect.
        found: The dimension of all scalings that the derivatives allow.
        missing: The dimension of those outside the group.
        extra: The dimension of the group's that the derivatives forbid: it is not sound.
        where: The parameters that a missing scaling moves.
        idle: The parameters, at least some entries of which have no effect at all.
        candidates: ``"entries"`` if every entry could have had its own scale, else ``"rows and
            columns"``.
        gap: The smallest nonzero singular value over the largest that counts as zero: how clear the
            answer is.
        rows: The number of random points.
    """

    derived: int
    found: int
    missing: int
    extra: int
    where: tuple[str, ...]
    idle: tuple[str, ...]
    candidates: str
    gap: float
    rows: int

    @property
    def holds(self) -> bool:
        """Whether the group and the scalings found are the same."""
        return self.missing == self.extra == 0

    def require(self) -> Completeness:
        """Return the outcome if the group is complete and infinitesimally sound.

        Raises:
            AssertionError: With the dimensions and the parameters concerned.
        """
        if not self.holds:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        if self.holds:
            return f"complete: {self.derived} of {self.found} dimensions, gap {self.gap:.0e}"
        return (
            f"not the whole group: {self.derived} dimensions, the derivatives allow {self.found}; "
            f"{self.missing} missing, moving {', '.join(self.where) or 'nothing'}; {self.extra} "
            "that are no symmetries"
        )


def verify_complete(
    model: nn.Module,
    group: ScalingGroup | Symmetry,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    seed: int = 0,
    max_rows: int | None = None,
) -> Completeness:
    r"""Compare a group with all scalings that leave the outputs unchanged to first order.

    A scaling with constant exponents ``a`` is a symmetry iff ``∂f(w) · (a ⊙ w) = 0`` at every
    ``w``. Random combinations of the outputs' derivatives, each at its own random ``w`` and on
    its own random inputs, are stacked until their rank stops growing; the null space is compared
    with the group. This uses nothing of how the group was derived. Running statistics that the
    forward updates count as outputs: they must scale as they are said to. Entries without any
    effect
    do not count.

    Candidates are single entries if there are no more than 1500, else rows, columns (by groups of a
    convolution) and entries of vectors.

    Args:
        model: Any module; it is copied to float64 and taken in its present mode.
        group: A group on its layout, or what ``discover`` returned.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments;
            floating-point ones are replaced by random numbers of the same shape, others drawn
            again from their own values.
        seed: Of points and inputs.
        max_rows: When to stop; by default four times the number of candidates plus 256.

    Returns:
        Both dimensions, and what is missing.

    Raises:
        RuntimeError: The rank still grew after ``max_rows``.

    Note:
        One forward and backward for each candidate at least, and a factorisation of a square
        matrix of their number every so often.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x = torch.randn(5, 4)
        >>> qn.verify_complete(model, qn.discover(model, x), x).found
        3
    """
    group = as_group(group, "verify_complete")
    replica = Replica(model, group.layout)
    layout = group.layout
    names, candidates = _candidates(replica, layout)
    source = _Rows(replica, call_arguments(example_inputs, "verify_complete"), seed)
    count = candidates.shape[1]
    limit = 4 * count + 256 if max_rows is None else max_rows
    stacked, effect, rows, rank = np.zeros((0, count)), np.zeros(layout.size), 0, -1
    while True:
        block = np.stack([source.draw() for _ in range(max(count // 4, 32))])
        effect = np.maximum(effect, np.abs(block).max(0))
        rows += len(block)
        stacked = np.linalg.qr(np.vstack([stacked, _directed(block @ candidates)]), "r")
        values = np.linalg.svd(stacked, compute_uv=False)
        previous, rank = rank, int((values > _NEGLIGIBLE * values[0]).sum())
        if rank == previous and rows >= count + 64:
            break
        if rows > limit:
            raise RuntimeError(
                f"verify_complete: the rank still grew after {rows} random points; pass a larger "
                "max_rows"
            )
    live = effect > _NEGLIGIBLE * effect.max()
    return _compare(group, candidates, stacked, live, rank, names, rows)


def _compare(group, candidates, stacked, live, rank, names, rows) -> Completeness:
    layout = group.layout
    _, values, vectors = np.linalg.svd(stacked, full_matrices=True)
    expand = candidates.toarray()
    found = _basis(expand[live] @ vectors[rank:].T)
    exponents = group.exponents(
        torch.eye(group.dimension, dtype=torch.float64)
    ).T.numpy()
    derived = _basis(exponents[live])
    reach = _basis(expand[live])
    derived_within = _intersection(derived, reach)
    missing = _basis(found - derived @ (derived.T @ found), relative=1e-6)
    extra = _basis(derived_within - found @ (found.T @ derived_within), relative=1e-6)
    weight = np.zeros(layout.size)
    weight[live] = (missing**2).sum(1)
    gap = (
        values[rank - 1] / max(values[rank:].max(initial=0.0), 1e-300)
        if rank
        else np.inf
    )
    where = [e.name for e in layout.entries if weight[e.slice].sum() > 1e-6]
    idle = [e.name for e in layout.entries if not live[e.slice].all() and e.numel]
    return Completeness(
        derived.shape[1], found.shape[1], missing.shape[1], extra.shape[1], tuple(where),
        tuple(idle), names, float(gap), rows,
    )  # fmt: skip


def _basis(columns: np.ndarray, relative: float = _NEGLIGIBLE) -> np.ndarray:
    """An orthonormal basis of the range; ``relative`` to 1 or the largest singular value."""
    if not columns.size:
        return columns[:, :0]
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > relative * max(s[0], 1.0)]


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what two orthonormal bases both span."""
    u, s, _ = np.linalg.svd(a.T @ b)
    return a @ u[:, : len(s)][:, s > 1 - 1e-9]


def _directed(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def _candidates(replica: Replica, layout) -> tuple[str, sparse.csr_array]:
    """The candidate scalings: a sparse matrix of exponents, coordinates × candidates."""
    fine = layout.size <= _ENTRIES
    groups = {}
    for prefix, child in replica.model.named_modules():
        if isinstance(getattr(child, "groups", None), int):
            groups[f"{prefix}.weight" if prefix else "weight"] = child.groups
    starts: dict[str, int] = {}
    coordinates, columns, exponents, count = [], [], [], 0

    def add(entry, index: np.ndarray, exponent: int = 1) -> None:
        coordinates.append(np.arange(entry.start, entry.start + entry.numel))
        columns.append(index)
        exponents.append(np.full(entry.numel, exponent))

    for entry in layout.entries:
        index, shape = np.arange(entry.numel), entry.shape
        mean = f"{entry.name.removesuffix('running_var')}running_mean"
        if entry.passive and mean in starts:
            # A scale of what is normalised scales its mean once and its variance twice.
            add(entry, starts[mean] + index, 2)
            continue
        starts[entry.name] = count
        if fine or len(shape) < 2:
            add(entry, count + index)
            count += entry.numel
            continue
        row, number = index // prod(shape[1:]), groups.get(entry.name, 1)
        add(entry, count + row)
        count += shape[0]
        column = index // prod(shape[2:]) % shape[1]
        add(entry, count + row // (shape[0] // number) * shape[1] + column)
        count += number * shape[1]
    where = (np.concatenate(coordinates), np.concatenate(columns))
    matrix = sparse.coo_array(
        (np.concatenate(exponents), where), shape=(layout.size, count)
    )
    return "entries" if fine else "rows and columns", sparse.csr_array(matrix).astype(
        float
    )


class _Rows:
    """Random combinations of derivatives, each at a random point and on random inputs."""

    def __init__(self, replica: Replica, inputs, seed: int):
        self.replica, self.inputs = replica, inputs
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> np.ndarray:
        """One row, shape ``(n,)``."""
        for _ in range(100):
            with suppress(Degenerate):
                return self._draw()
        raise RuntimeError(
            "verify_complete: at 100 random points a normalisation saw a constant channel; its "
            "derivatives say nothing there. Are the example inputs large enough?"
        )

    def _draw(self) -> np.ndarray:
        args, kwargs = tree_map_only(
            Tensor, lambda x: drawn_again(x, self.generator), self.inputs
        )
        row = (
            slope(self.replica, self._point(), args, kwargs, self._weights)
            .cpu()
            .numpy()
        )
        if not np.isfinite(row).all():
            raise RuntimeError(
                "verify_complete: a derivative at a random point is not finite"
            )
        return row / max(np.linalg.norm(row), 1e-300)

    def _weights(self, y: Tensor) -> Tensor:
        return self._normal(y.shape, y) / (y.detach().norm() + 1e-30)

    def _normal(self, shape, like: Tensor) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(
            like.device
        )

    def _point(self) -> Tensor:
        """Parameters of either sign and every size, positive running statistics."""
        layout, pieces = self.replica.layout, []
        w = self.replica.w
        for entry in layout.entries:
            noise = self._normal((entry.numel,), w)
            if entry.passive:
                pieces.append((noise / 2).exp())
            else:
                fan = prod(entry.shape[1:]) if len(entry.shape) > 1 else 1
                pieces.append(noise / fan**0.5)
        return torch.cat(pieces)
