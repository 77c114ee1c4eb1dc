"""Any manifold of geoopt, whatever the shape of its points, as one of flat vectors."""

from __future__ import annotations

import copy
import math

import geoopt
import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.manifolds.frozen import Frozen
from quotientnet.manifolds.vectors import LayoutManifold
from quotientnet.options import require_count

__all__ = ["Unrolled"]


class Unrolled(LayoutManifold):
    """A manifold of geoopt whose points are unrolled into vectors, for the laws.

    Every call goes to a private copy of the manifold, converted to the point's dtype and device.
    Methods that geoopt leaves open stay open: ``NotImplementedError``.

    Args:
        base: Any :class:`geoopt.Manifold`.
        shape: Of one point, such as ``(5, 3)`` for 5 × 3 matrices.

    Raises:
        TypeError: ``base`` is no manifold of geoopt.
        ValueError: A shape the manifold does not take.
    """

    def __init__(self, base: geoopt.Manifold, shape: tuple[int, ...]):
        super().__init__()
        if not isinstance(base, geoopt.Manifold):
            raise TypeError(
                f"Unrolled: base must be a geoopt.Manifold, got {type(base).__name__}"
            )
        self.shape = tuple(require_count(n, "Unrolled", "shape") for n in shape)
        ok, reason = base._check_shape(self.shape, "shape")
        if not ok or not self.shape:
            raise ValueError(
                f"Unrolled: points of {base} do not have shape {self.shape}: {reason}"
            )
        self.base = copy.deepcopy(base)
        self._layout = ParameterLayout({"point": self.shape})
        self._frozen = Frozen(torch.zeros(math.prod(self.shape), dtype=torch.bool))
        self._copies = {}

    name = property(lambda self: self.base.name or type(self.base).__name__)

    @property
    def layout(self) -> ParameterLayout:
        """One tensor, ``point``."""
        return self._layout

    @property
    def parts(self) -> tuple[type, ...]:
        """The classes whose methods are under test: those of a product's factors."""
        return tuple(_parts(self.base))

    @property
    def is_sphere(self) -> bool:
        """Whether it is one sphere, so that points have antipodes."""
        return len(self.parts) == 1 and issubclass(self.parts[0], geoopt.Sphere)

    def on(self, x: Tensor) -> geoopt.Manifold:
        """The manifold itself, in the dtype and on the device of ``x``."""
        key = x.dtype, x.device
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self.base).to(
                dtype=x.dtype, device=x.device
            )
        return self._copies[key]

    def rolled(self, *vectors: Tensor) -> list[Tensor]:
        """Vectors, shape ``(..., n)``, in the shape of points."""
        return [v.reshape(*v.shape[:-1], *self.shape) for v in vectors]

    def _call(self, method: str, x: Tensor, *vectors: Tensor) -> Tensor:
        result = getattr(self.on(x), method)(*self.rolled(x, *vectors))
        return result.reshape(*result.shape[: result.ndim - len(self.shape)], -1)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim=False
    ) -> Tensor:
        """The metric, whatever the shape in which it is returned: see
        ``metric_has_the_shape_of_the_batch``."""
        found = self.on(x).inner(
            *self.rolled(x, u, u if v is None else v), keepdim=True
        )
        batch = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        return found.reshape((*batch, 1) if keepdim else batch)

    def dist(self, x: Tensor, y: Tensor, *, keepdim=False) -> Tensor:
        """The distance."""
        found = self.on(x).dist(*self.rolled(x, y))
        return found.unsqueeze(-1) if keepdim else found

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The projection to the tangent space."""
        return self._call("proju", *torch.broadcast_tensors(x, u))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradient."""
        return self._call("egrad2rgrad", x, u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction."""
        return self._call("retr", x, u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential map."""
        return self._call("expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm."""
        return self._call("logmap", x, y)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The transport to a point."""
        return self._call("transp", x, y, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The transport along the retraction."""
        return self._call("transp_follow_retr", x, u, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The transport along the exponential map."""
        return self._call("transp_follow_expmap", x, u, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Retraction and transport at once."""
        return self._pair("retr_transp", x, u, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential map and transport at once."""
        return self._pair("expmap_transp", x, u, v)

    def _pair(self, method: str, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        pair = getattr(self.on(vectors[0]), method)(*self.rolled(*vectors))
        y, v = (t.reshape(*vectors[0].shape[:-1], -1) for t in pair)
        return y, v

    def projx(self, x: Tensor) -> Tensor:
        """The projection to the manifold."""
        return self._call("projx", x)

    def random(
        self, *size, dtype=None, device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The manifold's own random points; geoopt draws them from the global generator, which is
        given back."""
        *batch, _ = self._point_shape(size)
        like = torch.empty(0, dtype=dtype, device=device)
        base = self.on(like)
        draw = base.random
        if type(base).random is geoopt.Manifold.random:
            draw = getattr(base, "random_normal", base.random)
        seed = generator.initial_seed() if generator is not None else 0
        devices = [like.device] if like.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            x = draw(*batch, *self.shape, dtype=like.dtype, device=like.device)
        x = x.detach().as_subclass(Tensor)
        return x.reshape(*batch, -1)

    def _check_point_on_manifold(self, x: Tensor, *, atol=1e-5, rtol=1e-5):
        return self.on(x)._check_point_on_manifold(
            *self.rolled(x), atol=atol, rtol=rtol
        )

    def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol=1e-5, rtol=1e-5):
        return self.on(x)._check_vector_on_tangent(
            *self.rolled(x, u), atol=atol, rtol=rtol
        )

    def extra_repr(self) -> str:
        """The shape of a point."""
        return f"points {self.shape}"


def _parts(base: geoopt.Manifold):
    if isinstance(base, geoopt.Scaled):
        yield from _parts(base.base)
    elif isinstance(base, geoopt.ProductManifold):
        for factor in base.manifolds:
            yield from _parts(factor)
    else:
        yield type(base)
