"""Along which curve a tangent vector is followed, and how others are carried with it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from quotientnet.manifolds import LogPolarQuotient

__all__ = ["Path", "Retraction", "Geodesic", "path_on"]


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


def path_on(manifold, along: str | None, caller: str) -> Path:
    """The path of this name; geodesics by default where the retraction is only valid near 0."""
    if along is None:
        along = "geodesic" if isinstance(manifold, LogPolarQuotient) else "retraction"
    kinds = {"retraction": Retraction, "geodesic": Geodesic}
    if along not in kinds:
        raise ValueError(
            f"{caller}: along must be 'retraction' or 'geodesic', got {along!r}"
        )
    return kinds[along](manifold)
