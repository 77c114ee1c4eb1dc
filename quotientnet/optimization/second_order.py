r"""Hessians of :math:`\xi \mapsto f(R_x(\xi))` at 0, as products with tangent vectors.

At an optimum this is the Riemannian Hessian whatever the retraction, and everywhere if the
retraction is of second order (Prop. 5.5.6 of [Absil2008]_).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, column

__all__ = ["HESSIANS", "exact", "differences", "require_second_derivative"]

Product = Callable[[Tensor], Tensor]

_REMEDY = "pass hessian='differences', which needs first derivatives only"
_LENGTH = 2.0**-14


def exact(problem: Problem, here: Iterate) -> Product:
    """Products by differentiating twice, on a graph that is kept."""
    x = here.point
    with torch.enable_grad():
        xi = torch.zeros_like(x, requires_grad=True)
        try:
            values = problem.value(problem.path.move(x, xi))
            (pulled,) = problem.derivatives(values, xi, create_graph=True)
        except (RuntimeError, NotImplementedError) as error:
            raise _once(problem, error) from error
    problem.gradients += len(x)

    def product(u: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(u)
        with torch.enable_grad():
            pairing = (pulled * u).sum()
        try:
            (covector,) = torch.autograd.grad(
                pairing, xi, retain_graph=True, materialize_grads=True
            )
        except (RuntimeError, NotImplementedError) as error:
            raise _once(problem, error) from error
        if not torch.isfinite(covector).all():
            raise ValueError(
                f"{problem.caller}: the second derivative of the function along "
                f"{type(problem.path).__name__.lower()}s of {problem.manifold.name} is not finite; "
                + _REMEDY
            )
        return problem.manifold.egrad2rgrad(x, covector)

    return product


def differences(problem: Problem, here: Iterate) -> Product:
    """Products by differences of gradients of the pull-back ([Boumal2015]_): one gradient each.

    Gradients are carried back by the derivative of the retraction, so that no transport is needed.
    """
    x = here.point

    def product(u: Tensor) -> Tensor:
        length = problem.norm(x, u)
        step = _LENGTH / torch.where(length > 0, length, 1)
        with torch.enable_grad():
            xi = (column(step, u) * u).requires_grad_()
            values = problem.value(problem.path.move(x, xi))
            (covector,) = problem.derivatives(values, xi)
        problem.gradients += len(x)
        there = problem.manifold.egrad2rgrad(x, covector)
        return (there - here.gradient) / column(step, u)

    return product


def require_second_derivative(problem: Problem, here: Iterate) -> None:
    """Compare both products on the gradient: a function that detaches something, or whose backward
    pass is not differentiable, has wrong second derivatives without an error.

    Raises:
        ValueError: They differ by more than a quarter and more than rounding explains.
    """
    u = here.gradient
    one, other = exact(problem, here)(u), differences(problem, here)(u)
    gap = problem.norm(here.point, one - other)
    size = problem.norm(here.point, one) + problem.norm(here.point, other)
    eps = torch.finfo(u.dtype).eps
    rounding = 1e3 * eps / _LENGTH * here.norm * (here.norm + here.scale)
    bad = gap > 0.25 * size + rounding
    if bad.any():
        row = int(torch.nonzero(bad)[0])
        raise ValueError(
            f"{problem.caller}: the second derivative of the function at start {row} differs from "
            f"differences of its gradient by {float(gap[row] / size[row]):.0%}: something is "
            f"detached, not twice differentiable, or far from smooth; {_REMEDY}"
        )


HESSIANS = {"exact": exact, "differences": differences}


def _once(problem: Problem, error: Exception) -> ValueError:
    return ValueError(
        f"{problem.caller}: method 'trust-region' with hessian='exact' differentiates the function "
        f"and the curves of {problem.manifold.name} twice, which failed ({error}); {_REMEDY}"
    )
