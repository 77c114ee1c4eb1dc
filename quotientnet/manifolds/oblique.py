r"""Products of spheres of fixed radii: the directions that BN-sharpness searches.

The sphere of radius ``r`` is the part of a cylinder (see :mod:`quotientnet.manifolds.cylinders`)
where the norm is ``r``, and its geodesics, logarithms and transports are the cylinder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from math import inf, pi

import torch
from geoopt.manifolds.base import ScalingInfo
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.group import ScalingGroup, as_group
from quotientnet.layout import ParameterLayout
from quotientnet.manifolds.cylinders import Separation, make_cylinders
from quotientnet.manifolds.entire import cos_sqrt, sinc_sqrt
from quotientnet.manifolds.frozen import Frozen
from quotientnet.manifolds.partition import Partition
from quotientnet.manifolds.vectors import (
    LayoutManifold,
    held_at_zero,
    listed,
    positive_radii,
    safe_sqrt,
)
from quotientnet.options import require_kind
from quotientnet.symmetry.normalised import normalised_blocks

__all__ = ["ProductOblique"]


class ProductOblique(LayoutManifold):
    r"""Vectors with :math:`\|v_b\| = r_b` on each block and a joint sphere for the rest, with the
    Euclidean metric: Eq. (12) and §4.1 of [Yi2019]_.

    Parameters in no numbered block form one joint block, of norm ``rest_radius``. Running
    statistics and frozen coordinates are held at 0. A block of one entry is a pair of points; one
    that is frozen altogether has no radius.

    It is a submanifold of Euclidean space and no quotient: every vector tangent to the spheres
    counts. :meth:`at` makes the one whose radii are the norms of a point's normalised filters.

    Args:
        layout: The coordinates.
        radii: The norm of each block, shape ``(count,)``, positive.
        blocks: The number of each entry's block, from 0, or −1 for the joint block: an integer
            array that broadcasts to the tensor's shape, by name. Tensors not named are joint.
        rest_radius: The norm of the joint block.
        frozen: Boolean mask, shape ``(n,)``, of coordinates held at 0.

    Raises:
        ValueError: A radius that is not positive, blocks that do not fit the layout or the radii,
            or a mask of another shape.
        TypeError: An argument of another kind; block numbers that are not integer.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> layout = qn.ParameterLayout({"rows": (2, 2), "last": (2,)})
        >>> sphere = qn.ProductOblique(layout, torch.tensor([5.0, 1.0]), {"rows": [[0], [1]]})
        >>> sphere.projx(torch.tensor([3.0, 4.0, 0.0, 9.0, 0.0, 7.0]))
        tensor([3., 4., 0., 1., 0., 1.])
    """

    __scaling__ = LayoutManifold.__scaling__.copy()

    def __init__(
        self,
        layout: ParameterLayout,
        radii: Tensor,
        blocks: Mapping[str, Tensor],
        *,
        rest_radius: float = 1.0,
        frozen: Tensor | None = None,
    ):
        super().__init__()
        remedy = "ParameterLayout.from_module(model) makes one"
        require_kind(layout, ParameterLayout, self.name, "layout", remedy)
        require_kind(blocks, Mapping, self.name, "blocks", "pass numbers by the tensor's name")
        count = len(positive_radii(self.name, radii, rest_radius)) - 1
        self._layout = layout
        self._frozen = Frozen(held_at_zero(self.name, layout, frozen))
        held = self._frozen.mask
        self.blocks = Partition(layout, blocks, count, held, self.name)
        self._still = Frozen(self.blocks.lengths == 0)
        self._spheres = make_cylinders(self.blocks, self._still)
        self._set_radii(radii, rest_radius)

    @classmethod
    def at(
        cls,
        w: Tensor,
        group: ScalingGroup,
        *,
        rest_radius: float = 1.0,
        frozen: Tensor | None = None,
    ) -> ProductOblique:
        r"""The directions ``v`` with :math:`\|v_i\| = \|w_i\|` for each normalised filter and
        :math:`\|v_{rest}\| = 1`: Def. 3.1 of [Yi2019]_.

        The blocks are those of :func:`~quotientnet.symmetry.normalised_blocks`: the support of
        each generator that scales all it touches alike, so a filter together with its bias. With
        :math:`t` a scaling of these, the set is equivariant: ``ProductOblique.at(t·w)`` is
        ``t·ProductOblique.at(w)``. The rest, among it scale and shift of batch normalisation, does
        not follow scalings of hidden units. Without normalised filters it is the unit sphere.

        Args:
            w: A point, shape ``(n,)``.
            group: The scaling group, or what :func:`~quotientnet.discover` returned.
            rest_radius: The norm of all other parameters together.
            frozen: Boolean mask, shape ``(n,)``, of coordinates in which no direction moves. Radii
                are still the norms of whole filters.

        Raises:
            NotOnManifoldError: A normalised filter is zero, or ``w`` is not finite.

        Example:
            >>> import torch
            >>> import quotientnet as qn
            >>> model = torch.nn.Sequential(
            ...     torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
            >>> symmetry = qn.discover(model, torch.randn(4, 3))
            >>> w = symmetry.group.layout.flatten(model)
            >>> qn.ProductOblique.at(w, symmetry).radii.shape
            torch.Size([2])
        """
        caller = f"{cls.__name__}.at"
        group = as_group(group, caller)
        layout = group.layout
        layout.check(w, caller)
        if w.ndim != 1:
            raise ValueError(
                f"{caller}: w must be one point, got shape {tuple(w.shape)}"
            )
        if not torch.isfinite(w).all():
            bad = listed(layout.count(~torch.isfinite(w)))
            raise NotOnManifoldError(f"{caller}: entries of {bad} are NaN or infinite")
        found = normalised_blocks(group)
        ones = torch.ones(len(found.generators))
        one = cls(layout, ones, found.index, rest_radius=rest_radius, frozen=frozen)
        radii = one._spheres.radii(w.detach().to(torch.float64)).cpu()
        numbered = radii[: one.blocks.rest]
        if not numbered.all():
            zero = radii.index_fill(0, torch.arange(len(ones), len(radii)), 1.0) == 0
            raise NotOnManifoldError(
                f"{caller}: normalised filters are zero in {listed(one.blocks.named(zero))}, where "
                "the network is not defined; freeze them, or take their generators out with "
                "group.without(...)"
            )
        return one.with_radii(numbered, rest_radius=rest_radius)

    @__scaling__(ScalingInfo.NotCompatible)
    def with_radii(self, radii: Tensor, *, rest_radius: float = 1.0) -> ProductOblique:
        """The same blocks with other norms, without numbering them anew.

        Args:
            radii: The norm of each block, shape ``(count,)``, positive.
            rest_radius: The norm of the joint block.

        Raises:
            ValueError: A radius that is not positive, or another number of them.
        """
        if len(radii) != self.blocks.rest:
            raise ValueError(
                f"{self.name}.with_radii: got {len(radii)} radii for {self.blocks.rest} blocks"
            )
        other = copy(self)
        other._set_radii(radii, rest_radius)
        return other

    @property
    def layout(self) -> ParameterLayout:
        """The coordinates of a point."""
        return self._layout

    @property
    def radii(self) -> Tensor:
        """The norm of each numbered block, float64, shape ``(count,)``; 1 where all is frozen."""
        return self._per_block(torch.device("cpu"))[: self.blocks.rest].clone()

    @property
    def dimension(self) -> int:
        """Free coordinates less one a sphere."""
        return int((self.blocks.lengths - 1).clamp(min=0).sum())

    # -- the metric ---

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim=False
    ) -> Tensor:
        """The Euclidean ``⟨u, v⟩``, shape ``(...)``; ``v`` defaults to ``u``."""
        product = self._products("inner", x, u, v).sum(-1, keepdim=keepdim)
        return product.to(x.dtype)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """``⟨u_b, v_b⟩`` on each entry of block ``b``, shape ``(..., n)``; 0 where frozen."""
        products = self._products("component_inner", x, u, v)
        return self._keep(self.blocks.expand(products).to(x.dtype))

    def _products(self, method: str, x: Tensor, u: Tensor, v: Tensor | None) -> Tensor:
        v = u if v is None else v
        self._check_tangents(method, x, u, v)
        products = self._spheres.fill(self.blocks.dot(u, v), 0.0)
        batch = torch.broadcast_shapes(x.shape[:-1], products.shape[:-1])
        return products.expand(*batch, -1)

    # -- tangent vectors ---

    def proju(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        r"""The part of ``u`` tangent to the spheres, the projection in Eq. (14) of [Yi2019]_,
        :math:`u_b - \langle x_b, u_b\rangle x_b / r_b^2`.

        Args:
            x: Points, shape ``(..., n)``.
            u: Vectors, shape ``(..., n)``.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        return self._tangent("proju", x, u, out)

    def egrad2rgrad(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The Riemannian gradient: :meth:`proju` of the Euclidean one."""
        return self._tangent("egrad2rgrad", x, u, out)

    def _tangent(self, method: str, x: Tensor, u: Tensor, out: Tensor | None) -> Tensor:
        self._check_tangents(method, x, u, out=out)
        radii = self._per_block(x.device)
        rates = self._spheres.fill(self.blocks.dot(x, u), 0.0) / radii**2
        self._checked(rates, method, x, u)
        return self._keep(self.blocks.combine(None, u, -rates, x, out=out), out)

    # -- moving ---

    def retr(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``x + u`` with each block brought to its norm: Eq. (14) of [Yi2019]_.

        Of second order, and twice differentiable for tangent ``u``, also at 0.

        Args:
            x: Points, shape ``(..., n)``.
            u: Tangent vectors, shape ``(..., n)``.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        self._check_tangents("retr", x, u, out=out)
        n2, along, length2 = self.blocks.dots((x, x), (x, u), (u, u))
        norms2 = self._spheres.fill(n2 + 2 * along + length2, 1.0)
        scale = self._per_block(x.device) / norms2.sqrt()
        self._checked(scale, "retr", x, u)
        return self.blocks.combine(scale, x, scale, u, out=out)

    def expmap(self, x: Tensor, u: Tensor, *, out: Tensor | None = None) -> Tensor:
        r"""The end of the geodesic, with :math:`\varphi_b = \|u_b\| / r_b`
        :math:`\cos\varphi_b\, x_b + (\sin\varphi_b/\varphi_b)\, u_b`.

        Args:
            x: Points, shape ``(..., n)``.
            u: Tangent vectors, shape ``(..., n)``.
            out: Where to write the result, shape ``(n,)``; not ``x`` or ``u``.
        """
        self._check_tangents("expmap", x, u, out=out)
        radii = self._per_block(x.device)
        n2, length2 = self.blocks.dots((x, x), (u, u))
        angle2 = self._spheres.fill(length2, 0.0) / radii**2
        # Dividing by the norm that x has keeps rounding errors from adding up over many steps.
        on_x = cos_sqrt(angle2) * radii / self._spheres.fill(n2, 1.0).sqrt()
        self._checked(on_x, "expmap", x, u)
        return self.blocks.combine(on_x, x, sinc_sqrt(angle2), u, out=out)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at ``x`` whose geodesic ends at ``y``, the shortest one.

        Raises:
            ValueError: A block of ``y`` is opposite to that of ``x``: no shortest geodesic, or, for
                a block of one entry, none at all.
            NotOnManifoldError: A block is zero.
        """
        separation = self._separation("logmap", x, y)
        bad = separation.antipodal | torch.isinf(separation.squared_angles)
        if bad.any():
            where = listed(self.blocks.named(bad))
            raise ValueError(
                f"{self.name}.logmap: blocks in {where} are antipodal in y: no shortest geodesic"
            )
        return self._keep(separation.logarithm(torch.zeros_like(separation.rates)))

    def dist2(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The squared geodesic distance ``Σ r_b² φ_b²``, shape ``(...)``."""
        angles2 = self._separation("dist", x, y).squared_angles
        each = self._per_block(x.device) ** 2 * angles2
        return each.sum(-1, keepdim=keepdim).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The geodesic distance, shape ``(...)``; accurate also for nearby points.

        Infinite where a block of one entry has the other sign.
        """
        return safe_sqrt(self.dist2(x, y, keepdim=keepdim))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic from ``x`` to ``y``: an isometry."""
        self._check_tangents("transp", x, y, v)
        return self._checked(self._spheres.transport(x, y, v), "transp", x, y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic from ``x`` with velocity ``u``, of any length."""
        self._check_tangents("transp_follow_expmap", x, u, v)
        carried = self._spheres.transport_along(x, u, v)
        return self._checked(carried, "transp_follow_expmap", x, u, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`expmap` and :meth:`transp_follow_expmap` together."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    def _separation(self, method: str, x: Tensor, y: Tensor) -> Separation:
        self._check_tangents(method, x, y)
        self._checked(self._norms(x, method) + self._norms(y, method), method, x, y)
        return self._spheres.separation(x, y)

    @__scaling__(ScalingInfo(1))
    def injectivity_radius(self) -> float:
        """π times the least radius of a sphere that is more than two points."""
        lengths = self.blocks.lengths
        turning = self._per_block(lengths.device)[lengths > 1]
        return pi * float(turning.min()) if len(turning) else inf

    # -- points ---

    def projx(self, x: Tensor) -> Tensor:
        """The nearest point; what is a point up to rounding is returned as it is.

        Raises:
            NotOnManifoldError: A block is zero, which has no nearest point, or ``x`` is not finite.
        """
        self.layout.check(x, f"{self.name}.projx", "x")
        return self._settled(x, "projx")

    @__scaling__(ScalingInfo.NotCompatible)
    def steepest(self, g: Tensor) -> Tensor:
        r"""The point with the largest :math:`\langle g, v\rangle`: :math:`r_b\, g_b / \|g_b\|`.

        Every point of a block's sphere is one where ``g`` is zero; it has equal entries there.

        Args:
            g: Vectors, shape ``(..., n)``, a gradient say.
        """
        self.layout.check(g, f"{self.name}.steepest", "g")
        g = self._keep(g)
        squares = self.blocks.dot(g, g)
        if not squares[..., : self.blocks.passive].all():
            squares = self.blocks.expand(squares)
            other = self.origin(dtype=g.dtype, device=g.device)
            g = torch.where(squares > 0, g, other)
        return self._settled(g, "steepest")

    def random(
        self, *size, dtype=None, device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """A random point, shape ``size`` (by default ``(n,)``), uniform on each sphere."""
        shape = self._point_shape(size)
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return self._settled(torch.where(x == 0, torch.ones_like(x), x), "random")

    def origin(self, *size, dtype=None, device=None, seed: int | None = 42) -> Tensor:
        """The point with equal entries in each block, shape ``size`` (by default ``(n,)``)."""
        shape = self._point_shape(size)
        return self._settled(torch.ones(shape, dtype=dtype, device=device), "origin")

    def _settled(self, x: Tensor, method: str) -> Tensor:
        """``x`` with every block at its norm, which it keeps if that differs by rounding only."""
        held = self._keep(x)
        scale = self._per_block(x.device) / self._norms(held, method)
        rounding = (scale - 1).abs() <= 16 * torch.finfo(x.dtype).eps
        # The value is 1 there, the derivative that of the scale.
        scale = (
            scale + torch.where(rounding, 1 - scale, torch.zeros_like(scale)).detach()
        )
        if held is x or torch.equal(held, x):
            if rounding.all() and not x.requires_grad:
                return x
        return self.blocks.combine(scale, held)

    def _norms(self, x: Tensor, method: str) -> Tensor:
        """The norm of each block, or the reason why it has no direction; 1 where frozen."""
        norms = self._spheres.radii(x)
        if x.dtype != torch.float64 and not ((norms > 1e-15) & (norms < 1e15)).all():
            norms = self._spheres.radii(
                x.to(torch.float64)
            )  # the squares leave float32
        if (norms == 0).any():
            bad = listed(self.blocks.named(norms == 0))
            raise NotOnManifoldError(
                f"{self.name}.{method}: blocks in {bad} are zero, and no point of a sphere is "
                "nearest to its centre; take them from random(), or freeze them"
            )
        return self._checked(norms, method, x)

    def _check_point_on_manifold(self, x: Tensor, *, atol=1e-5, rtol=1e-5):
        reason = self._defect(x)
        if reason is not None:
            return False, f"{reason}; use projx"
        gaps = (self._spheres.radii(x) / self._per_block(x.device) - 1).abs()
        bad = gaps > atol + rtol
        if bad.any():
            return False, (
                f"norms differ from the radii by up to {float(gaps.max()):.2e} of these, more than "
                f"{atol + rtol:g}, in {listed(self.blocks.named(bad))}; use projx"
            )
        return True, None

    def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol=1e-5, rtol=1e-5):
        reason = self._defect(u)
        if reason is not None:
            return False, f"{reason}; use proju"
        radial = self.blocks.dot(x, u).abs() / self._per_block(x.device)
        bad = radial > atol + rtol * self.blocks.dot(u, u).sqrt()
        if bad.any():
            return False, (
                f"radial parts of up to {float(radial.max()):.2e}, more than {atol:g} + {rtol:g} "
                f"times the length, in {listed(self.blocks.named(bad))}; use proju"
            )
        return True, None

    # -- inside ---

    def _set_radii(self, radii: Tensor, rest_radius: float) -> None:
        radii = positive_radii(self.name, radii, rest_radius)
        radii = torch.cat([radii, radii.new_ones(1)])  # of the passive coordinates
        self._radii = {radii.device: self._still.fill(radii, 1.0)}

    def _per_block(self, device) -> Tensor:
        """The radius of each block, 1 where frozen, shape ``(blocks.count,)``."""
        if device not in self._radii:
            self._radii[device] = next(iter(self._radii.values())).to(device)
        return self._radii[device]

    def _checked(self, numbers: Tensor, method: str, *vectors: Tensor) -> Tensor:
        """``numbers``, or the reason why they are not finite."""
        if torch.isfinite(numbers.detach().sum()):
            return numbers
        self._refuse_nonfinite(method, *vectors)
        if numbers.shape[-1:] == (self.blocks.count,):
            bad = listed(self.blocks.named(~torch.isfinite(numbers)))
            raise NotOnManifoldError(
                f"{self.name}.{method}: blocks in {bad} come to zero, or overflow in this dtype; "
                "pass points of the manifold and tangent vectors (projx, proju)"
            )
        raise ValueError(f"{self.name}.{method}: the result overflows; use float64")

    def extra_repr(self) -> str:
        rest = ", a joint block" if self.blocks.lengths[self.blocks.rest] else ""
        return f"{self.layout.size} coordinates, {self.blocks.rest} spheres{rest}"
