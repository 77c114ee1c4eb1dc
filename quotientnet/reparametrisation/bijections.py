"""Changes of parameter that are no symmetries: dinh2017 §5.1 and Appendix A."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from quotientnet.operator import Operator

__all__ = [
    "Bijection",
    "PowerTransformation",
    "RadialTransformation",
    "transformed_hessian",
]

_NEWTON_STEPS = 60


class Bijection(ABC):
    r"""A change of parameter :math:`\eta = g^{-1}(\theta)` with a symmetric Jacobian.

    The loss in the new parameter is :math:`L_\eta = L \circ g`: the same functions, another
    geometry (§5.1 of [Dinh2017]_). ``g`` is :meth:`inverse`, as the paper names the directions.
    """

    @abstractmethod
    def forward(self, theta: Tensor) -> Tensor:
        """``η = g⁻¹(θ)``."""

    @abstractmethod
    def inverse(self, eta: Tensor) -> Tensor:
        """``θ = g(η)``."""

    @abstractmethod
    def jvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The product ``∇g⁻¹(θ) v`` with the Jacobian of :meth:`forward`."""

    @abstractmethod
    def solve(self, theta: Tensor, v: Tensor) -> Tensor:
        """The product ``∇g(η) v = (∇g⁻¹(θ))⁻¹ v`` with the Jacobian of :meth:`inverse`."""


