"""The radial change of parameter of dinh2017 Appendix A."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real

import torch
from torch import Tensor

from quotientnet.options import require_kind, require_values
from quotientnet.reparametrisation.bijections import Bijection

__all__ = ["RadialTransformation"]


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
        TypeError: ``centre`` is no tensor, or a radius no number.
        ValueError: ``rho`` or ``r_hat`` not strictly between 0 and ``delta``, or a centre that is
            no finite vector.

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
        require_values(self.centre, "RadialTransformation", "centre", ndim=1)
        for name in "delta", "rho", "r_hat":
            require_kind(getattr(self, name), Real, "RadialTransformation", name)
        if not (0 < self.rho < self.delta < inf and 0 < self.r_hat < self.delta):
            raise ValueError(
                "RadialTransformation: rho and r_hat must lie strictly between 0 and delta, got "
                f"rho={self.rho}, r_hat={self.r_hat} and delta={self.delta}"
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
