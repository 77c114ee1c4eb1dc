"""Solves with ``Aᵀ diag(weight) A``, the Gram matrix of a group's exponents."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.linalg import splu
from torch import Tensor

from quotientnet import exact
from quotientnet.couplings import class_couplings, spanning_rows
from quotientnet.exponent_matrix import ExponentMatrix, exponent_matrix
from quotientnet.options import require_kind

__all__ = ["Gram"]

_DENSE = 1024
"""Up to this many generators the matrix is factored; beyond, conjugate gradients."""

_PATIENCE = 200
"""Iterations at most where the best that is found will do."""

_ROUNDING = 1e-12
"""Relative residuals below this may have no digit left to win."""


class Gram:
    """``M = Aᵀ diag(weight) A``, positive semidefinite, set up once and solved often.

    ``M`` is never formed for many generators: a dense layer couples every row class with every
    column class, by the same number without weights (one rank-one term), by its own weights
    otherwise (which are read in place). Where ``M`` is singular (generators that move only
    entries of weight zero, or move together), :meth:`solve` still answers consistent systems:
    ``A x`` is then unique even though ``x`` is not.

    Args:
        group: The scaling group.
        weight: Non-negative weights, shape ``(size,)``, boolean or floating; 1 if omitted. They
            must not change while the object is in use.
    """

    def __init__(self, group, weight: Tensor | None = None):
        if weight is not None:
            require_kind(weight, Tensor, "Gram", "weight")
        if weight is not None and tuple(weight.shape) != (group.layout.size,):
            raise ValueError(
                f"Gram: weight has shape {tuple(weight.shape)}, it needs ({group.layout.size},)"
            )
        self.dimension = group.dimension
        self._group = group
        self._mask = None if weight is None else weight.detach() != 0
        self._weight = weight

    # -- what it is made of, for many generators ---

    @cached_property
    def _classes(self) -> sparse.csr_array:
        return self._group.classes.astype(np.float64)

    @cached_property
    def _parts(self):
        return class_couplings(self._group, self._weight)

    @cached_property
    def _sparse(self) -> sparse.csr_array:
        """All but dense layers' couplings."""
        return sparse.csr_array(self._classes.T @ self._parts.sparse() @ self._classes)

    @cached_property
    def _thin(self) -> list:
        """The factors of couplings of low rank."""
        return [self._classes.T @ f for f in self._parts.factors()]

    _left = property(lambda self: self._thin[0])
    _right = property(lambda self: self._thin[1])
    _matrices = property(lambda self: self._parts.matrices)

    @cached_property
    def rank(self) -> int:
        """The rank of ``A`` on the entries of nonzero weight, exactly."""
        return self.dimension - len(self.free_generators)

    @cached_property
    def free_generators(self) -> np.ndarray:
        """Generators without which the others still move all that they moved together, exactly.

        Those that move no entry of nonzero weight are among them.
        """
        rows = spanning_rows(self._group, self._mask)
        return exact.free_columns(rows @ self._group.classes)

    def solve(
        self, b: Tensor, *, tolerance: float = 1e-15, strict: bool = True
    ) -> Tensor:
        """A solution ``x`` of ``M x = b`` in float64, differentiable in ``b``.

        Args:
            b: Right-hand sides in the range of ``M``, shape ``(..., dimension)``.
            tolerance: Relative residual at which conjugate gradients, used for many generators,
                may stop.
            strict: Whether to insist on it; the best that was found is returned otherwise.

        Raises:
            RuntimeError: If strict, conjugate gradients did not reach a relative residual of 1e-9,
                or of ``tolerance`` if that is larger.
        """
        b = b.to(torch.float64)
        if not b.numel():
            return b
        if self.dimension > _DENSE:
            return _Solve.apply(
                b, lambda c: self.conjugate_gradients(c, tolerance, strict)
            )
        if self._factor is not None:
            return _Solve.apply(b, lambda c: cho_solve(self._factor, c))
        return _Solve.apply(b, lambda c: self._pseudo_inverse @ c)

    def weakest(self) -> float:
        """An estimate of the least eigenvalue after scaling to a diagonal of 1.

        Relative errors of the weights move solutions by so many times more as it is less than 1.
        """
        if not self.dimension:
            return 1.0
        if self.dimension <= _DENSE:
            matrix, _ = self._scaled
            kept = np.diagonal(matrix) > 0
            return float(np.linalg.eigvalsh(matrix[kept][:, kept]).min(initial=1.0))
        diagonal = self._apply_diagonal()
        x, least = np.ones((self.dimension, 1)), 1.0
        for _ in range(3):
            size = float((x * x * diagonal).sum()) or 1.0
            least = min(least, float((x * self._apply(x)).sum()) / size)
            x = self.conjugate_gradients(diagonal * x / size**0.5, 1e-6, False)
        return max(least, 0.0)

    def _apply_diagonal(self) -> np.ndarray:
        """The diagonal of ``M``, as a column."""
        thin = np.asarray(self._left.multiply(self._right).sum(axis=1)).reshape(-1)
        return (self._sparse.diagonal() + thin)[:, None]

    def to_dense(self) -> np.ndarray:
        """``M`` as an array; for tests and small groups."""
        matrix = exponent_matrix(self._group)
        if matrix is not None:
            return self._product(matrix).astype(np.float64)
        coupled = sum(
            (c.to_sparse(self._classes.shape[0]) for c in self._matrices),
            sparse.csr_array((self._classes.shape[0],) * 2),
        )
        coupled = self._classes.T @ coupled @ self._classes
        total = self._sparse + self._left @ self._right.T + coupled
        return total.toarray().astype(np.float64)

    def _product(self, matrix: ExponentMatrix) -> np.ndarray:
        """``M`` from ``A`` itself, where that is small."""
        if self._weight is None:
            return matrix.a.T @ matrix.a
        return matrix.gram(self._weight.detach().cpu().to(torch.float64).numpy())

    @cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """``M`` scaled to a diagonal of 1 (or 0), and the scale."""
        matrix = self.to_dense()
        scale = np.sqrt(_inverse_or_zero(np.diagonal(matrix).copy()))
        return scale[:, None] * matrix * scale, scale

    @cached_property
    def _factor(self):
        """The Cholesky factor of ``M``, or None if it is singular or nearly so."""
        matrix, scale = self._scaled
        try:
            factor, lower = cho_factor(matrix, lower=True)
        except LinAlgError:  # singular: the pseudo-inverse answers
            return None
        if np.diagonal(factor).min() ** 2 < 1e-10:
            return None
        return factor / scale[:, None], lower

    @cached_property
    def _pseudo_inverse(self) -> np.ndarray:
        matrix, scale = self._scaled
        values, vectors = np.linalg.eigh(matrix)
        top = values[-1] if values.size else 1.0
        kept = values > 8 * top * max(self.dimension, 1) * np.finfo(np.float64).eps
        half = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        return half @ half.T

    @cached_property
    def _precondition(self):
        """An approximate inverse, in which dense couplings have their rank-one means.

        The random part of a dense layer's couplings has a small spectral norm; the means carry
        all that the layers exchange. The rest is factored exactly.
        """
        left, right = (
            sparse.hstack([own, self._classes.T @ mean]).tocsr()
            for own, mean in zip((self._left, self._right), self._parts.means())
        )
        # The tiny ridge keeps a singular M invertible; the iteration removes its effect.
        own = self._sparse.diagonal()
        ridge = np.where(own > 0, 1e-8 * own, 1.0)
        if self._sparse.nnz > np.count_nonzero(own):
            solve = splu((self._sparse + sparse.diags_array(ridge)).tocsc()).solve
            reduced = sparse.csr_array(solve(left.toarray()))
        else:
            inverse = 1 / (own + ridge)
            solve = lambda r: inverse[:, None] * r  # noqa: E731
            reduced = sparse.csr_array(sparse.diags_array(inverse) @ left)
        # A layer's factors meet those of its neighbours only: sparse, however many there are.
        core = splu((sparse.eye_array(left.shape[1]) + right.T @ reduced).tocsc())
        return lambda r: (base := solve(r)) - reduced @ core.solve(right.T @ base)

    def _apply(self, x: np.ndarray) -> np.ndarray:
        """``M x`` for columns ``x``."""
        result = self._sparse @ x + self._left @ (self._right.T @ x)
        if self._matrices:
            y = self._classes @ x
            coupled = np.zeros_like(y)
            for coupling in self._matrices:
                coupling.add_to(coupled, y)
            result += self._classes.T @ coupled
        return result

    def conjugate_gradients(
        self, b: np.ndarray, tolerance: float = 1e-15, strict: bool = True
    ) -> np.ndarray:
        """Solutions of ``M x = b`` for the columns of ``b``, each to a relative residual.

        Stops at ``tolerance``, or at rounding level when no column has improved for a while.
        """
        size = np.sqrt(
            np.maximum((b * self._precondition(b)).sum(0), np.finfo(np.float64).tiny)
        )
        x, r, p, rho = np.zeros_like(b), b.copy(), np.zeros_like(b), np.ones(b.shape[1])
        best, best_x, stale = np.full(b.shape[1], np.inf), x, 0
        limit = 20 * self.dimension + 100 if strict else _PATIENCE
        for _ in range(limit):
            z = self._precondition(r)
            rho_next = (r * z).sum(0)
            error = np.sqrt(np.maximum(rho_next, 0)) / size
            improved = error < best
            stale = 0 if improved.any() else stale + 1
            best_x = np.where(improved, x, best_x)
            best = np.where(improved, error, best)
            # At rounding level a column that goes on only gathers rounding, where M is singular.
            going = (best > tolerance) & ((best >= _ROUNDING) | (error <= 10 * best))
            if not going.any() or (stale > 50 and best.max() < _ROUNDING):
                break
            p = z + np.divide(rho_next, rho, out=np.zeros_like(rho), where=rho > 0) * p
            q = self._apply(p)
            curvature = (p * q).sum(0)
            step = np.divide(
                rho_next, curvature, out=np.zeros_like(rho), where=going & (curvature > 0)
            )
            x, r, rho = x + step * p, r - step * q, rho_next
        if strict and best.max(initial=0.0) > max(1e-9, tolerance):
            raise RuntimeError(
                "Gram.solve: conjugate gradients stopped at a relative residual of "
                f"{best.max():.1e}; "
                "is the right-hand side finite and in the range?"
            )
        return best_x


def _inverse_or_zero(diagonal: np.ndarray) -> np.ndarray:
    """``1/diagonal``, 0 where it is 0: generators that move nothing."""
    return np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)


class _Solve(torch.autograd.Function):
    """``M⁺ b`` as an autograd function: ``M`` is symmetric, so backward is the same solve."""

    @staticmethod
    def forward(ctx, b: Tensor, solve) -> Tensor:
        ctx.solve = solve
        columns = b.detach().cpu().numpy().reshape(-1, b.shape[-1]).T
        x = solve(np.ascontiguousarray(columns))
        return torch.from_numpy(np.ascontiguousarray(x.T)).reshape(b.shape).to(b.device)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Solve.apply(grad, ctx.solve), None
