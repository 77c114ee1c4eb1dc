"""Random points, tangent vectors and group elements to measure laws on."""

from __future__ import annotations

from functools import cached_property
from math import inf, pi

import torch
from torch import Tensor

from quotientnet.manifolds.vectors import safe_sqrt

__all__ = ["Sample"]


class Sample:
    """Everything a law needs, drawn lazily and reproducibly from a seed.

    Args:
        manifold: The manifold under test; a :class:`~quotientnet.QuotientManifold`, or another
            manifold of flat vectors, which has no group and the Euclidean frame.
        seed: Determines every draw, whatever the order they are asked for in.
        batch: Leading dimensions of points and vectors.
        spread: Standard deviation of the group coordinates: points are badly scaled by about
            ``e^{±spread}``.
        length: Length of the tangent vectors in the metric, below the injectivity radius.
        dtype: Of everything drawn.
        device: Likewise.
        antipodal: If given, tangent vectors turn the largest block of a manifold with ``blocks``,
            or a whole sphere, to this angle from its antipode; ``length`` is then theirs.
    """

    def __init__(
        self, manifold, seed: int = 0, batch=(), spread=1.0, length=1.0,
        dtype=torch.float64, device="cpu", antipodal=None,
    ):  # fmt: skip
        self.manifold, self.seed = manifold, seed
        self.group = getattr(manifold, "group", None)
        self.batch, self.spread, self.antipodal = tuple(batch), spread, antipodal
        self.dtype, self.device = dtype, torch.device(device)
        self.length = length
        if antipodal is not None:
            self.length = float(self.norm(self.x, self._turn(4)).reshape(-1)[0])

    def __repr__(self) -> str:
        length = f"length={self.length:.3g}"
        if self.antipodal is not None:
            length = f"antipodal={self.antipodal:.3g}"
        device = "" if self.device.type == "cpu" else f", device={str(self.device)!r}"
        return (
            f"Sample({self.manifold}, seed={self.seed}, batch={self.batch}, "
            f"spread={self.spread:.3g}, {length}, dtype={self.dtype}{device})"
        )

    @property
    def rounding(self) -> float:
        """The relative error that rounding explains at this length, since ends of short vectors,
        and of those that nearly reach an antipode, tell the vector with so many digits fewer.
        """
        room = min(self.length, inf if self.antipodal is None else self.antipodal, 1.0)
        return 200 * torch.finfo(self.dtype).eps / room

    def _generator(self, key: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(1_000_003 * self.seed + key)

    def normal(self, key: int, size: int) -> Tensor:
        """Standard normal numbers, shape ``(*batch, size)``; each key its own."""
        options = {
            "dtype": self.dtype,
            "device": self.device,
            "generator": self._generator(key),
        }
        return torch.randn(*self.batch, size, **options)

    @cached_property
    def x(self) -> Tensor:
        """A point, badly scaled within its orbit if the manifold is a quotient."""
        shape = (*self.batch, self.manifold.layout.size)
        options = {
            "dtype": self.dtype,
            "device": self.device,
            "generator": self._generator(1),
        }
        try:
            x = self.manifold.random(*shape, **options)
        except NotImplementedError as error:  # else every law would be left out
            raise TypeError(
                "the manifold has no points to try: define random(*size, dtype, device)"
            ) from error
        return x if self.group is None else self.group.act(x, self.element(2))

    @cached_property
    def frame(self) -> Tensor:
        """The root of the diagonal metric at ``x``; 1 on a submanifold of Euclidean space."""
        frame = getattr(self.manifold, "frame", torch.ones_like)
        return frame(self.x)

    def element(self, key: int) -> Tensor:
        """Group coordinates, shape ``(*batch, k)``."""
        return self.spread * self.normal(key, self.group.dimension)

    def vector(self, key: int) -> Tensor:
        """Any vector at ``x``, of metric size about 1 in each coordinate; 0 where frozen."""
        return self.manifold._admitted(
            self.normal(key, self.manifold.layout.size) / self.frame
        )

    def covector(self, key: int) -> Tensor:
        """A Euclidean gradient at ``x``, of metric size about 1 in each coordinate."""
        return self.manifold._admitted(
            self.normal(key, self.manifold.layout.size) * self.frame
        )

    def tangent(self, key: int) -> Tensor:
        """A horizontal vector at ``x`` of length ``length``."""
        return self.length * self.direction(key)

    def direction(self, key: int) -> Tensor:
        """A horizontal vector at ``x`` of length 1."""
        if self.antipodal is not None:
            return self._turn(key) / self.length
        u = self.manifold.proju(self.x, self.vector(key))
        return u / self.norm(self.x, u).unsqueeze(-1)

    def _turn(self, key: int) -> Tensor:
        """A vector that turns one block, at a right angle to it, to ``antipodal`` from its
        antipode; the metric of every manifold with blocks is a multiple of the Euclidean there.
        """
        x, v = self.x, self.manifold._admitted(self.normal(key, self.x.shape[-1]))
        blocks = getattr(self.manifold, "blocks", None)
        if blocks is not None:
            mask = torch.zeros(
                len(blocks.lengths), dtype=self.dtype, device=self.device
            )
            movable = blocks.dot(torch.ones_like(v), (v != 0).to(v)).reshape(
                -1, len(mask)
            )[0]
            mask[int(movable.argmax())] = 1.0
            x, v = (t * blocks.expand(mask) for t in (x, v))
        norms = x.norm(dim=-1, keepdim=True)
        v = v - (v * x).sum(-1, keepdim=True) / norms**2 * x
        return (pi - self.antipodal) * norms * v / v.norm(dim=-1, keepdim=True)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """The length of ``u`` at ``x`` from the metric itself, shape ``(...)``: laws must not
        depend on a manifold's ``norm``, which is under test as well."""
        return safe_sqrt(self.manifold.inner(x, u))

    @cached_property
    def t(self) -> Tensor:
        """A group element to compare equivalent points by."""
        return self.element(3)

    @cached_property
    def moved(self) -> Tensor:
        """The point equivalent to ``x`` by ``t``."""
        return self.group.act(self.x, self.t)

    def elsewhere(self, y: Tensor) -> Tensor:
        """Another point of the orbit of ``y``; ``y`` itself if the manifold is no quotient."""
        return y if self.group is None else self.group.act(y, self.t)

    def push(self, u: Tensor) -> Tensor:
        """The vector at the moved point that corresponds to ``u`` at ``x``."""
        return self.group.act(u, self.t)

    def difference(self, x: Tensor, a: Tensor, b: Tensor) -> float:
        """The largest ``‖a − b‖_x / ‖b‖_x`` over the batch, for vectors at ``x``."""
        gap, size = self.norm(x, a - b), self.norm(x, b)
        return float((gap / size.clamp(min=torch.finfo(size.dtype).tiny)).max())

    def gap(self, a: Tensor, b: Tensor) -> float:
        """The largest coordinate-wise ``|a − b| / |b|``, for points and positive numbers."""
        return float(
            ((a - b).abs() / b.abs().clamp(min=torch.finfo(b.dtype).tiny)).max()
        )