@dataclass(frozen=True, eq=False)
class PowerTransformation(Bijection):
    r"""Elementwise :math:`\eta = (|\theta - \hat\theta|^2 + b)^a (\theta - \hat\theta)`.

    Figure 5 of [Dinh2017]_. It multiplies distances from ``θ̂`` by :math:`b^a` nearby and raises
    them to the power ``2a + 1`` far away.

    Args:
        centre: ``θ̂``, a tensor that broadcasts with the arguments of the methods.
        a: Greater than −½.
        b: Positive for a diffeomorphism; with 0 it is a bijection, whose derivative at ``θ̂`` is 0
            or infinite unless ``a = 0``.

    Raises:
        ValueError: ``a`` or ``b`` out of range, or not finite.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import PowerTransformation
        >>> bend = PowerTransformation(torch.tensor(1.0), a=1.0, b=0.25)
        >>> bend.forward(torch.tensor([1.0, 3.0])), bend.inverse(torch.tensor([0.0, 8.5]))
        (tensor([0.0000, 8.5000]), tensor([1., 3.]))
    """

    centre: Tensor
    a: float
    b: float

    def __post_init__(self):
        if not (-0.5 < self.a < inf and 0 <= self.b < inf):
            raise ValueError(
                f"PowerTransformation: needs a > -1/2 and b >= 0, finite, got a={self.a} and "
                f"b={self.b}; elsewhere the map is not one to one"
            )

    def forward(self, theta: Tensor) -> Tensor:
        """``η``, of the shape of ``theta``."""
        x = theta - self.centre
        if self.b == 0:
            return x.sign() * x.abs() ** (2 * self.a + 1)
        return torch.hypot(x, self._root(x)) ** (2 * self.a) * x

    @torch.no_grad()
    def inverse(self, eta: Tensor) -> Tensor:
        r"""``θ``, of the shape of ``eta``, to the accuracy of its dtype; not differentiable.

        Note: Newton's method on logarithms, where the equation is convex (``a ≥ 0``) or concave and
        the start lies on the side from which it cannot overshoot.
        """
        target = eta.double()
        if self.b == 0:
            x = target.sign() * target.abs() ** (1 / (2 * self.a + 1))
        else:
            root = self._root(target)
            u = target.abs() / root ** (2 * self.a + 1)
            x = target.sign() * root * self._solve(u)
        return (self.centre.double() + x).to(eta.dtype)

    def derivative(self, theta: Tensor) -> Tensor:
        """``dη/dθ``, elementwise, of the shape of ``theta``: positive where ``b > 0``."""
        x = theta - self.centre
        if self.b == 0:
            return (2 * self.a + 1) * x.abs() ** (2 * self.a)
        return _slope(x, self._root(x), self.a)

    def jvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The derivative times ``v``."""
        return self.derivative(theta) * v

    def solve(self, theta: Tensor, v: Tensor) -> Tensor:
        """``v`` over the derivative."""
        return v / self.derivative(theta)

    def _solve(self, u: Tensor) -> Tensor:
        """``y ≥ 0`` with ``(y² + 1)^a y = u``."""
        slope, wanted = 1 + 2 * self.a, u.log()
        pick = torch.minimum if self.a >= 0 else torch.maximum
        s = pick(wanted, wanted / slope)
        for _ in range(_NEWTON_STEPS):
            value = s + self.a * torch.nn.functional.softplus(2 * s)
            step = (value - wanted) / (1 + 2 * self.a * torch.sigmoid(2 * s))
            s = torch.where(u > 0, s - step, s)
        y, one = s.exp(), torch.ones_like(s)
        # A logarithm of size s has lost digits by a factor of s: one step without it.
        gap = torch.hypot(y, one) ** (2 * self.a) * y - u
        return y - gap / _slope(y, one, self.a)

    def _root(self, like: Tensor) -> Tensor:
        return torch.full_like(like, self.b**0.5)


def _slope(x: Tensor, root: Tensor, a: float) -> Tensor:
    """The derivative of ``(x² + root²)^a x``, without squares that overflow."""
    h = torch.hypot(x, root)
    return h ** (2 * a) * ((1 + 2 * a) * (x / h) ** 2 + (root / h) ** 2)


@dataclass(frozen=True, eq=False)
class RadialTransformation(Bijection):
    r"""The transformation of Appendix A of [Dinh2017]_, which moves only the inside of a ball.

    :math:`g^{-1}(\theta) = \hat\theta + (\psi(r)/r)(\theta - \hat\theta)` with
    :math:`r = \|\theta - \hat\theta\|`, where ``ψ`` is linear from 0 to ``ρ`` on ``[0, r̂]``,
    linear from ``ρ`` to ``δ`` on ``[r̂, δ]``, and the identity beyond.

    Args:
        centre: ``θ̂``, shape ``(n,)``.
        delta: ``δ``, the radius of the ball.
        rho: ``ρ``, between 0 and ``δ``.
        r_hat: ``r̂``, between 0 and ``δ``.

    Raises:
        ValueError: ``rho`` or ``r_hat`` not strictly between 0 and ``delta``, or a centre that is
            no vector.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import RadialTransformation
        >>> radial = RadialTransformation(torch.zeros(2), delta=1.0, rho=0.5, r_hat=0.25)
        >>> radial.forward(torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.0, 3.0]])).tolist()
        [[0.0, 0.0], [0.5, 0.0], [0.0, 3.0]]
        >>> radial.jacobian(torch.zeros(2)).diagonal().tolist()
        [2.0, 2.0]
    """

    centre: Tensor
    delta: float
    rho: float
    r_hat: float

    def __post_init__(self):
        if not (0 < self.rho < self.delta < inf and 0 < self.r_hat < self.delta):
            raise ValueError(
                "RadialTransformation: rho and r_hat must lie strictly between 0 and delta, got "
                f"rho={self.rho}, r_hat={self.r_hat} and delta={self.delta}"
            )
        if self.centre.ndim != 1:
            raise ValueError(
                f"RadialTransformation: centre must be a vector, got shape "
                f"{tuple(self.centre.shape)}"
            )

    def psi(self, r: Tensor) -> Tensor:
        """``ψ(r)``, elementwise, for ``r ≥ 0``."""
        return r * self._ratio(r)

    def forward(self, theta: Tensor) -> Tensor:
        """``g⁻¹(θ)``, shape ``(..., n)``."""
        x, r = self._polar(theta)
        return self.centre + self._ratio(r) * x

    def inverse(self, eta: Tensor) -> Tensor:
        """``g(η)``, shape ``(..., n)``: the transformation with ``ρ`` and ``r̂`` exchanged."""
        mirrored = RadialTransformation(self.centre, self.delta, self.r_hat, self.rho)
        return mirrored.forward(eta)

    def jacobian(self, theta: Tensor) -> Tensor:
        r"""``∇g⁻¹(θ)``, shape ``(..., n, n)``.

        .. math::

            \frac{\psi(r)}{r} I - 1(\hat r < r \leq \delta)
            \frac{\delta (\hat r - \rho)}{r^3 (\hat r - \delta)}
            (\theta - \hat\theta)(\theta - \hat\theta)^\top

        It equals the three terms printed. On the spheres ``r = r̂`` and ``r = δ`` the map has a
        kink; there this is the derivative from inside, also as printed.
        """
        x, r = self._polar(theta)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        outer = (self._outer(r) * x)[..., :, None] * x[..., None, :]
        return self._ratio(r)[..., None] * eye - outer

    def jvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """``∇g⁻¹(θ) v``, shape ``(..., n)``, without the matrix."""
        x, r = self._polar(theta)
        along = (x * v).sum(-1, keepdim=True)
        return self._ratio(r) * v - self._outer(r) * along * x

    def solve(self, theta: Tensor, v: Tensor) -> Tensor:
        """``∇g(η) v`` at ``η = g⁻¹(θ)``, shape ``(..., n)``."""
        x, r = self._polar(theta)
        unit = x / torch.where(r > 0, r, 1.0)
        radial = (unit * v).sum(-1, keepdim=True) * unit
        ratio = self._ratio(r)
        return (v - radial) / ratio + radial / (ratio - self._outer(r) * r**2)

    def _polar(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``θ − θ̂`` and its norm, shape ``(..., 1)``."""
        if theta.shape[-1:] != self.centre.shape:
            raise ValueError(
                f"RadialTransformation: got a point of shape {tuple(theta.shape)}, it needs a last "
                f"dimension of {len(self.centre)}"
            )
        x = theta - self.centre
        return x, torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def _ratio(self, r: Tensor) -> Tensor:
        """``ψ(r)/r``, which is ``ρ/r̂`` at 0."""
        rho, delta, r_hat = self.rho, self.delta, self.r_hat
        safe = torch.where(r > 0, r, 1.0)
        middle = ((rho - delta) * (r - delta) / (r_hat - delta) + delta) / safe
        outside = torch.where(r <= delta, middle, torch.ones_like(r))
        return torch.where(r <= r_hat, torch.full_like(r, rho / r_hat), outside)

    def _outer(self, r: Tensor) -> Tensor:
        """The factor of ``(θ − θ̂)(θ − θ̂)ᵀ``."""
        inside = (r > self.r_hat) & (r <= self.delta)
        factor = self.delta * (self.r_hat - self.rho) / (self.r_hat - self.delta)
        return torch.where(inside, factor / torch.where(inside, r, 1.0) ** 3, 0.0)


