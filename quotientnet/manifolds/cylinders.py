r"""Products of cylinders: the total space of the log-polar metric, in closed form.

With :math:`w_b = e^{s_b} u_b`, :math:`\|u_b\| = 1`, the metric
:math:`\sum_b \langle\xi_b, \eta_b\rangle / \|w_b\|^2` is :math:`\sum_b ds_b^2 + |du_b|^2`: each
block lives on a cylinder :math:`R \times S^{d_b - 1}`. A block's *rate* is
:math:`\rho_b(\xi) = \langle w_b, \xi_b\rangle / \|w_b\|^2`. Two geometries share one interface:
blocks with a norm, and single entries, where the sphere is two points and everything is a product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from quotientnet.manifolds.blocks import CHUNK, Blocks
from quotientnet.manifolds.entire import cos_sqrt, sinc_sqrt, versine_sqrt
from quotientnet.manifolds.frozen import Frozen

__all__ = ["Separation", "Cylinders", "make_cylinders"]


@dataclass(frozen=True)
class Separation:
    """How ``y`` lies from ``x``, block by block.

    Attributes:
        rates: Difference of log-norms, shape ``(..., count)``.
        squared_angles: Squared angle between the directions; infinite where a block of one
            entry has the other sign.
        antipodal: Where the directions are opposite, so that no shortest geodesic is singled out.
        logarithm: From rates to the tangent vector at ``x`` with those rates and these angles.
    """

    rates: Tensor
    squared_angles: Tensor
    antipodal: Tensor
    logarithm: Callable[[Tensor], Tensor]


class Cylinders(ABC):
    """The total space, before any quotient.

    Args:
        blocks: The partition.
        frozen: The blocks that do not move.
    """

    def __init__(self, blocks: Blocks, frozen: Frozen):
        self.blocks, self.frozen, self.fill = blocks, frozen, frozen.fill

    @abstractmethod
    def radii(self, x: Tensor) -> Tensor:
        """``‖x_b‖``, 1 where frozen, shape ``(..., count)``."""

    @abstractmethod
    def rates(self, x: Tensor, u: Tensor, out: Tensor | None = None) -> Tensor:
        """``ρ_b(u)``, 0 where frozen; not finite where ``x`` is singular."""

    @abstractmethod
    def products(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``⟨u_b, v_b⟩/‖x_b‖²``, 0 where frozen."""

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The sum of :meth:`products`, shape ``(...)``."""
        return self.products(x, u, v).sum(-1)

    @abstractmethod
    def slopes(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        """``⟨x_b, g_b⟩``, the rates of the gradient ``‖x_b‖² g_b``, and ``‖x_b‖²`` where a block is
        more than an entry."""

    @abstractmethod
    def exp(self, x: Tensor, u: Tensor, out: Tensor | None = None) -> Tensor:
        """The end of the geodesic from ``x`` with velocity ``u``."""

    @abstractmethod
    def separation(self, x: Tensor, y: Tensor) -> Separation:
        """Rates and angles between two points."""

    @abstractmethod
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``v`` carried parallel along the shortest geodesic from ``x`` to ``y``."""

    @abstractmethod
    def transport_along(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``v`` carried parallel along the geodesic from ``x`` with velocity ``u``."""


def make_cylinders(blocks: Blocks, frozen: Frozen) -> Cylinders:
    """The geometry that fits the blocks."""
    return (_Lines if blocks.entrywise else _Spheres)(blocks, frozen)


class _Lines(Cylinders):
    """Every block is one entry: the group of nonzero numbers, ``s = ln|w|``."""

    def radii(self, x):
        return self.fill(x.abs(), 1.0)

    def rates(self, x, u, out=None):
        if out is not None:
            return self.fill(torch.div(u, x, out=out), 0.0, in_place=True)
        return self.fill(u / self.fill(x, 1.0), 0.0)

    def products(self, x, u, v):
        filled = self.fill(x, 1.0)
        return self.fill((u / filled) * (v / filled), 0.0)

    def inner(self, x, u, v):
        plain = x.ndim == u.ndim == v.ndim == 1 and x.is_cpu and not self.frozen.any
        if not plain or x.requires_grad or u.requires_grad or v.requires_grad:
            return super().inner(x, u, v)
        pieces = zip(*(t.split(CHUNK) for t in (x, u, v)))
        sums = [torch.dot(b / a, (b if v is u else c) / a) for a, b, c in pieces]
        return torch.stack(sums).sum(dtype=torch.float64)

    def slopes(self, x, g):
        rates = x * g
        if torch.count_nonzero(x) < x.numel():
            rates = rates.masked_fill(x == 0, torch.nan)
        return self.fill(rates, 0.0), None

    def exp(self, x, u, out=None):
        return torch.mul(x, torch.exp(self.rates(x, u), out=out), out=out)

    def separation(self, x, y):
        dtype = x.dtype
        x, y = self.fill(x.double(), 1.0), self.fill(y.double(), 1.0)
        relative = (y - x) / x
        near = relative.abs() < 0.5
        small = torch.log1p(torch.where(near, relative, torch.zeros_like(relative)))
        rates = torch.where(near, small, torch.log((y / x).abs()))
        opposite = torch.sign(x) != torch.sign(y)
        angles = torch.zeros_like(rates).masked_fill(opposite, torch.inf)

        def logarithm(r: Tensor) -> Tensor:
            return self.fill(x * r, 0.0).to(dtype)

        return Separation(rates, angles, torch.zeros_like(near), logarithm)

    def transport(self, x, y, v):
        return self.fill(v * (y / self.fill(x, 1.0)), 0.0)

    def transport_along(self, x, u, v):
        return self.fill(v * torch.exp(self.rates(x, u)), 0.0)


class _Spheres(Cylinders):
    """Blocks with a norm; numbers per block are float64."""

    def _squared_norms(self, x: Tensor) -> Tensor:
        return self.fill(self.blocks.dot(x, x), 1.0)

    def radii(self, x):
        return self._squared_norms(x).sqrt()

    def rates(self, x, u, out=None):
        n2, along = self.blocks.dots((x, x), (x, u))
        return self.fill(along, 0.0) / self.fill(n2, 1.0)

    def products(self, x, u, v):
        n2, product = self.blocks.dots((x, x), (u, v))
        return self.fill(product, 0.0) / self.fill(n2, 1.0)

    def slopes(self, x, g):
        n2, along = self.blocks.dots((x, x), (x, g))
        n2 = self.fill(n2, 1.0)
        return self.fill(along, 0.0).masked_fill(n2 == 0, torch.nan), n2

    def _velocity(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms, rates and squared angular speeds."""
        n2, along, length2 = self.blocks.dots((x, x), (x, u), (u, u))
        n2 = self.fill(n2, 1.0)
        rate = self.fill(along, 0.0) / n2
        speed2 = self.fill(length2, 0.0) / n2 - rate**2
        return n2, rate, speed2.masked_fill(self._single(n2), 0.0)

    def _single(self, like: Tensor) -> Tensor:
        """The blocks of one entry, which cannot turn."""
        return self.blocks.lengths.to(like.device) == 1

    def exp(self, x, u, out=None):
        _, rate, speed2 = self._velocity(x, u)
        c, s, growth = cos_sqrt(speed2), sinc_sqrt(speed2), rate.exp()
        on_u = self.fill(growth * s, 0.0)
        return self.blocks.combine(growth * (c - rate * s), x, on_u, u, out=out)

    def separation(self, x, y):
        blocks = self.blocks
        n2, m2 = self._squared_norms(x), self._squared_norms(y)
        sign = torch.where(blocks.dot(x, y) < 0, -1.0, 1.0).to(n2)
        octaves = torch.round((torch.log2(m2) - torch.log2(n2)) / 2).detach()
        # Scaling by a power of two is exact, so the difference of nearby blocks is, too.
        scale = sign * torch.exp2(-octaves)
        difference = blocks.combine(scale, y, -torch.ones_like(scale), x)
        along = self.fill(blocks.dot(x, difference), 0.0) / n2
        rest = blocks.combine(None, difference, -along, x)
        single = self._single(n2)
        across2 = self.fill(blocks.dot(rest, rest), 0.0).masked_fill(single, 0.0) / n2
        growth = torch.log1p(2 * along + blocks.dot(difference, difference) / n2) / 2
        rates = self.fill(growth + octaves * log(2), 0.0)
        angle2, ratio = _squared_angle(across2, 1 + along, sign)
        opposite = self.fill((sign < 0).double(), 0.0) > 0
        angle2 = angle2.masked_fill(opposite & single, torch.inf)
        tiny = 4 * torch.finfo(x.dtype).eps
        antipodal = opposite & ~single & (across2 <= tiny**2)

        def logarithm(r: Tensor) -> Tensor:
            turn = ratio * sign
            return blocks.combine(r - turn * along, x, self.fill(turn, 0.0), difference)

        return Separation(rates, self.fill(angle2, 0.0), antipodal, logarithm)

    def transport(self, x, y, v):
        blocks, n, m = self.blocks, self.radii(x), self.radii(y)
        rate = self.fill(blocks.dot(x, v), 0.0) / n**2
        # The sphere's transport from u to u' is the reflection in u + u' on vectors tangent at u.
        bisector = blocks.combine(1 / n, x, 1 / m, y)
        tangent = blocks.combine(1 / n, v, -rate / n, x)
        length2 = blocks.dot(bisector, bisector)
        turn = (
            -2 * blocks.dot(tangent, bisector) / length2.masked_fill(length2 == 0, 1.0)
        )
        turned = blocks.combine(None, tangent, self.fill(turn, 0.0), bisector)
        # Near the antipode the bisector is inaccurate: take out what it leaves along y.
        leak = self.fill(blocks.dot(y, turned), 0.0) / m
        return blocks.combine(self.fill(m, 0.0), turned, rate - leak, y)

    def transport_along(self, x, u, v):
        n2, rate, speed2 = self._velocity(x, u)
        carried = self.fill(self.blocks.dot(x, v), 0.0) / n2
        turn = self.fill(self.blocks.dot(u, v), 0.0) / n2 - rate * carried
        c, s, versine = cos_sqrt(speed2), sinc_sqrt(speed2), versine_sqrt(speed2)
        growth = rate.exp()
        on_u = carried * s + turn * versine
        on_x = carried * (c - 1) - rate * on_u - turn * s
        moved = self.blocks.combine(growth * on_x, x, growth * on_u, u)
        return self.blocks.combine(None, moved, self.fill(growth, 0.0), v)


def _squared_angle(
    across2: Tensor, along: Tensor, sign: Tensor
) -> tuple[Tensor, Tensor]:
    """The square of the angle with tangent ``√across2/along`` (of its supplement where
    ``sign < 0``), and the angle's ratio to ``√across2``; smooth where both directions coincide.
    """
    near = across2 < 1e-6 * along**2
    across = torch.where(near, torch.ones_like(across2), across2).sqrt()
    wide = torch.atan2(across, along)
    base = along.masked_fill(~near, 1.0)
    slope2 = torch.where(near, across2, torch.zeros_like(across2)) / base**2
    series = (1 - slope2 / 3 + slope2**2 / 5) / base
    short = torch.where(near, series, wide / across)
    length = torch.where(across2 > 0, across2, torch.ones_like(across2)).sqrt()
    supplement = pi - short * torch.where(across2 > 0, length, torch.zeros_like(length))
    back = sign < 0
    angle2 = torch.where(back, supplement**2, across2 * short**2)
    return angle2, torch.where(back, supplement / length, short)
