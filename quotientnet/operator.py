"""Symmetric linear operators on vectors: everything a spectrum or a trace needs to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from time import perf_counter

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

__all__ = ["Operator", "DenseOperator", "Probe"]


@dataclass(frozen=True)
class Probe:
    """What three products tell about an operator.

    Attributes:
        asymmetry: ``|⟨a, H b⟩ − ⟨H a, b⟩|`` over ``‖H a‖ + ‖H b‖`` for random ``a, b`` of norm 1:
            rounding for a symmetric operator, of order ``1/√size`` for another.
        deviation: How much two products with one vector differ, relative to their norm: 0 for a
            deterministic operator, rounding where sums are taken in any order.
    """

    asymmetry: float
    deviation: float


class Operator(ABC):
    """A symmetric linear map of ``R^size``, applied with ``@``.

    ``@`` takes a vector, shape ``(size,)``, or a block of column vectors, shape ``(size, m)``,
    checks it and returns a new tensor of the same shape. Operators add, subtract and scale:
    ``2 * A - B``. A subclass writes ``_matvec``, and ``_matmat`` where a block costs less than its
    columns.

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

    def _matmat(self, v: Tensor) -> Tensor:
        """The products with the columns of ``v``, shape ``(size, m)``, ``m ≥ 1``."""
        return torch.stack([self._matvec(c.contiguous()) for c in v.T], dim=1)

    def project(self, v: Tensor) -> Tensor:
        """``v``, of shape ``(size,)`` or ``(size, m)``, without its part along null directions
        that are known beforehand, such as the orbit's for a Riemannian Hessian. By default
        ``v`` itself."""
        return v

    @property
    def null_space(self):
        """What two operators share that :meth:`project` alike, or None; sums keep it."""
        return None

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
        if v.ndim == 2 and not v.shape[1]:
            return v.clone()
        product = self._matvec(v) if v.ndim == 1 else self._matmat(v)
        if not isinstance(product, Tensor) or product.shape != v.shape:
            got = getattr(product, "shape", type(product).__name__)
            raise TypeError(
                f"{name} @ v: _matvec must return a torch.Tensor of shape {tuple(v.shape)}, it "
                f"returned {got}"
            )
        return product

    def __add__(self, other: Operator) -> Operator:
        return _Sum(self, other, 1.0) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return (
            _Sum(self, other, -1.0) if isinstance(other, Operator) else NotImplemented
        )

    def __mul__(self, factor: float) -> Operator:
        return _Scaled(self, factor) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Operator:
        return (
            _Scaled(self, 1.0 / divisor)
            if isinstance(divisor, Real)
            else NotImplemented
        )

    def __neg__(self) -> Operator:
        return _Scaled(self, -1.0)

    def restrict(self, where: Tensor) -> Operator:
        """The principal block on the coordinates chosen, as an operator on shorter vectors.

        Null directions that the operator knows are none of the block's, and are forgotten.

        Args:
            where: Boolean mask, shape ``(size,)``, as from
                :meth:`ParameterLayout.mask <quotientnet.ParameterLayout.mask>`.

        Raises:
            ValueError: Another shape or dtype, or nothing chosen.
        """
        return _Restricted(self, where)

    def to_dense(self) -> Tensor:
        """The matrix, shape ``(size, size)``, by ``size`` products."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The operator on numpy arrays, for :mod:`scipy.sparse.linalg`."""

        def product(v: np.ndarray) -> np.ndarray:
            v = torch.as_tensor(np.ascontiguousarray(v))
            return (self @ v.to(self.device, self.dtype)).cpu().numpy()

        return scipy.sparse.linalg.LinearOperator(
            (self.size, self.size),
            matvec=lambda v: product(v.reshape(-1)),
            rmatvec=lambda v: product(v.reshape(-1)),
            matmat=product,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    def seconds(self, vectors: int = 1) -> float:
        """How long a product with this many vectors takes, by doing two and timing the second.

        Times the products a method may spend it is the cost of a long run before it begins; the
        orthogonalisation in Lanczos' method is not in it.

        Args:
            vectors: Columns of the block, at least 1.

        Raises:
            ValueError: No vectors.
        """
        if vectors < 1:
            raise ValueError(f"seconds: vectors must be at least 1, got {vectors}")
        block = torch.ones(self.size, vectors, dtype=self.dtype, device=self.device)
        block = block / self.size**0.5
        _ = self @ block
        self._await()
        start = perf_counter()
        _ = self @ block
        self._await()
        return perf_counter() - start

    def _await(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def probe(self, generator: torch.Generator | None = None) -> Probe:
        """A cheap test, by three products, that the operator is symmetric and deterministic.

        Args:
            generator: Source of two random vectors; a fresh one with seed 0 if omitted.
        """
        generator = generator or torch.Generator(self.device).manual_seed(0)
        shape, kind = (2, self.size), {"dtype": self.dtype, "device": self.device}
        a, b = torch.randn(shape, generator=generator, **kind)
        a, b = a / a.norm(), b / b.norm()
        image_a, image_b, again = self @ a, self @ b, self @ a
        size = (image_a.norm() + image_b.norm()).clamp(min=torch.finfo(self.dtype).tiny)
        return Probe(
            float((a @ image_b - b @ image_a).abs() / size),
            float((again - image_a).norm() / size),
        )


def require_vectors(operator: Operator, value: Tensor, caller: str, name: str) -> None:
    """Refuse vectors that an operator cannot be applied to, whatever their shape.

    Raises:
        TypeError: ``value`` is no tensor.
        ValueError: It is of another dtype, device or layout, or not finite.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{caller}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )
    own = (operator.dtype, operator.device, torch.strided)
    if (value.dtype, value.device, value.layout) != own:
        kind = "" if value.layout == torch.strided else f" of layout {value.layout}"
        raise ValueError(
            f"{caller}: {name} is {value.dtype} on {value.device}{kind}, the operator is "
            f"{operator.dtype} on {operator.device}; use a dense tensor and .to(...)"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{caller}: {name} has NaN or infinite entries")


def require_operator(operator, caller: str) -> None:
    """Refuse what is no operator, and say what makes one.

    Raises:
        TypeError: It is none.
    """
    if isinstance(operator, Operator):
        return
    remedy = "write a class with Operator's _matvec"
    if hasattr(operator, "hessian"):
        remedy = "pass point.hessian or point.ggn"
    elif isinstance(operator, (Tensor, np.ndarray)):
        remedy = "pass DenseOperator(matrix)"
    raise TypeError(
        f"{caller}: operator must be an Operator, got {type(operator).__name__}; {remedy}"
    )


class DenseOperator(Operator):
    """A symmetric matrix as an operator.

    Args:
        matrix: Shape ``(size, size)``, float32 or float64.

    Raises:
        TypeError: No tensor, or another dtype.
        ValueError: Not square, without values, sparse, or not symmetric to 1e-5 (float32) or 1e-10
            (float64), relative to the largest entry.
    """

    def __init__(self, matrix: Tensor):
        if not isinstance(matrix, Tensor) or matrix.dtype not in (
            torch.float32,
            torch.float64,
        ):
            kind = getattr(matrix, "dtype", type(matrix).__name__)
            raise TypeError(
                f"DenseOperator: matrix must be a float32 or float64 tensor, got {kind}"
            )
        if matrix.is_meta or matrix.layout != torch.strided:
            raise ValueError(
                f"DenseOperator: matrix must be dense and have values, got one of layout "
                f"{matrix.layout} on {matrix.device}"
            )
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"DenseOperator: matrix has shape {tuple(matrix.shape)}, not square"
            )
        tolerance = 1e-10 if matrix.dtype == torch.float64 else 1e-5
        gap = (
            (matrix - matrix.T).abs().max() if matrix.numel() else matrix.new_zeros(())
        )
        if matrix.numel() and gap > tolerance * matrix.abs().max():
            raise ValueError(
                f"DenseOperator: matrix differs from its transpose by {float(gap):.1e}; "
                "symmetrise it with (matrix + matrix.T) / 2"
            )
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matrix @ v

    _matmat = _matvec


class _Sum(Operator):
    """``A + factor·B``."""

    def __init__(self, a: Operator, b: Operator, factor: float):
        if (a.size, a.dtype, a.device) != (b.size, b.dtype, b.device):
            raise ValueError(
                f"{type(a).__name__} + {type(b).__name__}: sizes {a.size} and {b.size}, {a.dtype} "
                f"on {a.device} and {b.dtype} on {b.device}; both must be the same"
            )
        super().__init__(a.size, a.dtype, a.device)
        self._a, self._b, self._factor = a, b, factor

    def project(self, v: Tensor) -> Tensor:
        """As both do, if they are known to have the same null directions."""
        return self._a.project(v) if self.null_space is not None else v

    @property
    def null_space(self):
        """That of both, if it is one."""
        same = self._a.null_space == self._b.null_space
        return self._a.null_space if same else None

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.add(self._a @ v, self._b @ v, alpha=self._factor)

    _matmat = _matvec


class _Scaled(Operator):
    """``factor·A``."""

    def __init__(self, operator: Operator, factor: float):
        super().__init__(operator.size, operator.dtype, operator.device)
        self._operator, self._factor = operator, float(factor)

    def project(self, v: Tensor) -> Tensor:
        """As the operator's own."""
        return self._operator.project(v)

    @property
    def null_space(self):
        """The operator's own."""
        return self._operator.null_space

    def _matvec(self, v: Tensor) -> Tensor:
        return self._factor * (self._operator @ v)

    _matmat = _matvec


class _Restricted(Operator):
    """``A`` between the coordinates of a mask."""

    def __init__(self, operator: Operator, where: Tensor):
        if not isinstance(where, Tensor):
            raise TypeError(
                f"restrict: where must be a torch.Tensor, got {type(where).__name__}; "
                "layout.mask(name) makes one"
            )
        if where.dtype != torch.bool or where.shape != (operator.size,):
            raise ValueError(
                f"restrict: where must be a boolean mask of shape ({operator.size},), got "
                f"{where.dtype} of shape {tuple(where.shape)}"
            )
        if not where.any():
            raise ValueError("restrict: where chooses no coordinate")
        self._where = where.to(operator.device)
        super().__init__(int(where.sum()), operator.dtype, operator.device)
        self._operator = operator

    def _matvec(self, v: Tensor) -> Tensor:
        whole = v.new_zeros(len(self._where), *v.shape[1:])
        whole[self._where] = v
        return (self._operator @ whole)[self._where]

    _matmat = _matvec
