"""Symmetric linear operators on vectors: everything a spectrum or a trace needs to know."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Operator", "DenseOperator"]


class Operator(ABC):
    """A symmetric linear map of ``R^size``, applied with ``@``.

    ``@`` takes a vector, shape ``(size,)``, or a block of column vectors, shape ``(size, m)``,
    checks it and returns a new tensor of the same shape. A subclass writes only ``_matvec``.

    Attributes:
        size: Length of the vectors.
        dtype: Their dtype.
        device: Their device.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, torch.device(device)

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """The product with one vector of shape ``(size,)``; must not modify ``v``."""

    def __matmul__(self, v: Tensor) -> Tensor:
        name = type(self).__name__
        if not isinstance(v, Tensor):
            raise TypeError(
                f"{name} @ v: v must be a torch.Tensor, got {type(v).__name__}"
            )
        if v.ndim not in (1, 2) or v.shape[0] != self.size:
            raise ValueError(
                f"{name} @ v: v has shape {tuple(v.shape)}, it needs ({self.size},) or "
                f"({self.size}, m), one column a vector"
            )
        if (v.dtype, v.device) != (self.dtype, self.device):
            raise ValueError(
                f"{name} @ v: v is {v.dtype} on {v.device}, the operator is {self.dtype} on "
                f"{self.device}; use v.to(...)"
            )
        if v.ndim == 1:
            return self._matvec(v)
        columns = [self._matvec(column.contiguous()) for column in v.T]
        return torch.stack(columns, dim=1) if columns else v.clone()

    def to_dense(self) -> Tensor:
        """The matrix, shape ``(size, size)``, by ``size`` products."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)


class DenseOperator(Operator):
    """A symmetric matrix as an operator.

    Args:
        matrix: Shape ``(size, size)``, float32 or float64.

    Raises:
        ValueError: Not square, or not symmetric to 1e-5 (float32) or 1e-10 (float64), relative
            to the largest entry.
    """

    def __init__(self, matrix: Tensor):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"DenseOperator: matrix has shape {tuple(matrix.shape)}, not square"
            )
        tolerance = 1e-10 if matrix.dtype == torch.float64 else 1e-5
        gap = (
            (matrix - matrix.T).abs().max() if matrix.numel() else matrix.new_zeros(())
        )
        if gap > tolerance * matrix.abs().max():
            raise ValueError(
                f"DenseOperator: matrix differs from its transpose by {float(gap):.1e}; "
                "symmetrise it with (matrix + matrix.T) / 2"
            )
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matrix @ v
