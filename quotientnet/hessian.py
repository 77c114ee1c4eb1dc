"""The Hessian and the Gauss–Newton matrix of an objective at a point, as operators."""

from __future__ import annotations

from torch import Tensor

from quotientnet.kinds import Kind
from quotientnet.operator import Operator

__all__ = ["Curvature"]


class Curvature(Operator):
    """The second derivatives of an objective at a point.

    On one batch, what does not depend on the vector is kept between products. On a loader, one
    pass over the batches serves a whole block of vectors, and nothing is kept: a block costs one
    gradient a batch less than its vectors one by one.
    """

    def __init__(self, point, kind: Kind):
        super().__init__(point.w.shape[0], point.w.dtype, point.w.device)
        self._point, self._kind, self._kept = point, kind, None

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, v: Tensor) -> Tensor:
        point, call = self._point, f"a product with the {self._kind.name}"
        return point.objective._processes.sum(
            call, lambda: self._added(v), point=point.w, vectors=v
        ).mean.T

    def _added(self, v: Tensor) -> tuple[Tensor, list, None]:
        """The products as rows, summed over this process's batches, and the batches' weights."""
        point, objective = self._point, self._point.objective
        point.require_modes()
        count = point.layout.parameter_size
        rows, weights = v.new_zeros(v.shape[1], len(v)), []
        with objective._preserved(point.w):
            maps = objective._each(
                point.w, lambda batch: self._local(batch, v[:count]), weights
            )
            for local, _ in maps:
                for row, column in zip(rows, v[:count].T):
                    row[:count] += local.apply(column.contiguous())
        return rows, weights, None

    def _local(self, batch, vectors: Tensor):
        """The batch's map and weight; on one batch it is kept for the next product."""
        point, objective = self._point, self._point.objective
        programs = objective._programs
        local = programs.local(
            self._kind, objective, point.w, batch, vectors, self._kept
        )
        if objective._whole and programs.may_keep(local):
            self._kept = local
        return local, local.weight
