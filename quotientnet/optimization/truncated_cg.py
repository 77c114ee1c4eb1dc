"""The model's minimiser inside a ball, by conjugate gradients that stop early."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, Rows, column
from quotientnet.optimization.second_order import Product

__all__ = ["Model", "truncated_cg"]


_ROUGH = 1e-3


@dataclass(frozen=True)
class Model(Rows):
    """The step, its product with the Hessian, and whether it ends on the boundary."""

    step: Tensor
    product: Tensor
    boundary: Tensor


def truncated_cg(
    problem: Problem, here: Iterate, hessian: Product, radius: Tensor, forcing: Tensor
) -> Model:
    r"""Minimise :math:`\langle g, \eta\rangle + \tfrac{1}{2} \langle \eta, H \eta\rangle` over
    :math:`\|\eta\| \le` ``radius``, all rows at once (Algorithm 11 of [Absil2008]_).

    Args:
        problem: For the metric.
        here: Points and gradients.
        hessian: Products with the Hessian.
        radius: Shape ``(rows,)``.
        forcing: The residual, relative to the gradient, at which to stop, shape ``(rows,)``.
    """
    x, r = here.point, here.gradient
    eta, product = torch.zeros_like(r), torch.zeros_like(r)
    delta, going = -r, here.norm > 0
    boundary = torch.zeros_like(going)
    rr = here.norm.square()

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return problem.inner(x, u, v)

    for _ in range(x[0].numel()):
        if not going.any():
            break
        h = hessian(delta)
        problem.hessian_products += int(going.sum())
        curvature = inner(delta, h)
        alpha = rr / curvature
        ended = (curvature <= 0) | (
            problem.norm(x, eta + _times(alpha, delta)) >= radius
        )
        far = _to_boundary(inner, eta, delta, radius)
        # Rounding leaves a part of a small residual outside the tangent space, where the form
        # vanishes: neither its curvature nor a residual that grows again means anything.
        small = rr.sqrt() <= _ROUGH * here.norm
        far = torch.where(small, 0, far)
        alpha = torch.where(ended, far, alpha)
        alpha = torch.where(going, alpha, 0)
        eta, product = eta + _times(alpha, delta), product + _times(alpha, h)
        boundary |= going & ended & (alpha > 0)
        r = r + _times(alpha, h)
        new = inner(r, r).clamp(min=0)
        going = (
            going & ~ended & ~(small & (new > rr)) & (new.sqrt() > forcing * here.norm)
        )
        delta = -r + _times(torch.where(rr > 0, new / rr, 0), delta)
        rr = new
    return Model(eta, product, boundary)


def _times(numbers: Tensor, vectors: Tensor) -> Tensor:
    return column(numbers, vectors) * vectors


def _to_boundary(inner, eta: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
    """The positive ``α`` for which ``‖eta + α delta‖`` is the radius."""
    a, b = inner(delta, delta), inner(eta, delta)
    room = (radius.square() - inner(eta, eta)).clamp(min=0)
    return room / (b + (b.square() + a * room).sqrt())
