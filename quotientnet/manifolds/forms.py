"""Symmetric forms on the tangent space of a quotient, as operators in frame coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quotientnet.operator import Operator
from quotientnet.orbit import require_flat_orbit

if TYPE_CHECKING:
    from quotientnet.manifolds.base import QuotientManifold

__all__ = ["RiemannianForm", "RiemannianHessian"]


class _Vertical:
    """The vertical space of a manifold at a point, compared by both."""

    def __init__(self, manifold: QuotientManifold, w: Tensor):
        self.manifold, self.w = manifold, w

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Vertical)
            and other.manifold is self.manifold
            and torch.equal(other.w, self.w)
        )

    __hash__ = None


class RiemannianForm(Operator):
    """``P D⁻¹ A D⁻¹ P`` at a point, for a symmetric operator ``A`` on tangent vectors."""

    _called = "riemannian_ggn"

    def __init__(self, manifold: QuotientManifold, point, form: Callable[[], Operator]):
        caller = f"{manifold.name}.{self._called}"
        if not hasattr(point, "w"):
            raise TypeError(
                f"{caller}: point must be a Point, got {type(point).__name__}; objective.at(w) "
                "makes one"
            )
        w = point.w
        manifold._check_tangents(self._called, w)
        if getattr(point, "layout", manifold.layout) != manifold.layout:
            raise ValueError(
                f"{caller}: the point has another layout than the group; build both from the same "
                "module"
            )
        manifold._raise_unless_point(w, self._called)
        super().__init__(manifold.layout.size, w.dtype, w.device)
        self._manifold, self._point = manifold, point
        self._inverse_frame = 1 / manifold.frame(w)
        self._require_invariance()
        self._form = form()

    def _require_invariance(self) -> None:
        """Refuse a loss that changes along an orbit: its slope there must vanish."""
        group, point = self._manifold.group, self._point
        caller = f"{self._manifold.name}.{self._called}"
        kept = self._manifold._keep(point.gradient)
        require_flat_orbit(group, point.w, kept, point.value, caller)

    def project(self, v: Tensor) -> Tensor:
        """The horizontal part: the orbit's directions are null vectors."""
        if v.ndim == 2:
            return torch.stack([self.project(column) for column in v.T], 1)
        return self._horizontal(v) / self._inverse_frame

    @property
    def null_space(self):
        """The vertical space of this manifold at this point."""
        return _Vertical(self._manifold, self._point.w)

    def _horizontal(self, z: Tensor) -> Tensor:
        """The horizontal tangent vector with frame coordinates ``z``, up to its vertical part."""
        return self._manifold.proju(self._point.w, z * self._inverse_frame)

    def _covector(self, product: Tensor, xi: Tensor) -> Tensor:
        """The form's value on ``xi``, of which ``product`` is the operator's part."""
        return product

    def _raise(self, covector: Tensor) -> Tensor:
        raised = self._manifold._keep(covector * self._inverse_frame)
        return self._horizontal(raised) / self._inverse_frame

    def _matvec(self, v: Tensor) -> Tensor:
        xi = self._horizontal(v)
        return self._raise(self._covector(self._form @ xi, xi))

    def _matmat(self, v: Tensor) -> Tensor:
        xi = torch.stack([self._horizontal(column) for column in v.T], 1)
        pairs = zip((self._form @ xi).T, xi.T)
        return torch.stack([self._raise(self._covector(p, x)) for p, x in pairs], 1)


class RiemannianHessian(RiemannianForm):
    """``P D⁻¹ (H + Γ) D⁻¹ P`` at a point."""

    _called = "riemannian_hessian"

    def __init__(self, manifold: QuotientManifold, point, connection: str):
        manifold._check_connection(connection)
        self._flat = connection == "flat"
        super().__init__(manifold, point, lambda: point.hessian)

    def _covector(self, product: Tensor, xi: Tensor) -> Tensor:
        if self._flat:
            return product
        point = self._point
        return product + self._manifold.connection_term(point.w, point.gradient, xi)
