"""The Hessian and the Gauss–Newton matrix of an objective at a point, as operators."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.kinds import BatchMap, Kind
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
        point, objective = self._point, self._point.objective
        vectors = v[: point.layout.parameter_size]

        def products(batch):
            local = self._local(batch, vectors)
            if local.weight is not None and float(local.weight) == 0:
                return vectors, local.weight
            columns = [local.apply(column.contiguous()) for column in vectors.T]
            return torch.stack(columns, 1), local.weight

        with objective._preserved(point.w):
            total = objective._mean(point.w, products)
        return torch.nn.functional.pad(total, (0, 0, 0, len(v) - len(total)))

    def _local(self, batch, vectors: Tensor) -> BatchMap:
        point, objective = self._point, self._point.objective
        programs = objective._programs
        local = programs.local(
            self._kind, objective, point.w, batch, vectors, self._kept
        )
        if objective._whole and programs.may_keep(local):
            self._kept = local
        return local
