"""The papers' metric on blocks the group scales uniformly, and its quotients in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, pi

import torch
from geoopt.manifolds.base import ScalingInfo
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.gram import Gram
from quotientnet.group import ScalingGroup, as_group
from quotientnet.manifolds.base import OVERFLOW, QuotientManifold
from quotientnet.manifolds.blocks import Blocks
from quotientnet.manifolds.cylinders import Separation, make_cylinders
from quotientnet.manifolds.frozen import Frozen
from quotientnet.manifolds.vectors import listed, safe_sqrt
from quotientnet.symmetry import layer_scale_group

__all__ = ["LogPolarQuotient", "LayerScaleQuotient", "NodeWiseQuotient"]


class LogPolarQuotient(QuotientManifold):
    r"""Parameters modulo a scaling group with the metric
    :math:`\sum_b \langle\xi_b, \eta_b\rangle / \|w_b\|^2` (rangamani2019 Prop. 2.3, 2.5).

    The group must scale each block uniformly. The quotient is
    :math:`\prod_b S^{d_b - 1} \times R^B / \mathrm{range}(A)`, so geodesics, logarithms,
    distances and parallel transport are exact. A block that is zero is not on the manifold.

    Permutations and sign flips are not in the group: networks that differ by them are at a
    positive distance, infinite where an entry that is a block of its own has the other sign.

    Args:
        group: The scaling group.
        blocks: ``"tensors"``, ``"filters"`` (the first axis kept), ``"entries"``, or one of these
            for each name; by default the coarsest blocks that the group scales uniformly.
        frozen_zeros: A point, shape ``(n,)``: the blocks that are zero there are held at zero.

    Raises:
        ValueError: A block that the group scales unevenly, or an unknown kind of block.
    """

    __scaling__ = QuotientManifold.__scaling__.copy()

    def __init__(
        self,
        group: ScalingGroup,
        blocks: str | Mapping[str, str] | None = None,
        frozen_zeros: Tensor | None = None,
    ):
        name = type(self).__name__
        group = as_group(group, name)
        self._kinds = blocks
        self.blocks = Blocks(group.layout, _kept_axes(name, group, blocks))
        held = _zero_blocks(name, self.blocks, frozen_zeros)
        super().__init__(group, self.blocks.expand(held))
        passive = torch.zeros(self.blocks.count, dtype=torch.bool)
        passive[self.blocks.layout.parameter_size :] = True
        frozen = Frozen(held | passive)
        self._cylinders = make_cylinders(self.blocks, frozen)
        self._block_group = ScalingGroup(
            self.blocks.layout, group.incidence, group.classes, group.names
        )
        self._gram = Gram(self._block_group, ~frozen.mask if frozen.any else None)
        self._idle = [
            e for e in self.blocks.layout.entries if e.name not in group.incidence
        ]

    @__scaling__(ScalingInfo.NotCompatible)
    def holding(self, zeros: Tensor) -> LogPolarQuotient:
        """The same manifold with those blocks held at zero that lie in a mask, shape ``(n,)``."""
        point = torch.ones(self.layout.size)
        point[zeros.cpu() | self._held_at_zero] = 0.0
        other = type(self).__new__(type(self))
        LogPolarQuotient.__init__(other, self.group, self._kinds, point)
        return other

    # -- the metric ---

    def frame(self, x: Tensor) -> Tensor:
        """``1/‖x_b‖`` on each block, 1 where frozen; shape ``(..., n)``."""
        self._check_tangents("frame", x)
        return self.blocks.expand(1 / self._cylinders.radii(x)).to(x.dtype)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim=False
    ) -> Tensor:
        """``Σ_b ⟨u_b, v_b⟩/‖x_b‖²``, shape ``(...)``; ``v`` defaults to ``u``. A class invariant.

        Raises:
            NotOnManifoldError: A block of ``x`` is zero.
        """
        v = u if v is None else v
        self._check_tangents("inner", x, u, v)
        product = self._checked(self._cylinders.inner(x, u, v), "inner", x, u, v)
        return (product.unsqueeze(-1) if keepdim else product).to(x.dtype)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """``⟨u_b, v_b⟩/‖x_b‖²`` on each entry of block ``b``, shape ``(..., n)``."""
        v = u if v is None else v
        self._check_tangents("component_inner", x, u, v)
        products = self._cylinders.products(x, u, v)
        self._checked(products, "component_inner", x, u, v)
        return self.blocks.expand(products).to(x.dtype)

    # -- horizontal and vertical ---

    @__scaling__(ScalingInfo())
    def vertical_coordinates(self, x: Tensor, u: Tensor) -> Tensor:
        """The ``t``, shape ``(..., k)``, for which ``(A t) ⊙ x`` is the vertical part of ``u``."""
        self._check_tangents("vertical_coordinates", x, u)
        rates = self._cylinders.rates(x, u)
        return self._checked_coordinates(rates, "vertical_coordinates", x, u).to(
            x.dtype
        )

    def proju(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The horizontal part ``u − (Π ρ(u)) ⊙ x``.

        Args:
            x: Points, shape ``(..., n)``.
            u: Vectors, shape ``(..., n)``.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        self._check_tangents("proju", x, u, out=out)
        rates = self._cylinders.rates(x, u, out=out)
        t = self._checked_coordinates(rates, "proju", x, u).to(rates.dtype)
        if not self.blocks.entrywise:
            c = self._block_group.exponents(-t)
            return self._keep(self.blocks.combine(None, u, c, x, out=out), out)
        c = self._block_group.exponents(t, out=out)
        return self._keep(torch.addcmul(u, c, x, value=-1, out=out), out)

    def egrad2rgrad(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The Riemannian gradient: the horizontal part of ``‖x_b‖² u_b``, ``u`` the Euclidean one.

        Args:
            x: Points, shape ``(..., n)``.
            u: Euclidean gradients, shape ``(..., n)``.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        self._check_tangents("egrad2rgrad", x, u, out=out)
        rates, norms2 = self._cylinders.slopes(x, u)
        t = self._checked_coordinates(rates, "egrad2rgrad", x, u).to(rates.dtype)
        if norms2 is not None:
            c = self._block_group.exponents(-t)
            return self._keep(self.blocks.combine(norms2, u, c, x, out=out), out)
        # x² u − (Π x u) x = (x u − Π x u) x
        c = self._block_group.exponents(t, out=out)
        return self._keep(torch.mul(torch.sub(rates, c, out=out), x, out=out), out)

    def _checked_coordinates(
        self, rates: Tensor, method: str, x: Tensor, u: Tensor
    ) -> Tensor:
        """``(AᵀA)⁺ Aᵀ ρ`` in float64; the sums in ``Aᵀ ρ`` also tell whether all is finite."""
        sums = self._block_group.adjoint(rates)
        idle = [rates[..., e.slice].sum() for e in self._idle]
        self._checked(sum(idle, sums.sum()), method, x, u)
        return self._gram.solve(sums)

    def _project_rates(self, rates: Tensor) -> Tensor:
        """``Π ρ``, the part of the rates that is along orbits; 0 where frozen."""
        t = self._gram.solve(self._block_group.adjoint(rates)).to(rates.dtype)
        return self._cylinders.fill(self._block_group.exponents(t), 0.0)

    # -- geodesics ---

    def retr(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The first-order retraction ``x + u``, equivariant; a large ``u`` can cross zero."""
        self._check_tangents("retr", x, u, out=out)
        return torch.add(x, u, out=out)

    def expmap(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The exact exponential map, everywhere defined and equivariant.

        Args:
            x: Points, shape ``(..., n)``.
            u: Tangent vectors, shape ``(..., n)``; horizontal ones give geodesics of the quotient.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        self._check_tangents("expmap", x, u, out=out)
        return self._checked(self._cylinders.exp(x, u, out=out), "expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The horizontal vector at ``x`` whose geodesic ends on the orbit of ``y``, nearest first.

        ``exp(log y)`` lies on the orbit of ``y`` and need not be ``y``.

        Raises:
            ValueError: A block of ``y`` is opposite to that of ``x``, or an entry that is a block
                of its own has the other sign: no shortest geodesic, or none at all.
            NotOnManifoldError: A block is zero.
        """
        separation = self._separation("logmap", x, y)
        self._refuse(
            torch.isinf(separation.squared_angles),
            "have the other sign in y: they lie in another component at infinite distance",
        )
        self._refuse(separation.antipodal, "are antipodal in y: no shortest geodesic")
        rates = separation.rates
        return separation.logarithm(rates - self._project_rates(rates))

    def dist2(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The squared distance between orbits: ``Σ φ_b² + ‖(I − Π) r‖²``, shape ``(...)``."""
        separation = self._separation("dist", x, y)
        rates = separation.rates - self._project_rates(separation.rates)
        total = (separation.squared_angles + rates**2).sum(-1, keepdim=keepdim)
        if torch.isnan(total).any():
            raise ValueError(f"{self.name}.dist: the ratio of the points {OVERFLOW}")
        return total.to(x.dtype)

    def dist(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The geodesic distance between the orbits of ``x`` and ``y``; 0 exactly on one orbit.

        Passive coordinates do not count: points that differ only there are at distance 0.

        Infinite where an entry that is a block of its own has the other sign. Permutations and
        signs are not in the group, so two trainings of one network are far apart or at infinity.

        Returns:
            Shape ``(...)``, in units of the metric (a doubling of one block is ``ln 2``). A class
            invariant of both arguments.
        """
        return safe_sqrt(self.dist2(x, y, keepdim=keepdim))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic from ``x`` to the orbit of ``y``, and
        along the orbit to ``y``: an isometry that keeps horizontal vectors horizontal.
        """
        self._check_tangents("transp", x, y, v)
        return self._checked(self._cylinders.transport(x, y, v), "transp", x, y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic from ``x`` with velocity ``u``, of any length."""
        self._check_tangents("transp_follow_expmap", x, u, v)
        carried = self._cylinders.transport_along(x, u, v)
        return self._checked(carried, "transp_follow_expmap", x, u, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`expmap` and :meth:`transp_follow_expmap` together."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    def _separation(self, method: str, x: Tensor, y: Tensor) -> Separation:
        self._check_tangents(method, x, y)
        self._raise_unless_point(x, method)
        self._raise_unless_point(y, method)
        return self._cylinders.separation(x, y)

    def _refuse(self, blocks: Tensor, why: str) -> None:
        if blocks.any():
            raise ValueError(
                f"{self.name}.logmap: blocks of {listed(self.blocks.layout.count(blocks))} {why}"
            )

    # -- curvature ---

    @__scaling__(ScalingInfo.NotCompatible)
    def connection_term(self, x: Tensor, gradient: Tensor, u: Tensor) -> Tensor:
        """``ρ_b(u) g_b + (⟨g_b, u_b⟩/‖x_b‖²) x_b − ρ_b(g) u_b``: the Levi-Civita connection."""
        rate, slope = self._cylinders.rates(x, u), self._cylinders.rates(x, gradient)
        pairing = self._cylinders.products(x, gradient, u)
        turned = self.blocks.combine(rate, gradient, pairing, x)
        return self._keep(self.blocks.combine(None, turned, -slope, u))

    @__scaling__(ScalingInfo(1))
    def injectivity_radius(self) -> float:
        """π, or infinity if every free block is a single entry."""
        free = ~self._cylinders.frozen.mask
        return pi if bool((self.blocks.lengths[free] > 1).any()) else inf

    def _orbit_rank(self) -> int:
        return self._gram.rank

    # -- checks ---

    def _singular(self, x: Tensor) -> str | None:
        n = self._cylinders.radii(x)
        bad = torch.isinf(n)
        if bad.any():
            return f"the norms of {listed(self.blocks.layout.count(bad))} {OVERFLOW}"
        bad = n == 0
        if not bad.any():
            return None
        kind = "zero entries" if self.blocks.entrywise else "zero blocks"
        return (
            f"{kind} in parameter {listed(self.blocks.layout.count(bad))}, where this metric is "
            "singular; pass frozen_zeros=w when you build the manifold to hold them at zero"
        )


class LayerScaleQuotient(LogPolarQuotient):
    r"""Blocks are whole tensors: rangamani2019 Prop. 2.3 and, with biases, Prop. 2.5.

    Args:
        group: Any scaling group, or what :func:`discover` returned; its coarsest subgroup counts,
            see :func:`layer_scale_group`.
        frozen_zeros: A point, shape ``(n,)``: the tensors that are zero there are held at zero.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> manifold = qn.LayerScaleQuotient(qn.discover(model, torch.randn(4, 2)))
        >>> w = manifold.origin(dtype=torch.float64)
        >>> y = manifold.group.act(w, torch.tensor([2.0]))
        >>> bool(manifold.dist(w, y) < 1e-12)
        True
    """

    def __init__(self, group: ScalingGroup, *, frozen_zeros: Tensor | None = None):
        group = layer_scale_group(as_group(group, type(self).__name__))
        super().__init__(group, "tensors", frozen_zeros)


class NodeWiseQuotient(LogPolarQuotient):
    r"""Blocks are single entries, so that any scaling group fits: rangamani2019 §6.

    The metric is :math:`\sum_i \xi_i \eta_i / w_i^2`, singular at a zero weight.

    Args:
        group: Any scaling group, or what :func:`discover` returned.
        frozen_zeros: A point, shape ``(n,)``: the entries that are zero there are held at zero.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> qn.NodeWiseQuotient(qn.discover(model, torch.randn(4, 2))).dimension
        10
    """

    def __init__(self, group: ScalingGroup, *, frozen_zeros: Tensor | None = None):
        super().__init__(group, "entries", frozen_zeros)


_KINDS = {
    "tensors": lambda entry: (),
    "filters": lambda entry: (0,) if entry.shape else (),
}
_KINDS["entries"] = lambda entry: tuple(range(len(entry.shape)))


def _kept_axes(name: str, group: ScalingGroup, blocks) -> dict[str, tuple[int, ...]]:
    """The axes along which blocks differ, by tensor; checked against the group."""
    if isinstance(blocks, Mapping):
        unknown = [key for key in blocks if key not in group.layout]
        if unknown:
            raise ValueError(f"{name}: blocks names {unknown[0]!r}, not in the layout")
    kept = {}
    for entry in group.layout.entries:
        kind = blocks.get(entry.name) if isinstance(blocks, Mapping) else blocks
        terms = group.incidence.get(entry.name, ())
        varying = tuple(sorted({axis for term in terms for axis in term.axes}))
        if kind is None or entry.passive:
            kept[entry.name] = (
                varying if blocks != "entries" else _KINDS["entries"](entry)
            )
            continue
        if kind not in _KINDS:
            raise ValueError(
                f"{name}: blocks must be one of {sorted(_KINDS)}, got {kind!r}"
            )
        kept[entry.name] = _KINDS[kind](entry)
        uneven = sorted(set(varying) - set(kept[entry.name]))
        if uneven:
            raise ValueError(
                f"{name}: the group scales {entry.name!r} differently along axis {uneven[0]}, "
                f"inside a block of kind {kind!r}; use NodeWiseQuotient, or blocks=None for the "
                "coarsest blocks that fit"
            )
    return kept


def _zero_blocks(name: str, blocks: Blocks, point: Tensor | None) -> Tensor:
    """The blocks of parameters that are zero at ``point``, shape ``(count,)``."""
    held = torch.zeros(blocks.count, dtype=torch.bool)
    if point is None:
        return held
    blocks.full.check(point, name, "frozen_zeros")
    if point.ndim != 1 or not torch.isfinite(point).all():
        raise NotOnManifoldError(
            f"{name}: frozen_zeros must be one finite point, shape (n,)"
        )
    nonzero = (point.detach().cpu() != 0).to(torch.float64)
    held = blocks.dot(nonzero, nonzero) == 0
    held[blocks.layout.parameter_size :] = False
    return held
