"""When wanted eigenvalues have converged, and whether others were missed."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
import torch
from torch import Tensor

from quotientnet.curvature.krylov import Krylov, Ritz

__all__ = ["Search"]

_DOUBT = 1e-3  # chance of a missed eigenvalue at which the search for one ends


class Search:
    """The wanted pairs converge; then random vectors look for others; then again."""

    def __init__(
        self, space: Krylov, count, key, tolerance, block, max_products, confirm
    ):
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

    def result(self) -> tuple[Tensor, Tensor, Tensor, int, bool]:
        """The wanted pairs as they are: what :class:`Eigenpairs` holds, in its order."""
        ritz = self.space.ritz(self.key).first(self.count)
        return (
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
