"""Several eigenvalues of a symmetric operator by few products."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import torch
from torch import Tensor

from quotientnet.curvature.krylov import Krylov, Ritz
from quotientnet.operator import Operator
from quotientnet.progress import progress

__all__ = ["Eigenpairs", "lanczos"]

_KEYS = {
    "algebraic": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": np.abs,
}  # the larger, the more wanted
_DOUBT = 1e-3  # chance of a missed eigenvalue at which the search for one ends


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues with their vectors and residuals, the most wanted first.

    Certified: for each pair *some* eigenvalue lies within its residual. Only probable, by a
    random start and a second search from random vectors: that these are the outermost ones, each
    as often as it occurs.

    Attributes:
        values: Shape ``(count,)``, float64 on the host.
        vectors: Orthonormal columns, shape ``(size, count)``, of the operator's dtype and device.
        residuals: ``‖H v − λ v‖`` for each, from the recurrence and at least rounding; shape
            ``(count,)``, float64 on the host. With ``deflate``, of the compression of ``H``.
        products: Products with the operator.
        converged: Whether every residual reached the tolerance and the second search ended.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def lanczos(
    operator: Operator,
    count: int = 1,
    *,
    which: str = "algebraic",
    tolerance: float = 1e-4,
    max_products: int = 10_000,
    basis: int | None = None,
    block: int = 1,
    start: Tensor | None = None,
    deflate: Tensor | None = None,
    confirm: bool | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    r"""The outermost eigenvalues, by block Lanczos with thick restart [WuSimon2000]_.

    .. math:: H V = V T + R, \qquad T y = θ y, \qquad \|H V y − θ V y\| = \|R y\|

    The basis is orthogonalised in full, twice. Directions that ``operator.project`` removes, and
    ``deflate``, are left out: the eigenvalues are those on the complement, so that the largest one
    is negative where all of them are.

    One starting vector sees one copy of every eigenvalue. When the wanted ones have converged, the
    search begins again from random vectors orthogonal to all so far, and ends when an eigenvalue
    at least as wanted would have shown: the best value found there has converged; or it lies so
    low that its chance is below 1e-3, by the bound of [KuczynskiWozniakowski1992]_ for Lanczos
    without restarts; or the second search has cost as much as the first, and 20 products. In a
    space that fits into the basis and of which half is there, the basis is completed instead.

    Args:
        operator: The symmetric operator.
        count: How many eigenvalues, at most as many as there are.
        which: ``"algebraic"`` for the largest, ``"smallest"`` for the lowest, ``"magnitude"`` for
            the largest in absolute value.
        tolerance: Stop at ``residual ≤ tolerance · |value|`` for each, or at rounding. The error
            of a value is of the order of ``residual² / gap``.
        max_products: Products at most, at least ``count``.
        basis: Vectors kept at most, at least ``2 count + 3 block``; memory is ``basis · size``.
            Fewer cost more products where eigenvalues lie close. By default
            ``3 count + 5 block + 20``, or up to 128 where 2²⁴ numbers hold them.
        block: Vectors a product. One pass over the data serves a block; the products needed grow
            unless eigenvalues are multiple or close.
        start: A vector, shape ``(size,)``, or at most ``count + block`` of them as columns, such
            as the eigenvectors at a nearby point; random if omitted.
        deflate: Directions to leave out as columns, shape ``(size, k)``, orthonormal or not, such
            as null vectors or eigenvectors already known.
        confirm: Whether to search a second time, before which multiple eigenvalues are seen once
            and a start without a part along the wanted vector misleads. By default where
            ``count > 1`` or a start is given.
        generator: Source of random vectors; a fresh one with seed 0 if omitted.

    Returns:
        The eigenpairs. Without convergence in ``max_products``, the best so far.

    Raises:
        ValueError: A count below 1 or above the number of directions, another ``which``, a
            tolerance that is not positive, too few products or basis vectors, a start or
            ``deflate`` of another shape, dtype or device or without any direction, a product that
            is NaN or infinite, or an operator found not to be symmetric.

    Note:
        Besides the products, each costs six passes over the basis.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, -4.0, 3.0, 1.0])))
        >>> [round(value, 3) for value in lanczos(operator, 2).values.tolist()]
        [3.0, 3.0]
        >>> round(lanczos(operator, which="smallest").values.item(), 3)
        -4.0
    """
    _check(operator, count, which, tolerance, max_products, block)
    least = 2 * count + 3 * block
    capacity = _default(operator.size, count, block) if basis is None else basis
    if capacity < min(least, operator.size):
        raise ValueError(
            f"lanczos: basis={basis} is too small, count={count} and block={block} need {least}"
        )
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    start = _columns(operator, start, "start", count + block)
    deflate = _columns(operator, deflate, "deflate", operator.size)
    space = Krylov(operator, capacity, deflate, generator, "lanczos")
    found = space.inject(block) if start is None else space.insert(start.T)
    if not found:
        raise ValueError(
            "lanczos: nothing is left of the start after projection and deflation"
            if start is not None
            else "lanczos: no direction is left after projection and deflation"
        )
    confirm = count > 1 or start is not None if confirm is None else confirm
    search = _Search(
        space, count, _KEYS[which], tolerance, block, max_products, confirm
    )
    for _ in progress(itertools.count(), "Lanczos products"):
        if search.step():
            return search.result()
    raise AssertionError("unreachable: the search ends")


class _Search:
    """The wanted pairs converge; then random vectors look for others; then again."""

    def __init__(self, space, count, key, tolerance, block, max_products, confirm):
        self.space, self.count, self.key = space, count, key
        self.tolerance, self.block = tolerance, block
        self.max_products, self.confirm = max_products, confirm
        self.settled = None  # the values that the second search has to confirm
        self.looking = False  # whether the second search is on
        self.steps, self.begun = 0, 0  # its steps, and the products before it
        self.hidden = False  # whether pairs may hide others from the second search
        self.exhausted = False  # whether the basis spans everything
        self.ended = False  # whether there is nothing more to find

    def step(self) -> bool:
        """Spend some products; true when the search is over."""
        ritz, self.hidden = self.space.ritz(self.key), False
        if self._converged(ritz):
            self.ended = self._confirmed(ritz)
        else:
            self.looking = False
        if self.ended or self.space.products >= self.max_products:
            return True
        self._make_room(self.block)
        chosen = self._choose()
        self.space.expand(chosen[: self.max_products - self.space.products])
        self.steps += 1
        return False

    def result(self) -> Eigenpairs:
        """The wanted pairs as they are."""
        ritz = self.space.ritz(self.key).first(self.count)
        return Eigenpairs(
            torch.as_tensor(ritz.values),
            self.space.combine(ritz).T.contiguous(),
            torch.as_tensor(ritz.residuals),
            self.space.products,
            self.ended,
        )

    def _converged(self, ritz: Ritz) -> bool:
        """Whether the wanted pairs are there and accurate, and every start has been multiplied."""
        if len(ritz.values) < self.count or not self.looking and self.space.new.any():
            return False
        return self._small(ritz.first(self.count))

    def _small(self, ritz: Ritz) -> bool:
        return bool((ritz.residuals <= self._allowed(ritz.values)).all())

    def _allowed(self, values: np.ndarray) -> np.ndarray:
        return np.maximum(
            self.tolerance * np.abs(values), self.space.rounding + self.space.forgotten
        )

    def _confirmed(self, ritz: Ritz) -> bool:
        """Whether converged values are final; begins a second search where they are new."""
        if not self.confirm:
            return True
        values = ritz.values[: self.count]
        if self.settled is not None:
            change = abs(self.key(values) - self.key(self.settled))
            if (change <= self._allowed(values)).all():
                return not self.looking or self._quiet(ritz)
        self.settled, self.looking = values, True
        room = (self.space.capacity - self.count) // 2
        self.space.forget(0.01 * self._allowed(values).min())
        self._make_room(max(2 * self.block, room), merge=True)
        self.steps, self.begun = 0, self.space.products
        if not self.space.inject(self.block):
            self.exhausted, self.space.fresh[self.space.pending] = True, True
        return self.exhausted and not len(self.space.pending)

    def _quiet(self, ritz: Ritz) -> bool:
        """Whether the second search would have shown an eigenvalue as wanted as the last one."""
        space = self.space
        size = space.vectors.shape[1]
        if self.exhausted or space.capacity == size and 2 * space.count > size:
            # Rounding may have turned a pending vector into the copy that is looked for.
            return not len(space.pending) and not space.inject(self.block)
        self.hidden = self._hiding(ritz).any()
        if self.hidden:
            return not len(space.pending)
        fresh = self.space.ritz(self.key, self.space.fresh)
        if not len(fresh.values):
            return False
        spent = self.space.products - self.begun
        if self._small(fresh.first(1)) or spent >= max(self.begun, 20):
            return True
        last, best = self.key(ritz.values[self.count - 1]), self.key(fresh.values[0])
        spread = last + self.key(-fresh.values).max()
        gap = max(last - best, 0) / spread if spread > 0 else 0
        return 1.648 * sqrt(size) * exp(-sqrt(gap) * (2 * self.steps - 1)) < _DOUBT

    def _hiding(self, ritz: Ritz) -> np.ndarray:
        """In a space that the basis half fills, random vectors have little room to see what it
        hides: there, the other pairs within their residuals of the wanted ones."""
        if 2 * self.space.count <= self.space.vectors.shape[1]:
            return np.zeros(len(ritz.values), dtype=bool)
        last = self.key(ritz.values[self.count - 1])
        reach = self.key(ritz.values) + ritz.residuals
        hiding = (ritz.residuals > self._allowed(ritz.values)) & (reach > last)
        hiding[: self.count] = False
        return hiding

    def _make_room(self, room: int, merge: bool = False) -> None:
        """Restart where fewer than ``room`` vectors fit in; ``merge`` bounds the pending ones."""
        space = self.space
        if space.count + room <= space.capacity or not len(space.done):
            return
        if space.capacity == space.vectors.shape[1]:
            return  # the whole space fits
        ritz = space.ritz(self.key)
        waiting = len(space.pending)
        if merge and waiting > self.count + self.block:
            space.restart(ritz.first(self.count))
            space.merge_pending()
            return
        spare = max(space.capacity - waiting - room - self.count, 0)
        ranks = np.arange(len(ritz.values))
        if self.looking and not merge:  # what the second search has found goes first
            ranks = ranks[
                np.argsort(~space.is_fresh(ritz) & (ranks >= self.count), kind="stable")
            ]
        space.restart(ritz.take(ranks[: self.count + (spare + 1) // 2]))

    def _choose(self) -> np.ndarray:
        """The pending vectors to multiply: those of the second search, or those into which the
        wanted pairs leak most."""
        space = self.space
        if self.hidden:
            ritz = space.ritz(self.key)
            return self._into(ritz, self._hiding(ritz))
        if self.looking:
            if not space.fresh[space.pending].any():
                space.fresh[space.pending] = True
            return space.pending[space.fresh[space.pending]][-self.block :]
        if space.new.any():
            return np.flatnonzero(space.new)[: self.block]
        if not len(space.pending):
            return self._new_direction()
        ritz = space.ritz(self.key).first(self.count)
        open_ = ritz.residuals > self._allowed(ritz.values)
        return self._into(ritz, open_ if open_.any() else ~open_)

    def _into(self, ritz: Ritz, pairs: np.ndarray) -> np.ndarray:
        """The pending vectors into which these pairs leak most."""
        ranks = np.argsort(-(ritz.leaks[:, pairs] ** 2).sum(axis=1), kind="stable")
        return self.space.pending[ranks[: self.block]]

    def _new_direction(self) -> np.ndarray:
        """Random vectors where the basis is invariant and smaller than what is wanted."""
        self._make_room(2 * self.block, merge=True)
        if not self.space.inject(self.block):
            raise ValueError(
                f"lanczos: count={self.count}, but only {len(self.space.done)} directions are left "
                "after projection and deflation"
            )
        return self.space.pending


def _default(size: int, count: int, block: int) -> int:
    return max(3 * count + 5 * block + 20, min(128, 2**24 // size))


def _check(operator, count, which, tolerance, max_products, block) -> None:
    if operator.size == 0:
        raise ValueError("lanczos: the operator has size 0")
    if not 1 <= count <= operator.size:
        raise ValueError(
            f"lanczos: count={count} must lie between 1 and the size, {operator.size}"
        )
    if which not in _KEYS:
        raise ValueError(
            f"lanczos: which must be 'algebraic', 'smallest' or 'magnitude', got {which!r}"
        )
    if not tolerance > 0 or block < 1:
        raise ValueError("lanczos: tolerance and block must be positive")
    if max_products < count:
        raise ValueError(
            f"lanczos: max_products={max_products} is below count={count}: every eigenvalue needs "
            "a product"
        )


def _columns(operator: Operator, value, name: str, most: int) -> Tensor | None:
    """``start`` or ``deflate`` as a block of columns, after a look at its shape and kind."""
    if value is None:
        return None
    columns = value[:, None] if value.ndim == 1 else value
    if columns.ndim != 2 or len(columns) != operator.size or columns.shape[1] > most:
        raise ValueError(
            f"lanczos: {name} has shape {tuple(value.shape)}, it needs ({operator.size},) or "
            f"({operator.size}, m) with m at most {most}"
        )
    if (columns.dtype, columns.device) != (operator.dtype, operator.device):
        raise ValueError(
            f"lanczos: {name} is {columns.dtype} on {columns.device}, the operator is "
            f"{operator.dtype} on {operator.device}"
        )
    if not torch.isfinite(columns).all():
        raise ValueError(f"lanczos: {name} has NaN or infinite entries")
    return columns
