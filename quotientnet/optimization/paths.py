"""Along which curve a tangent vector is followed, and how others are carried with it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import geoopt
import torch
from torch import Tensor

from quotientnet.manifolds import LogPolarQuotient, QuotientManifold

__all__ = ["Path", "Retraction", "Geodesic", "Orthonormalisation", "Cayley", "path_on"]


class Path(ABC):
    """Curves on a manifold, one for each tangent vector.

    Args:
        manifold: Any :class:`geoopt.Manifold`.
    """

    def __init__(self, manifold):
        self.manifold = manifold

    @abstractmethod
    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """The end of the curve that leaves ``x`` with velocity ``u``, after unit time."""

    @abstractmethod
    def transport(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``v``, tangent at ``x``, carried to ``y = move(x, u)``."""

    def settled(self, y: Tensor) -> Tensor:
        """``y`` without the rounding of a step, which would add up."""
        quotient = isinstance(self.manifold, QuotientManifold)
        return y if quotient else self.manifold.projx(y)

    def valid(self, x: Tensor, u: Tensor) -> Tensor:
        """Where the curve stays on the manifold, shape ``(rows,)``."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)


class Retraction(Path):
    """The manifold's retraction."""

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """``retr(x, u)``."""
        return self.manifold.retr(x, u)

    def transport(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``transp``, or ``transp_follow_retr`` where the manifold has nothing else."""
        try:
            return self.manifold.transp(x, y, v)
        except NotImplementedError:
            return self.manifold.transp_follow_retr(x, u, v)

    def valid(self, x: Tensor, u: Tensor) -> Tensor:
        """Blocks of a log-polar quotient must not cross zero: ``w + ξ`` would not notice."""
        if not isinstance(self.manifold, LogPolarQuotient):
            return super().valid(x, u)
        return (self.manifold.component_inner(x, x, u) > -1).all(-1)


class Geodesic(Path):
    """The manifold's exponential map."""

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """``expmap(x, u)``."""
        return self.manifold.expmap(x, u)

    def transport(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``transp_follow_expmap``."""
        return self.manifold.transp_follow_expmap(x, u, v)


class Orthonormalisation(Path):
    """geoopt's retraction by QR on ``EuclideanStiefel``, differentiable: its own writes to a result
    of which autograd needs the old value."""

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """The factor ``Q`` of ``x + u``, with a positive diagonal in ``R``."""
        q, r = torch.linalg.qr(x + u)
        signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)
        return q * signs.unsqueeze(-2)

    def transport(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``transp``, the projection."""
        return self.manifold.transp(x, y, v)


class Cayley(Path):
    """geoopt's Cayley transform on ``CanonicalStiefel``, with the velocity ``u``: its own leaves
    ``x`` with ``u + x xᵀu``."""

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """``retr`` of ``u - x xᵀu / 2``."""
        return self.manifold.retr(x, _halved(x, u))

    def transport(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``transp_follow_retr`` of the same."""
        return self.manifold.transp_follow_retr(x, _halved(x, u), v)


def _halved(x: Tensor, u: Tensor) -> Tensor:
    return u - 0.5 * x @ (x.mT @ u)


def path_on(manifold, along: str | None, caller: str) -> Path:
    """The path of this name; geodesics by default where the retraction is only valid near 0.

    Raises:
        ValueError: Another name, or geodesics on ``CanonicalStiefel``, of which geoopt has none.
    """
    if along is None:
        along = "geodesic" if isinstance(manifold, LogPolarQuotient) else "retraction"
    if along not in ("retraction", "geodesic"):
        raise ValueError(
            f"{caller}: along must be 'retraction' or 'geodesic', got {along!r}"
        )
    if isinstance(manifold, geoopt.CanonicalStiefel):
        if along == "geodesic":
            raise ValueError(
                f"{caller}: geoopt has no geodesics on {manifold.name}, its expmap is a Cayley "
                "transform; use along='retraction'"
            )
        return Cayley(manifold)
    if along == "geodesic":
        return Geodesic(manifold)
    exact = isinstance(manifold, geoopt.EuclideanStiefelExact)
    if isinstance(manifold, geoopt.EuclideanStiefel) and not exact:
        return Orthonormalisation(manifold)
    return Retraction(manifold)
