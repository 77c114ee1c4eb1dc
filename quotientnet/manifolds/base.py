"""Quotients of parameter space by a scaling group, with everything derived from a frame."""

from __future__ import annotations

from abc import abstractmethod

import torch
from geoopt.manifolds.base import ScalingInfo
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.group import ScalingGroup, as_group
from quotientnet.manifolds.forms import RiemannianForm, RiemannianHessian
from quotientnet.manifolds.frozen import Frozen
from quotientnet.manifolds.vectors import LayoutManifold, listed
from quotientnet.operator import Operator

__all__ = ["QuotientManifold"]

OVERFLOW = (
    "overflows in this dtype; use float64, or move along the orbit to smaller scales"
)


class QuotientManifold(LayoutManifold):
    r"""Parameters modulo a scaling group, with the metric of an equivariant diagonal frame.

    A member writes one method, :meth:`frame`, which returns ``d > 0`` with
    :math:`d(t \cdot w) = e^{-At} \odot d(w)`. In the coordinates :math:`z = d(w) \odot \xi` the
    metric is the identity, the vertical space is the range of :math:`V = \mathrm{diag}(d w) A`
    and the horizontal projection is :math:`P = I - V (V^\top V)^+ V^\top`. Inner products,
    gradients, projections, the connection and the Riemannian Hessian follow. Members override
    what they know in closed form; the laws in :mod:`quotientnet.testing` hold them to what is
    derived here.

    Args:
        group: The scaling group, or what :func:`discover` returned; its layout names the
            coordinates.
        frozen: Boolean mask, shape ``(n,)``, of coordinates that do not move: tangent vectors
            vanish there and rows of ``A`` are dropped. Passive coordinates always are.
    """

    __scaling__ = LayoutManifold.__scaling__.copy()

    def __init__(self, group: ScalingGroup, frozen: Tensor | None = None):
        super().__init__()
        self.group = as_group(group, self.name)
        mask = torch.zeros(self.layout.size, dtype=torch.bool)
        mask[self.layout.parameter_size :] = True
        if frozen is not None:
            mask |= frozen.detach().cpu()
        self._frozen = Frozen(mask)

    @property
    def layout(self):
        """The coordinates of a point."""
        return self.group.layout

    # -- the frame, and what follows from it ---

    @abstractmethod
    @__scaling__(ScalingInfo.NotCompatible)
    def frame(self, x: Tensor) -> Tensor:
        """``d(x) > 0``, shape ``(..., n)``: the root of the diagonal metric; 1 where frozen."""

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim=False
    ) -> Tensor:
        """The metric ``Σ d² u v``, shape ``(...)``; ``v`` defaults to ``u``. A class invariant.

        Raises:
            NotOnManifoldError: ``x`` is not a point.
        """
        return self.component_inner(x, u, v).sum(-1, keepdim=keepdim)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """The metric of each block, repeated on its entries, shape ``(..., n)``."""
        v = u if v is None else v
        d = self._checked_frame(x, "component_inner", u, v)
        products = self._keep((d * u) * (d * v))
        return self._checked(products, "component_inner", x, u, v)

    @__scaling__(ScalingInfo())
    def vertical_coordinates(self, x: Tensor, u: Tensor) -> Tensor:
        """The ``t``, shape ``(..., k)``, for which ``(A t) ⊙ x`` is the vertical part of ``u``."""
        d = self._checked_frame(x, "vertical_coordinates", u)
        rates = self._keep((d * d) * (x * u)).to(torch.float64)
        weight = self._keep((d * x) ** 2)
        rhs = self._checked(self.group.adjoint(rates), "proju", x, u)
        if weight.ndim == 1:
            return self.group.gram(weight).solve(rhs).to(u)
        weights, rhs = weight.broadcast_to(u.shape), rhs.broadcast_to(
            *u.shape[:-1], rhs.shape[-1]
        )
        pairs = zip(
            weights.reshape(-1, weights.shape[-1]), rhs.reshape(-1, rhs.shape[-1])
        )
        solutions = [self.group.gram(row).solve(b) for row, b in pairs]
        return torch.stack(solutions).reshape(rhs.shape).to(u)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The horizontal part of ``u``: the projection to the quotient's tangent space."""
        t = self.vertical_coordinates(x, u)
        return self._keep(u - self.group.generate(x, t))

    @__scaling__(ScalingInfo())
    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """The horizontal part of ``u``; the same as :meth:`proju`."""
        return self.proju(x, u)

    @__scaling__(ScalingInfo())
    def vertical(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of ``u`` along the orbit of ``x``, where an invariant function is constant."""
        return self._keep(self.group.generate(x, self.vertical_coordinates(x, u)))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradient: the horizontal part of ``u / d²``, ``u`` the Euclidean one."""
        d = self._checked_frame(x, "egrad2rgrad", u)
        return self.proju(x, self._keep(u / (d * d)))

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The first-order retraction ``x + u``; valid for small ``u``."""
        self._check_tangents("retr", x, u)
        return x + u

    _without_geodesics = "geodesics of this metric have no closed form; use retr"

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential map, where the member has one in closed form."""
        raise NotImplementedError(f"{self.name}.expmap: {self._without_geodesics}")

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm, where the member has one in closed form."""
        raise NotImplementedError(f"{self.name}.logmap: {self._without_geodesics}")

    def dist(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The geodesic distance, where the member has one in closed form."""
        raise NotImplementedError(f"{self.name}.dist: {self._without_geodesics}")

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """A vector transport, aligned to the fibre of ``y``: ``d ⊙ v`` is kept, and projected."""
        z = self._checked_frame(x, "transp", v) * v
        return self.proju(y, self._keep(z / self._checked_frame(y, "transp")))

    def projx(self, x: Tensor) -> Tensor:
        """``x`` itself if it is a point; frozen zeros are put back. Never moves along an orbit.

        Raises:
            NotOnManifoldError: ``x`` is singular elsewhere; no nearest point exists.
        """
        self.layout.check(x, f"{self.name}.projx", "x")
        restored = torch.where(self._held_at_zero.to(x.device), torch.zeros_like(x), x)
        result = restored if (restored != x).any() else x
        self._raise_unless_point(result, "projx")
        return result

    @__scaling__(ScalingInfo.NotCompatible)
    def riemannian_hessian(self, point, connection: str = "levi-civita") -> Operator:
        r"""The Riemannian Hessian :math:`P D^{-1} (H + \Gamma) D^{-1} P` in frame coordinates.

        Symmetric in the ordinary inner product; its eigenvalues are those of the Riemannian
        Hessian, invariant on the orbit. Frame coordinates are ``z = frame(w) * xi``; vertical
        directions are null vectors. MATH of rangamani2019 Def. 2 with the connection term.

        Args:
            point: A :class:`~quotientnet.Point`: has ``w``, ``gradient`` and ``hessian``.
            connection: ``"levi-civita"``, or ``"flat"`` for rangamani2019's operator
                :math:`G^{-1} H` compressed to the horizontal space, which agrees at critical
                points only.

        Raises:
            ValueError: Another connection, a point of another layout, or a loss that is not
                invariant under the group.
            NotOnManifoldError: The point is not on the manifold.
        """
        return RiemannianHessian(self, point, connection)

    @__scaling__(ScalingInfo.NotCompatible)
    def riemannian_ggn(self, point) -> Operator:
        r"""The Gauss–Newton matrix as a form on the quotient, :math:`P D^{-1} G D^{-1} P`, in frame
        coordinates.

        Positive semidefinite for a convex loss; its eigenvalues are invariant on the orbit. No
        connection enters: it is the pull-back of a form on the outputs.

        Args:
            point: A :class:`~quotientnet.Point`: has ``w``, ``gradient`` and ``ggn``.

        Raises:
            ValueError: As :meth:`riemannian_hessian`.
            NotOnManifoldError: The point is not on the manifold.
        """
        return RiemannianForm(self, point, lambda: point.ggn)

    @__scaling__(ScalingInfo.NotCompatible)
    def connection_term(self, x: Tensor, gradient: Tensor, u: Tensor) -> Tensor:
        r"""The covector :math:`\Gamma u` by which the Hessian of the metric's Levi-Civita
        connection exceeds the Euclidean one: :math:`-\Gamma^k_{ij} u^i \partial_k f`.

        Derived from the frame by automatic differentiation.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            metric = self.frame(x) ** 2
            raised = self._keep(gradient / metric.detach())
            pairing = torch.zeros_like(x, requires_grad=True)
            (pulled,) = torch.autograd.grad(metric, x, pairing, create_graph=True)
            along = [
                torch.autograd.grad(pulled, pairing, s, retain_graph=True)[0]
                for s in (u, raised)
            ]
            (lowered,) = torch.autograd.grad(metric, x, u * raised)
        return -0.5 * self._keep(along[0] * raised + lowered - along[1] * u)

    # -- the intrinsic numbers ---

    @property
    def dimension(self) -> int:
        """The dimension of the quotient, free coordinates less the rank of the group on them."""
        return int((~self._frozen.mask).sum()) - self._orbit_rank()

    def _orbit_rank(self) -> int:
        return self.group.gram(~self._frozen.mask).rank

    # -- points and checks ---

    def random(
        self, *size, dtype=None, device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """A random point, shape ``size`` (by default ``(n,)``): standard normal entries."""
        shape = self._point_shape(size)
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return self._settle(torch.where(x == 0, torch.ones_like(x), x))

    def origin(self, *size, dtype=None, device=None, seed: int | None = 42) -> Tensor:
        """The point with every free entry 1, shape ``size`` (by default ``(n,)``)."""
        return self._settle(
            torch.ones(self._point_shape(size), dtype=dtype, device=device)
        )

    def _settle(self, x: Tensor) -> Tensor:
        """``x`` with zeros held and passive coordinates (variances among them) positive."""
        x = torch.where(self._held_at_zero.to(x.device), torch.zeros_like(x), x)
        return torch.where(self._frozen.mask.to(x.device), x.abs(), x)

    @property
    def _held_at_zero(self) -> Tensor:
        mask = self._frozen.mask.clone()
        mask[self.layout.parameter_size :] = False
        return mask

    def _check_point_on_manifold(self, x: Tensor, *, atol=1e-5, rtol=1e-5):
        reason = self._point_defect(x)
        return reason is None, reason

    def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol=1e-5, rtol=1e-5):
        if not torch.isfinite(u).all():
            return (
                False,
                f"the vector has {listed(self.layout.count(~torch.isfinite(u)))} not finite",
            )
        moved = (u != 0) & self._frozen.mask.to(u.device)
        if moved.any():
            return (
                False,
                f"the vector moves frozen coordinates of {listed(self.layout.count(moved))}",
            )
        vertical = self.norm(x, u - self.proju(x, u))
        length = self.norm(x, u)
        if (vertical > atol + rtol * length).any():
            return False, (
                f"the vector has a vertical part of length {float(vertical.max()):.2e}, more than "
                f"{atol:g} + {rtol:g} times its own; use proju"
            )
        return True, None

    def _point_defect(self, x: Tensor) -> str | None:
        """Why ``x`` is not a point, or None."""
        finite = torch.isfinite(x)
        if not finite.all():
            return f"{listed(self.layout.count(~finite))} entries are NaN or infinite"
        moved = (x != 0) & self._held_at_zero.to(x.device)
        if moved.any():
            return f"frozen zeros have moved in {listed(self.layout.count(moved))}; use projx"
        return self._singular(x)

    def _singular(self, x: Tensor) -> str | None:
        """Where the metric is singular at the finite point ``x``, or None."""
        d = self.frame(x)
        bad = ~(torch.isfinite(d) & (d > 0))
        return (
            f"the frame is singular in {listed(self.layout.count(bad))}"
            if bad.any()
            else None
        )

    def _raise_unless_point(self, x: Tensor, method: str) -> None:
        reason = self._point_defect(x)
        if reason is not None:
            raise NotOnManifoldError(f"{self.name}.{method}: {reason}")

    def _check_connection(self, connection: str) -> None:
        if connection not in ("levi-civita", "flat"):
            raise ValueError(
                f"{self.name}.riemannian_hessian: connection must be 'levi-civita' or 'flat', got "
                f"{connection!r}"
            )

    def _checked_frame(self, x: Tensor, method: str, *vectors: Tensor) -> Tensor:
        self._check_tangents(method, x, *vectors)
        d = self.frame(x)
        if not torch.isfinite(d.sum()):
            self._raise_unless_point(x, method)
        return d

    def _checked(
        self, numbers: Tensor, method: str, x: Tensor, *vectors: Tensor
    ) -> Tensor:
        """The ``numbers`` of a result, or the reason why they are not finite."""
        if not torch.isfinite(numbers.detach().sum()):
            self._raise_unless_point(x, method)
            self._refuse_nonfinite(method, *vectors)
            raise ValueError(f"{self.name}.{method}: the result {OVERFLOW}")
        return numbers

    def extra_repr(self) -> str:
        return f"{self.layout.size} coordinates, {self.group.dimension} generators"
