"""Manifolds whose points are flat vectors of a layout: what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from math import inf

import geoopt
import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.manifolds.frozen import Frozen
from quotientnet.options import require_number

__all__ = ["LayoutManifold"]


class LayoutManifold(geoopt.Manifold):
    """A manifold of flat vectors, under geoopt's contract; no metric of its own.

    Points have shape ``(..., n)``, with ``n`` the layout's size and leading dimensions a batch.
    The contract is :class:`geoopt.Manifold`'s, with its argument names: ``x`` and ``y`` are
    points, ``u`` and ``v`` tangent vectors. A member sets ``_frozen``, the coordinates that never
    move.
    """

    ndim = 1
    reversible = False
    __scaling__ = geoopt.Manifold.__scaling__.copy()
    _frozen: Frozen

    name = property(lambda self: type(self).__name__)

    @property
    @abstractmethod
    def layout(self) -> ParameterLayout:
        """The coordinates of a point."""

    def norm(self, x: Tensor, u: Tensor, *, keepdim=False) -> Tensor:
        """The length of ``u``, shape ``(...)``; its gradient at ``u = 0`` is 0."""
        return safe_sqrt(self.inner(x, u, keepdim=keepdim))

    def _point_shape(self, size) -> tuple[int, ...]:
        shape = (
            tuple(size[0])
            if len(size) == 1 and not isinstance(size[0], int)
            else tuple(size)
        )
        shape = shape or (self.layout.size,)
        ok, reason = self._check_shape(shape, "size")
        if not ok:
            raise ValueError(f"{self.name}: {reason}")
        return shape

    def _check_shape(self, shape, name: str):
        if len(shape) < 1 or shape[-1] != self.layout.size:
            return False, (
                f"{name} has shape {tuple(shape)}, the manifold's points have a last dimension of "
                f"{self.layout.size}"
            )
        return True, None

    def _check_tangents(
        self, method: str, x: Tensor, *vectors: Tensor, out=None
    ) -> None:
        caller = f"{self.name}.{method}"
        self.layout.check(x, caller, "the point")
        for u in vectors:
            self.layout.check(u, caller, "the vector or second point")
            if (u.dtype, u.device) != (x.dtype, x.device):
                raise ValueError(
                    f"{caller}: the vector or second point is {u.dtype} on {u.device}, the point "
                    f"is {x.dtype} on {x.device}; use .to(x)"
                )
        if out is not None:
            self._check_out(caller, out, x, *vectors)

    def _check_out(self, caller: str, out: Tensor, *inputs: Tensor) -> None:
        """Refuse a buffer in which a result would be wrong."""
        x = inputs[0]
        self.layout.check(out, caller, "out")
        if (out.dtype, out.device) != (x.dtype, x.device) or not out.is_contiguous():
            raise ValueError(
                f"{caller}: out must be contiguous, {x.dtype} and on {x.device}"
            )
        if any(t.ndim != 1 for t in (out, *inputs)):
            raise ValueError(
                f"{caller}: out needs a single point and vector, of shape (n,)"
            )
        storage = out.untyped_storage().data_ptr()
        if any(t.untyped_storage().data_ptr() == storage for t in inputs):
            raise ValueError(
                f"{caller}: out shares memory with an argument; use a buffer of its own"
            )

    def _keep(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        """``u`` with frozen coordinates set to zero; in place if it is the caller's ``out``."""
        return self._frozen.fill(u, 0.0, in_place=out is not None)

    def _admitted(self, u: Tensor) -> Tensor:
        """``u`` without its parts along which points never move, whatever the point."""
        return self._keep(u)

    def _defect(self, x: Tensor) -> str | None:
        """What is wrong with a point or vector before any norm is looked at."""
        if not torch.isfinite(x.sum()):
            bad = ~torch.isfinite(x)
            if bad.any():
                return (
                    f"entries of {listed(self.layout.count(bad))} are NaN or infinite"
                )
        if not self._frozen.any:
            return None
        moved = (x != 0) & self._frozen.mask.to(x.device)
        if moved.any():
            return f"held coordinates of {listed(self.layout.count(moved))} are not 0"
        return None

    def _refuse_nonfinite(self, method: str, *vectors: Tensor) -> None:
        for u in vectors:
            bad = ~torch.isfinite(u)
            if bad.any():
                raise ValueError(
                    f"{self.name}.{method}: the vector has NaN or infinite entries in "
                    f"{listed(self.layout.count(bad))}"
                )


def held_at_zero(name: str, layout: ParameterLayout, frozen: Tensor | None) -> Tensor:
    """The coordinates that stay 0: passive ones, and those of the mask."""
    held = torch.zeros(layout.size, dtype=torch.bool)
    held[layout.parameter_size :] = True
    if frozen is None:
        return held
    frozen = _as_tensor(frozen, name, "frozen")
    if frozen.dtype != torch.bool or frozen.shape != (layout.size,):
        raise ValueError(
            f"{name}: frozen must be a boolean mask of shape ({layout.size},), got "
            f"{frozen.dtype} of shape {tuple(frozen.shape)}"
        )
    return held | frozen.detach().cpu()


def positive_radii(name: str, radii: Tensor, rest_radius: float) -> Tensor:
    """The radii of blocks in one vector, the joint block's last, checked."""
    radii = _as_tensor(radii, name, "radii").detach().cpu().to(torch.float64)
    require_number(rest_radius, name, "rest_radius", least=-inf)
    if radii.ndim != 1:
        raise ValueError(
            f"{name}: radii must have shape (count,), got {tuple(radii.shape)}"
        )
    radii = torch.cat([radii, torch.tensor([float(rest_radius)], dtype=torch.float64)])
    bad = ~(torch.isfinite(radii) & (radii > 0))
    if bad.any():
        block = int(torch.nonzero(bad)[0])
        what = (
            "rest_radius" if block == len(radii) - 1 else f"the radius of block {block}"
        )
        raise ValueError(
            f"{name}: {what} is {float(radii[block])}; a sphere needs a positive one. Leave a zero "
            "filter out, or freeze it"
        )
    return radii


def _as_tensor(value, caller: str, name: str) -> Tensor:
    """A dense tensor with values, of a tensor, an array or a list."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{caller}: {name} must be a tensor, got {type(value).__name__}"
        ) from error
    if found.is_meta or found.layout != torch.strided or found.is_complex():
        raise ValueError(
            f"{caller}: {name} must be a dense tensor of real numbers with values, got "
            f"{found.dtype} of layout {found.layout} on {found.device}"
        )
    return found


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with value and gradient 0 where ``x ≤ 0``; NaN stays NaN."""
    positive = x > 0
    root = torch.where(positive, x, torch.ones_like(x)).sqrt()
    return torch.where(
        positive, root, torch.where(torch.isnan(x), x, torch.zeros_like(x))
    )


def listed(counts: dict[str, int]) -> str:
    """``'W': 3, 'b': 1`` and so on, cut after four."""
    shown = [f"{name!r} ({count})" for name, count in list(counts.items())[:4]]
    return ", ".join(shown) + (", ..." if len(counts) > 4 else "")
