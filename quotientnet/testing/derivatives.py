"""Gradients and Hessians on any manifold, by the order of the models that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quotientnet.options import require_count, require_seed, require_values
from quotientnet.testing.curve_laws import ORDER
from quotientnet.testing.laws import Verdict, check_laws, registry
from quotientnet.testing.riemannian_laws import supports
from quotientnet.testing.slopes import Slope, measure_slope

__all__ = ["DERIVATIVE_LAWS", "DerivativeSample", "check_derivatives"]

DERIVATIVE_LAWS = {}
law = registry(DERIVATIVE_LAWS)


@dataclass(frozen=True)
class DerivativeSample:
    """A function on a manifold, a point, and what is claimed of its derivatives there.

    Attributes:
        function: From a point to a tensor of shape ``()``.
        manifold: Any manifold of geoopt.
        x: The point.
        gradient: The Riemannian gradient there, or None: from autograd and ``egrad2rgrad``.
        hessian: From a tangent vector to the Hessian's product with it, or None.
        seed: Of tangent vectors.
    """

    function: Callable[[Tensor], Tensor]
    manifold: object
    x: Tensor
    gradient: Tensor | None = None
    hessian: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.manifold}, point of shape {tuple(self.x.shape)}, {self.dtype}"

    @property
    def dtype(self) -> torch.dtype:
        """That of the point."""
        return self.x.dtype

    @cached_property
    def vectors(self) -> list[Tensor]:
        """Two tangent vectors of length 1."""
        generator = torch.Generator(self.x.device).manual_seed(self.seed)
        options = {"dtype": self.dtype, "device": self.x.device, "generator": generator}
        drawn = [torch.randn(self.x.shape, **options) for _ in range(2)]
        drawn = [self.manifold.egrad2rgrad(self.x, u) for u in drawn]
        return [u / self.inner(u, u).sqrt() for u in drawn]

    @cached_property
    def egrad(self) -> Tensor:
        """The Euclidean gradient, from autograd."""
        x = self.x.detach().clone().requires_grad_()
        return torch.autograd.grad(self.function(x), x)[0]

    @cached_property
    def grad(self) -> Tensor:
        """The gradient that is under test."""
        if self.gradient is not None:
            return self.gradient
        return self.manifold.egrad2rgrad(self.x, self.egrad.clone())

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """The metric at the point, shape ``()``."""
        return self.manifold.inner(self.x, u, v, keepdim=True).reshape(())

    def off_tangent(self, u: Tensor) -> float:
        """The part of a vector that is not tangent, relative to it and to the gradient, which
        rounding is relative to where the vector vanishes."""
        size = u.norm() + self.egrad.norm() + torch.finfo(self.dtype).tiny
        return float((u - self.manifold.proju(self.x, u)).norm() / size)

    def model_slope(self, curve, wanted: float, *derivatives: Tensor) -> Slope:
        """How fast the function along a curve departs from its Taylor polynomial."""
        with torch.no_grad():
            here = self.function(self.x)
        terms = [here, *derivatives]

        def error(h: float) -> float:
            with torch.no_grad():
                there = self.function(curve(self.x, h * self.vectors[0]))
            model, factor = 0.0, 1.0
            for k, term in enumerate(terms):
                factor = factor * h / k if k else 1.0
                model = model + factor * term
            return float((there - model).abs())

        size = max(float(term.abs()) for term in terms)
        rounding = 100 * torch.finfo(self.dtype).eps * size
        return measure_slope(error, wanted, rounding=rounding)


def check_derivatives(
    function: Callable[[Tensor], Tensor],
    manifold,
    x: Tensor,
    *,
    gradient: Tensor | None = None,
    hessian: Callable[[Tensor], Tensor] | None = None,
    directions: int = 3,
    seed: int = 0,
) -> list[Verdict]:
    r"""Whether a gradient and a Hessian are those of a function, on any manifold of geoopt.

    Along a curve that leaves :math:`x` with velocity :math:`u`, the function departs from
    :math:`f(x) + h \langle \mathrm{grad} f, u\rangle` as :math:`h^2`, and along a geodesic from the
    same with :math:`\tfrac{1}{2} h^2 \langle u, \mathrm{Hess} f[u]\rangle` as :math:`h^3`. A wrong
    gradient makes the first order 1, a wrong Hessian the second order 2, at every point. Curves are
    retractions for the gradient and geodesics for the Hessian; without an exponential map the
    retraction, which must then be of second order. Rounding hides errors of less than about 1e-5 of
    a gradient and 1e-4 of a Hessian.

    Args:
        function: From a point to a tensor of shape ``()``.
        manifold: Any :class:`geoopt.Manifold`.
        x: A point, float64.
        gradient: The Riemannian gradient at ``x``, by default ``egrad2rgrad`` of autograd's.
        hessian: From a tangent vector to the product of the Riemannian Hessian with it.
        directions: How many random directions; each verdict is that of the worst.
        seed: Of the first direction.

    Returns:
        One verdict a law; laws of the Hessian only if there is one.

    Raises:
        TypeError: An argument of another kind.
        ValueError: ``x`` is not finite, or not float64: no order can be read from fewer digits.

    Example:
        >>> import geoopt
        >>> import torch
        >>> from quotientnet.testing import check_derivatives
        >>> a = torch.diag(torch.arange(4.0)).double()
        >>> x = torch.full((4,), 0.5).double()
        >>> f = lambda x: x @ a @ x
        >>> sphere = geoopt.Sphere()
        >>> flat = lambda u: sphere.proju(x, 2 * a @ u)  # without the gradient's normal part
        >>> for verdict in check_derivatives(f, sphere, x, hessian=flat):
        ...     print(verdict.law, verdict.holds)
        gradient_is_tangent True
        gradient_makes_a_model_of_second_order True
        hessian_is_tangent True
        hessian_is_linear True
        hessian_is_self_adjoint True
        hessian_makes_a_model_of_third_order False
    """
    require_values(x, "check_derivatives", "x")
    require_seed(seed, "check_derivatives")
    if x.dtype != torch.float64:
        raise ValueError(
            f"check_derivatives: x is {x.dtype}, orders need float64; use x.double()"
        )
    require_count(directions, "check_derivatives", "directions")
    samples = [
        DerivativeSample(function, manifold, x, gradient, hessian, k)
        for k in range(seed, seed + directions)
    ]
    laws = [
        law for law in DERIVATIVE_LAWS.values()
        if hessian is not None or not law.name.startswith("hessian")
    ]  # fmt: skip
    return check_laws(laws, samples, lambda law, sample: True)


@law(single=None)
def gradient_is_tangent(s):
    """The gradient is a tangent vector."""
    return s.off_tangent(s.grad)


@law(double=ORDER, single=None)
def gradient_makes_a_model_of_second_order(s):
    """The function departs from ``f + h ⟨grad, u⟩`` as ``h²`` or faster."""
    return s.model_slope(s.manifold.retr, 2, s.inner(s.grad, s.vectors[0]))


@law(single=None)
def hessian_is_tangent(s):
    """The Hessian's products are tangent vectors."""
    return s.off_tangent(s.hessian(s.vectors[0]))


@law(single=None)
def hessian_is_linear(s):
    """``Hess[2 u − v] = 2 Hess[u] − Hess[v]``."""
    u, v = s.vectors
    left, right = s.hessian(2 * u - v), 2 * s.hessian(u) - s.hessian(v)
    return float((left - right).norm() / right.norm().clamp(min=1e-300))


@law(single=None)
def hessian_is_self_adjoint(s):
    """``⟨u, Hess[v]⟩ = ⟨Hess[u], v⟩`` in the metric."""
    u, v = s.vectors
    hu, hv = s.hessian(u), s.hessian(v)
    size = s.inner(hu, hu).sqrt() + s.inner(hv, hv).sqrt()
    return float((s.inner(u, hv) - s.inner(hu, v)).abs() / size)


@law(double=ORDER, single=None)
def hessian_makes_a_model_of_third_order(s):
    """Along geodesics the function departs from its quadratic model as ``h³`` or faster."""
    m, u = s.manifold, s.vectors[0]
    curve = m.expmap if supports(m, ("expmap",)) else m.retr
    return s.model_slope(curve, 3, s.inner(s.grad, u), s.inner(s.hessian(u), u))
