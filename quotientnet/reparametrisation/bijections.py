"""Changes of parameter that are no symmetries: dinh2017 §5.1."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from quotientnet.operator import Operator, require_operator, require_vectors
from quotientnet.options import require_kind

__all__ = ["Bijection", "transformed_hessian"]


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
        TypeError: An argument of another kind.
        ValueError: A point of another shape, dtype or device, or that is not finite.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import PowerTransformation, transformed_hessian
        >>> steep = qn.DenseOperator(torch.eye(2))
        >>> bend = PowerTransformation(torch.zeros(2), a=1.0, b=0.1)
        >>> transformed_hessian(bend, steep, torch.zeros(2)).to_dense().diagonal().tolist()
        [100.0, 100.0]
    """
    require_kind(bijection, Bijection, "transformed_hessian", "bijection")
    require_operator(hessian, "transformed_hessian")
    require_vectors(hessian, theta, "transformed_hessian", "theta")
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
