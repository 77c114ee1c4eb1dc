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
from quotientnet.symmetry.derivative import slope
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.exactly import Degenerate
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import (
    Replica,
    drawn_again,
    relative_change,
)

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
        gap: The smallest nonzero singular value over the largest that counts as zero: how clear
            the answer is.
        rows: The number of random points.
        jump: If something is missing, how far a random scaling of that kind changes the outputs
            when it is applied in full: if at all, it crosses a jump that derivatives do not see.
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
    jump: float = 0.0

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
        text = f"not the whole group: {self.derived} dimensions, derivatives allow {self.found}"
        if self.extra:
            text += f"; {self.extra} that are no symmetries"
        if self.missing:
            text += f"; {self.missing} missing, moving {', '.join(self.where)}"
        if self.jump > 1e-6:
            text += (
                f"; but applied in full, a missing one changes outputs by {self.jump:.1e}: it "
                "crosses a jump (a threshold, a comparison), where derivatives say nothing"
            )
        return text


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
    effect do not count.

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
        RuntimeError: The rank still grew after ``max_rows``, or every random point made a
            normalisation see a constant channel.
        ValueError: The group's layout is not that of the model; the model does not run on the
            inputs; no parameter has an effect; a derivative is not finite.

    Note:
        One forward and backward for each candidate at least, and a factorisation of a square
        matrix of their number every so often: for small copies of an architecture. Jumps (of a
        threshold, a comparison) are invisible to derivatives; see ``jump``.

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
    replica, layout = Replica(model, group.layout, "verify_complete"), group.layout
    names, candidates = _candidates(replica, layout)
    source = _Rows(replica, call_arguments(example_inputs, "verify_complete"), seed)
    count = candidates.shape[1]
    limit = 4 * count + 256 if max_rows is None else max_rows
    stacked, by_generator = np.zeros((0, count)), np.zeros((0, group.dimension))
    effect, rows, rank = np.zeros(layout.size), 0, -1
    while True:
        block = np.stack([source.draw() for _ in range(max(count // 4, 32))])
        effect = np.maximum(effect, np.abs(block).max(0))
        rows += len(block)
        stacked = np.linalg.qr(np.vstack([stacked, _directed(block @ candidates)]), "r")
        slopes = group.adjoint(torch.from_numpy(block)).numpy()
        by_generator = np.linalg.qr(np.vstack([by_generator, slopes]), "r")
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
    if not live.any():
        raise ValueError(
            "verify_complete: no parameter has an effect on the derivatives of the outputs; there "
            "is nothing to compare"
        )
    extra = (
        np.linalg.svd(by_generator, compute_uv=False) > _NEGLIGIBLE * rows**0.5
    ).sum()
    found, derived, missing = _spaces(group, candidates.toarray(), stacked, live, rank)
    weight = np.zeros(layout.size)
    weight[live] = (missing**2).sum(1)
    gap = (
        values[rank - 1] / max(values[rank:].max(initial=0.0), 1e-300)
        if rank
        else np.inf
    )
    return Completeness(
        derived.shape[1], found.shape[1], missing.shape[1], int(extra),
        tuple(e.name for e in layout.entries if weight[e.slice].sum() > 1e-6),
        tuple(e.name for e in layout.entries if not live[e.slice].all()),
        names, float(gap), rows, source.jump(missing, live),
    )  # fmt: skip


def _spaces(
    group, candidates, stacked, live, rank
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bases, on entries with an effect, of what was found, the group, and what it misses."""
    vectors = np.linalg.svd(stacked, full_matrices=True)[2]
    found = _basis(candidates[live] @ vectors[rank:].T)
    exponents = group.exponents(torch.eye(group.dimension, dtype=torch.float64))
    derived = _basis(exponents.T.numpy()[live])
    return found, derived, _basis(found - derived @ (derived.T @ found), relative=1e-6)


def _basis(columns: np.ndarray, relative: float = _NEGLIGIBLE) -> np.ndarray:
    """An orthonormal basis of the range; ``relative`` to 1 or the largest singular value."""
    if not columns.size:
        return columns[:, :0]
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > relative * max(s[0], 1.0)]


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
        args, kwargs = self._inputs()
        w = self.replica.random_point(self.generator)
        row = slope(self.replica, w, args, kwargs, self._weights).cpu().numpy()
        if not np.isfinite(row).all():
            raise ValueError(
                "verify_complete: a derivative at a random point is not finite"
            )
        return row / max(np.linalg.norm(row), 1e-300)

    def _inputs(self) -> tuple[tuple, dict]:
        return tree_map_only(
            Tensor, lambda x: drawn_again(x, self.generator), self.inputs
        )

    def _weights(self, y: Tensor) -> Tensor:
        """Random, and such that every feature counts by its own size."""
        noise = torch.randn(y.shape, generator=self.generator, dtype=torch.float64).to(
            y.device
        )
        size = y.detach().abs()
        features = size.amax(0, keepdim=True) if y.ndim > 1 else size.amax()
        return noise / features.clamp(min=1e-30)

    def jump(self, directions: np.ndarray, live: np.ndarray) -> float:
        """How far a random scaling along directions changes the outputs, applied in full."""
        if not directions.shape[1]:
            return 0.0
        changes = [0.0]
        for _ in range(8):
            args, kwargs = self._inputs()
            w = self.replica.random_point(self.generator)
            mix = torch.randn(
                directions.shape[1], generator=self.generator, dtype=torch.float64
            )
            exponents = torch.zeros_like(w)
            along = torch.from_numpy(directions) @ mix
            exponents[torch.from_numpy(live).to(w.device)] = (
                along / along.abs().amax()
            ).to(w)
            with suppress(Degenerate):
                here, _ = self.replica.run(w, args, kwargs)
                there, _ = self.replica.run(exponents.exp() * w, args, kwargs)
                changes += [relative_change(a, b) for a, b in zip(here, there)]
        return max(changes)
