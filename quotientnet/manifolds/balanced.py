"""The balanced quotient: every orbit has one canonical network, and zeros are no singularity."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from geoopt.manifolds.base import ScalingInfo
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.exponent_matrix import exponent_matrix
from quotientnet.exponents import compact_group, compact_sums
from quotientnet.gram import Gram
from quotientnet.group import ScalingGroup, as_group
from quotientnet.manifolds.base import QuotientManifold
from quotientnet.manifolds.blocks import Blocks
from quotientnet.manifolds.vectors import listed
from quotientnet.symmetry.balance import balancing, levels_of

__all__ = ["BalancedQuotient"]


@dataclass(frozen=True)
class _Place:
    """What is known at one point: ``t*``, the frame, the Gram matrix of its orbit's velocities."""

    x: Tensor
    t: Tensor
    frame: Tensor
    gram: Gram


class BalancedQuotient(QuotientManifold):
    r"""Parameters modulo a scaling group with the metric of the canonical network:
    :math:`\langle E\xi, E\eta\rangle`, :math:`E = e^{A t^*(w)}`.

    With :math:`t^*` from :func:`~quotientnet.canonical`, the canonical points
    :math:`\{A^\top (w^2) = c\}` carry their Euclidean metric, orbits meet them at right angles, and
    the quotient is isometric to them. So the metric is invariant and finite at zero weights, and
    the Riemannian Hessian of an invariant loss is :math:`P H(w^*) P` at every point: the Euclidean
    curvature of the canonical network, without its orbit.

    Not every point has a canonical network. Units whose weights are zero on one side or on both,
    and sets of units that run away together, are refused by name.

    Geodesics have no closed form; see :meth:`chordal_distance`.

    Args:
        group: The scaling group, or what :func:`~quotientnet.discover` returned.
        levels: See :func:`~quotientnet.symmetry.balancing`.
        exclude: A point, shape ``(n,)``: the generators that are refused there are left out of the
            group, so that what they scale is no longer scale-free.

    Raises:
        NotOnManifoldError: In methods, at a point that has no canonical network.
        ValueError: In methods, at a point whose scales are too far apart for float64.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> manifold = qn.BalancedQuotient(qn.discover(model, torch.randn(4, 2).double()))
        >>> w = manifold.layout.flatten(model)
        >>> w[:2] = 0.0
        >>> y = manifold.group.act(w, torch.tensor([1.0, -2.0, 3.0]))
        >>> bool(manifold.chordal_distance(w, y) < 1e-12)
        True
    """

    __scaling__ = QuotientManifold.__scaling__.copy()
    _without_geodesics = (
        "geodesics of the canonical networks have no closed form, so neither have distances; use "
        "retr, or chordal_distance, a lower bound of the distance"
    )

    def __init__(
        self,
        group: ScalingGroup,
        *,
        levels: Mapping[str, float] | Tensor | None = None,
        exclude: Tensor | None = None,
    ):
        group = as_group(group, type(self).__name__)
        super().__init__(group)
        self.blocks = Blocks(self.layout, {e.name: () for e in self.layout.entries})
        self.levels = levels_of(group, levels)
        self._places: deque[_Place] = deque(maxlen=2)
        self._supports: deque[Tensor] = deque(maxlen=2)
        if exclude is not None:
            self._leave_out(exclude)

    def __getstate__(self):
        # What is known of points is found again.
        return self.__dict__ | {"_places": deque(maxlen=2)}

    def _leave_out(self, point: Tensor) -> None:
        """Restrict the group to the generators that have a balance at a point."""
        self.layout.check(point, self.name, "exclude")
        if point.ndim != 1 or not torch.isfinite(point).all():
            raise ValueError(
                f"{self.name}: exclude must be one finite point, shape (n,)"
            )
        found = balancing(point, self.group, levels=self.levels, runaways="exclude")
        left = ~found.balanced
        kept = self.group.without(left.numpy())
        support = (point != 0).cpu() & ~self._frozen.mask
        free = torch.nonzero(~left)[:, 0][kept.gram(support).free_generators]
        left[free] = True
        self.group, self.levels = self.group.without(left.numpy()), self.levels[~left]

    # -- the canonical network ---

    @__scaling__(ScalingInfo.NotCompatible)
    def canonical(self, x: Tensor) -> Tensor:
        """The canonical points of the orbits, shape ``(..., n)``: a class invariant.

        Raises:
            NotOnManifoldError: Units run away or move nothing, by name.
        """
        self._check_tangents("canonical", x)
        t = self._coordinates(x)
        return self.group.act(x.double(), t).to(x.dtype)

    @__scaling__(ScalingInfo.NotCompatible)
    def chordal_distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of the canonical networks in the space of parameters, shape ``(...)``.

        Zero exactly on one orbit, and a lower bound of the geodesic distance, which it approaches
        for close points. A class invariant of both arguments. Permutations and signs are not in
        the group; they are isometries of this distance.
        """
        self._check_tangents("chordal_distance", x, y)
        return self._keep(self.canonical(x) - self.canonical(y)).norm(dim=-1)

    def frame(self, x: Tensor) -> Tensor:
        """``e^{A t*(x)}``, 1 on running statistics; shape ``(..., n)``."""
        self._check_tangents("frame", x)
        if torch.is_grad_enabled() and x.requires_grad:
            return self._frame(self._coordinates(x)).to(x.dtype)
        frames = [place.frame for place in self._at(x)]
        return torch.stack(frames).reshape(x.shape) if frames else torch.ones_like(x)

    def _frame(self, t: Tensor) -> Tensor:
        scales = self.group.exponents(t)
        scales = scales.exp() if scales.requires_grad else scales.exp_()
        return self._frozen.fill(scales, 1.0)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim=False
    ) -> Tensor:
        """``⟨E u, E v⟩``, shape ``(...)``; ``v`` defaults to ``u``. A class invariant."""
        return self._products(x, u, v).sum(-1, keepdim=keepdim)

    def _products(self, x: Tensor, u: Tensor, v: Tensor | None) -> Tensor:
        v = u if v is None else v
        d = self._checked_frame(x, "inner", u, v)
        return self._checked(self._keep((d * u) * (d * v)), "inner", x, u, v)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """The metric of each tensor, on each of its entries, shape ``(..., n)``.

        Single entries are no components: horizontal vectors couple them, so that an optimizer which
        divides by the size of an entry's gradients would divide by zero.
        """
        products = self._products(x, u, v)
        sums = self.blocks.dot(products, torch.ones_like(products))
        return self.blocks.expand(sums).to(x.dtype)

    # -- what the base derives, from the one factorisation ---

    @__scaling__(ScalingInfo())
    def vertical_coordinates(self, x: Tensor, u: Tensor) -> Tensor:
        """The ``t``, shape ``(..., k)``, for which ``(A t) ⊙ x`` is the vertical part of ``u``.

        Solves ``VᵀV t = Vᵀ E u`` with ``V = diag(w*) A``.
        """
        self._check_tangents("vertical_coordinates", x, u)
        if torch.is_grad_enabled() and x.requires_grad:
            raise NotImplementedError(
                f"{self.name}.proju: differentiable in the vector only; use x.detach()"
            )
        if x.ndim == 1:
            (place,) = self._at(x)
            rates = self._keep((place.frame.square() * x) * u).double()
            sums = self._checked(self.group.adjoint(rates), "proju", x, u)
            return place.gram.solve(sums).to(u)
        d = self.frame(x)
        rates = self.group.adjoint(self._keep((d * d) * (x * u)).double())
        rates = self._checked(rates, "proju", x, u)
        places = self._at(x.expand(*rates.shape[:-1], x.shape[-1]))
        return _solved(places, rates).to(u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The canonical network of ``x + u``, moved along its orbit as ``x`` lies on its own.

        Second order for horizontal ``u``, and equivariant: the frame is the same at both points.

        Raises:
            NotOnManifoldError: ``x + u`` has no canonical network.
        """
        self._check_tangents("retr", x, u)
        back = self._coordinates_near(x + u, x) - self._coordinates(x)
        moved = self.group.act((x + u).double(), back).to(x.dtype)
        return torch.where(self._frozen.mask.to(x.device), x + u, moved)

    @__scaling__(ScalingInfo.NotCompatible)
    def riemannian_hessian(self, point, connection: str = "levi-civita"):
        r"""The Riemannian Hessian :math:`P H(w^*) P` in frame coordinates, ``z = E ξ``.

        For an invariant loss the connection's term is orthogonal to the horizontal space at every
        point, critical or not, so both connections give one operator. See the base class.
        """
        self._check_connection(connection)
        return super().riemannian_hessian(point, "flat")

    # -- points ---

    def _coordinates(self, x: Tensor) -> Tensor:
        """``t*``, shape ``(..., k)``, float64, differentiable once."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Coordinates.apply(x, self)
        shape = (*x.shape[:-1], self.group.dimension)
        empty = x.new_zeros(0, self.group.dimension, dtype=torch.float64)
        return torch.cat([empty, *(p.t[None] for p in self._at(x))]).reshape(shape)

    def _coordinates_near(self, y: Tensor, x: Tensor) -> Tensor:
        """``t*(y)``, found from that of ``x``, and not remembered: what is depends on no past."""
        if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad):
            return self._coordinates(y)
        rows, points = (
            t.expand(y.shape).reshape(-1, y.shape[-1]) for t in (y.detach(), x.detach())
        )
        found = [
            self._balance(row, self._place(point).t) for row, point in zip(rows, points)
        ]
        empty = y.new_zeros(0, self.group.dimension, dtype=torch.float64)
        shape = (*y.shape[:-1], self.group.dimension)
        return torch.cat([empty, *(t[None] for t in found)]).reshape(shape)

    def _at(self, x: Tensor) -> list[_Place]:
        return [self._place(row) for row in x.detach().reshape(-1, x.shape[-1])]

    def _place(self, x: Tensor) -> _Place:
        # Running statistics do not count.
        moving = x[: self.layout.parameter_size]
        for place in self._places:
            if (
                place.x.dtype == x.dtype
                and place.x.device == x.device
                and torch.equal(place.x, moving)
                and torch.isfinite(x).all()
            ):
                return place
        t = self._balance(x)
        frame = self._frame(t)
        gram = self._gram_of(self._keep((frame * x).square_()))
        place = _Place(moving.clone(), t, frame.to(x.dtype), gram)
        self._places.append(place)
        return place

    def _gram_of(self, weight: Tensor) -> Gram:
        """That of the velocities; on the entries that differ, where these are few."""
        small = compact_group(self.group)
        if exponent_matrix(small) is None:
            return self.group.gram(weight)
        return small.gram(compact_sums(self.group, weight))

    def _balance(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """``t*`` of one point."""
        reason = super()._point_defect(x) if not torch.isfinite(x).all() else None
        reason = reason or self._idle(x)
        if reason is not None:
            raise NotOnManifoldError(f"{self.name}: {reason}")
        options = {"levels": self.levels, "runaways": "exclude", "start": start}
        found = balancing(x, self.group, **options)
        if found.excluded:
            raise NotOnManifoldError(
                f"{self.name}: {len(found.excluded)} generators have no balance here and run away: "
                f"{listed(dict.fromkeys(found.excluded, 1))}; pass exclude=w when you build the "
                "manifold, or other levels"
            )
        return found.t.to(x.device)

    def _idle(self, x: Tensor) -> str | None:
        """Which generators move nothing at ``x``, where the quotient has no tangent space."""
        support = (x != 0).cpu() & ~self._frozen.mask
        if support.all() or any(torch.equal(support, seen) for seen in self._supports):
            return None
        names = [self.group.names[j] for j in self.group.gram(support).free_generators]
        if names:
            return (
                f"{len(names)} generators move nothing here, all that they scale is zero: "
                f"{listed(dict.fromkeys(names, 1))}; pass exclude=w when you build the manifold"
            )
        self._supports.append(support)
        return None

    def _singular(self, x: Tensor) -> str | None:
        try:
            self._at(x)
        except NotOnManifoldError as error:
            return str(error)
        return None


def _solved(places: list[_Place], b: Tensor) -> Tensor:
    """The solution of each row's own system, shape ``(..., k)``."""
    rows = b.unsqueeze(0).flatten(0, -2)
    solutions = [place.gram.solve(row) for place, row in zip(places, rows)]
    return torch.stack(solutions).reshape(b.shape) if solutions else b


class _Coordinates(torch.autograd.Function):
    """``t*(x)``, whose derivative is ``−(VᵀV)⁺ Vᵀ E dx`` by the implicit function theorem."""

    @staticmethod
    def forward(ctx, x: Tensor, manifold: BalancedQuotient) -> Tensor:
        ctx.manifold = manifold
        ctx.save_for_backward(x)
        return manifold._coordinates(x.detach())

    @staticmethod
    def backward(ctx, gradient: Tensor):
        manifold, x = ctx.manifold, _Once.apply(ctx.saved_tensors[0])
        group, t = manifold.group, manifold._coordinates(x.detach())
        pulled = group.exponents(_solved(manifold._at(x), gradient))
        scaled = group.exponents(2 * t).exp() * x.double()
        return -manifold._keep(pulled * scaled).to(x.dtype), None


class _Once(torch.autograd.Function):
    """The identity, where a further derivative would be wrong."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        raise NotImplementedError(
            "BalancedQuotient.frame: only first derivatives are available"
        )
