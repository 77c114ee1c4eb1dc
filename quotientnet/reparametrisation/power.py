"""The elementwise change of parameter of dinh2017 Figure 5."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real

import torch
from torch import Tensor

from quotientnet.options import require_kind, require_values
from quotientnet.reparametrisation.bijections import Bijection

__all__ = ["PowerTransformation"]

_NEWTON_STEPS = 60


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
        TypeError: ``centre`` is no tensor, or ``a`` or ``b`` no number.
        ValueError: ``a`` or ``b`` out of range, or not finite; a centre that is not finite.

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
        require_values(self.centre, "PowerTransformation", "centre")
        for name in "a", "b":
            require_kind(getattr(self, name), Real, "PowerTransformation", name)
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
            slope = 2 * self.a + 1
            u = target.abs() / root**slope
            # The power of the root may leave the range of numbers; its logarithm does not.
            wanted = target.abs().log() - slope * root.log()
            x = target.sign() * root * self._solve(u, wanted)
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

    def _solve(self, u: Tensor, wanted: Tensor) -> Tensor:
        """``y ≥ 0`` with ``(y² + 1)^a y = u``, from ``u`` where it is a number, and ``log u``."""
        usual = (u > torch.finfo(u.dtype).tiny) & torch.isfinite(u)
        slope, wanted = 1 + 2 * self.a, torch.where(usual, u.log(), wanted)
        pick = torch.minimum if self.a >= 0 else torch.maximum
        s = pick(wanted, wanted / slope)
        for _ in range(_NEWTON_STEPS):
            value = s + self.a * torch.nn.functional.softplus(2 * s)
            step = (value - wanted) / (1 + 2 * self.a * torch.sigmoid(2 * s))
            s = torch.where(torch.isfinite(wanted), s - step, s)
        y, one = s.exp(), torch.ones_like(s)
        # A logarithm of size s has lost digits by a factor of s: one step without it.
        gap = torch.hypot(y, one) ** (2 * self.a) * y - u
        better = y - gap / _slope(y, one, self.a)
        return torch.where(usual & torch.isfinite(better), better, y)

    def _root(self, like: Tensor) -> Tensor:
        return torch.full_like(like, self.b**0.5)


def _slope(x: Tensor, root: Tensor, a: float) -> Tensor:
    """The derivative of ``(x² + root²)^a x``, without squares that overflow."""
    h = torch.hypot(x, root)
    return h ** (2 * a) * ((1 + 2 * a) * (x / h) ** 2 + (root / h) ** 2)
