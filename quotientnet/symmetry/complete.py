"""Whether a group is all there is: the scalings that leave a model's derivatives unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry.candidates import candidate_scalings
from quotientnet.options import require_count
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import Replica
from quotientnet.symmetry.rows import RandomRows

__all__ = ["Completeness", "verify_complete"]

_NEGLIGIBLE = 1e-9
"""Singular values and column norms below this, relative to the largest, are zeros."""

_AT_A_POINT, _POINTS = 4, 128
"""Combinations of the outputs at a random point, at most: a backward is cheaper than a forward. But
a branch that few inputs take is not seen at a few points; there are so many at least."""

_LEAST = 32
"""Rows to add at a time, at least: before the rank is looked at, and to leave it as it is."""


@dataclass(frozen=True)
class Completeness:
    """The outcome of :func:`~quotientnet.verify_complete`.

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
        rows: The number of derivatives.
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
    ``w``. Random combinations of the outputs' derivatives, up to four at each random ``w`` on its
    own random inputs, are stacked until their rank stops growing; the null space is compared with
    the group. This uses nothing of how the group was derived. Running statistics that the forward
    updates count as outputs: they must scale as they are said to. Entries without any effect do
    not count.

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
        One backward for each candidate at least, and a factorisation of a square matrix of their
        number every so often: for small copies of an architecture. Jumps (of a threshold, a
        comparison) are invisible to derivatives; see ``jump``.

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
    require_count(seed, "verify_complete", "seed", least=0, most=2**64 - 1)
    if max_rows is not None:
        require_count(max_rows, "verify_complete", "max_rows")
    replica, layout = Replica(model, group.layout, "verify_complete"), group.layout
    candidates = candidate_scalings(replica.model, layout)
    inputs = call_arguments(example_inputs, "verify_complete")
    seen = _Stack(RandomRows(replica, inputs, seed), candidates, group)
    seen.grow(max_rows)
    live = seen.effect > _NEGLIGIBLE * seen.effect.max()
    if not live.any():
        raise ValueError(
            "verify_complete: no parameter has an effect on the derivatives of the outputs; there "
            "is nothing to compare"
        )
    found, derived, missing = _spaces(seen, live)
    weight = np.zeros(layout.size)
    weight[live] = (missing**2).sum(1)
    return Completeness(
        derived.shape[1], found.shape[1], missing.shape[1], seen.extra,
        tuple(e.name for e in layout.entries if weight[e.slice].sum() > 1e-6),
        tuple(e.name for e in layout.entries if not live[e.slice].all()),
        candidates.kind, seen.gap, seen.rows, seen.source.jump(missing, live),
    )  # fmt: skip


class _Stack:
    """Derivatives of outputs at random points along candidates, as the factor R of a stack of rows.

    Attributes:
        along: The factor along candidates, each row of norm 1 before.
        slopes: That along the generators of the group.
        effect: The largest derivative by each entry of the layout.
        rows: How many there are.
        values: The singular values of ``along``.
        rank: How many of them count.
    """

    def __init__(self, source: RandomRows, candidates, group: ScalingGroup):
        self.source, self.candidates, self.group = source, candidates, group
        self.count = candidates.group.dimension
        self._together = min(max(self.count // _POINTS, 1), _AT_A_POINT)
        self.along, self.slopes = (
            np.zeros((0, n)) for n in (self.count, group.dimension)
        )
        self.effect, self.rows, self.rank = np.zeros(group.layout.size), 0, -1

    def grow(self, max_rows: int | None) -> None:
        """Add rows until their rank stops growing."""
        limit = 4 * self.count + 256 if max_rows is None else max_rows
        step, enough = max(self.count // 4, _LEAST), self.count + _LEAST
        while self.rows < min(enough, limit):
            self._add(min(step, enough - self.rows))
        self._rank_grows()
        self._add(step)
        while self._rank_grows():
            if self.rows > limit:
                raise RuntimeError(
                    f"verify_complete: the rank still grew after {self.rows} derivatives; pass a "
                    "larger max_rows"
                )
            self._add(step)

    def _add(self, number: int) -> None:
        drawn, count = [], 0
        while count < number:
            drawn.append(self.source.draw(self._together))
            count += len(drawn[-1])
        block = torch.cat(drawn).cpu()
        self.effect = np.maximum(self.effect, block.abs().amax(0).numpy())
        self.rows += len(block)
        along, slopes = self.candidates.sums(block), self.group.adjoint(block)
        self.along = np.linalg.qr(
            np.vstack([self.along, _directed(along.numpy())]), "r"
        )
        self.slopes = np.linalg.qr(np.vstack([self.slopes, slopes.numpy()]), "r")

    def _rank_grows(self) -> bool:
        """Whether it has since it was last looked at."""
        previous, self.values = self.rank, np.linalg.svd(self.along, compute_uv=False)
        self.rank = int((self.values > _NEGLIGIBLE * self.values[0]).sum())
        return self.rank != previous

    @property
    def extra(self) -> int:
        """How many directions of the group derivatives do not allow."""
        slopes = np.linalg.svd(self.slopes, compute_uv=False)
        return int((slopes > _NEGLIGIBLE * self.rows**0.5).sum())

    @property
    def gap(self) -> float:
        """The smallest singular value that counts over the largest that does not."""
        if not self.rank:
            return float("inf")
        rest = self.values[self.rank :].max(initial=0.0)
        return float(self.values[self.rank - 1] / max(rest, 1e-300))


def _spaces(seen: _Stack, live) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bases, on entries with an effect, of what was found, the group, and what it misses."""
    vectors, group = np.linalg.svd(seen.along, full_matrices=True)[2], seen.group
    found = _basis(seen.candidates.group.to_dense()[live] @ vectors[seen.rank :].T)
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