def transformed_hessian(
    bijection: Bijection, hessian: Operator, theta: Tensor
) -> Operator:
    r"""The Hessian in the new parameter at a critical point, :math:`(\nabla g)^\top H (\nabla g)`.

    §5.1 of [Dinh2017]_. Elsewhere the gradient adds :math:`(\nabla L)(\nabla^2 g)`, which is left
    out here.

    Args:
        bijection: The change of parameter.
        hessian: The Hessian in the old one, ``point.hessian``.
        theta: The critical point in the old parameter, shape ``(size,)``.

    Raises:
        ValueError: A point of another shape.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import PowerTransformation, transformed_hessian
        >>> steep = qn.DenseOperator(torch.eye(2))
        >>> bend = PowerTransformation(torch.zeros(2), a=1.0, b=0.1)
        >>> transformed_hessian(bend, steep, torch.zeros(2)).to_dense().diagonal().tolist()
        [100.0, 100.0]
    """
    if tuple(theta.shape) != (hessian.size,):
        raise ValueError(
            f"transformed_hessian: theta has shape {tuple(theta.shape)}, it needs ({hessian.size},)"
        )
    return _Transformed(bijection, hessian, theta)


class _Transformed(Operator):
    """``∇g H ∇g``, where ``∇g`` is symmetric."""

    def __init__(self, bijection: Bijection, hessian: Operator, theta: Tensor):
        super().__init__(hessian.size, hessian.dtype, hessian.device)
        self._bijection, self._hessian, self._theta = bijection, hessian, theta

    def _matvec(self, v: Tensor) -> Tensor:
        product = self._hessian @ self._bijection.solve(self._theta, v)
        return self._bijection.solve(self._theta, product)
