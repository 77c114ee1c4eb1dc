"""Gradients no longer than a bound, in the metric."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan
from numbers import Real

import geoopt
import torch
from torch import Tensor

from quotientnet.options import require_kind
from quotientnet.training.binding import require_unbound
from quotientnet.training.riemannian import manifold_of

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    error_if_nonfinite: bool = True,
) -> Tensor:
    r"""Scale the gradients so that the Riemannian gradient is no longer than ``max_norm``.

    As :func:`torch.nn.utils.clip_grad_norm_`, with the metric of each parameter's manifold in
    place of the Euclidean one, :math:`\|\operatorname{grad} f\|_w^2` summed over all parameters:
    equivalent networks are clipped by the same factor. Pass what the optimizer was given: the
    vector of :func:`bind`, and not the module's own parameters, which know no manifold.

    Args:
        parameters: One, or several: of any geoopt manifold, or plain ones. Those without a
            gradient are passed over.
        max_norm: The bound, positive; ``inf`` only measures.
        error_if_nonfinite: Whether to refuse a length that is NaN or infinite; otherwise the
            gradients are scaled by it all the same.

    Returns:
        The length before, a scalar and a class invariant.

    Raises:
        TypeError: ``max_norm`` is no number, or a parameter no tensor.
        ValueError: It is not positive; or a parameter is a view of a bound vector.
        FloatingPointError: The length is NaN or infinite. Nothing is changed.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> w = qn.training.bind(model, qn.LayerScaleQuotient(qn.discover(model, torch.ones(4, 2))))
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> before = qn.training.clip_grad_norm_(w, 1e-3)
        >>> bool(before > 1e-3), round(float(qn.training.clip_grad_norm_(w, 1.0)), 6)
        (True, 0.001)
    """
    if not (isinstance(max_norm, Real) or _is_scalar(max_norm)):
        raise TypeError(f"clip_grad_norm_: max_norm must be a number, got {max_norm!r}")
    if isnan(max_norm) or max_norm <= 0:
        raise ValueError(
            f"clip_grad_norm_: max_norm must be positive, got {max_norm}; to leave gradients as "
            "they are, pass float('inf')"
        )
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for parameter in parameters:
        require_kind(parameter, Tensor, "clip_grad_norm_", "each of parameters")
        require_unbound(parameter, "clip_grad_norm_")
    found = [(p, p.grad) for p in parameters if p.grad is not None]
    if not found:
        return torch.zeros(())
    device = found[0][1].device
    total = sum(_squared_length(p, g).to(device) for p, g in found).sqrt()
    if error_if_nonfinite and not torch.isfinite(total):
        raise FloatingPointError(
            f"clip_grad_norm_: the gradient's length is {float(total)}. Nothing was changed"
        )
    if not total <= max_norm:
        for _, gradient in found:
            gradient.mul_((max_norm / total).to(gradient))
    return total


def _is_scalar(value) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()


def _squared_length(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Of the Riemannian gradient, a scalar in float64 or the gradient's own dtype."""
    if not torch.isfinite(gradient.sum()) and not torch.isfinite(gradient).all():
        return torch.full_like(gradient.sum(), float("nan"))
    manifold, x = manifold_of(parameter), parameter.detach()
    if isinstance(manifold, geoopt.Euclidean):
        return gradient.square().sum()
    return manifold.inner(x, manifold.egrad2rgrad(x, gradient)).sum()
