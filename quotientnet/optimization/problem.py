"""A function on a manifold, evaluated with its Riemannian gradient at many points at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.optimization.paths import Path
from quotientnet.optimization.rows import Iterate, Rows, column

__all__ = ["Evaluations", "Problem", "Trial"]


@dataclass(frozen=True)
class Evaluations:
    """What was spent, counted in points.

    Attributes:
        values: Values of the function.
        gradients: Gradients; each comes with a value, on one graph.
        hessian_products: Products with the Hessian.
    """

    values: int = 0
    gradients: int = 0
    hessian_products: int = 0


@dataclass(frozen=True)
class Trial(Rows):
    """Points on curves, and the derivative of the function along the curve."""

    point: Tensor
    value: Tensor
    gradient: Tensor
    norm: Tensor
    slope: Tensor

    def iterate(self, scale: Tensor) -> Iterate:
        """The points as iterates, for the next step."""
        scale = torch.maximum(scale, self.value.abs())
        return Iterate(self.point, self.value, self.gradient, self.norm, scale)


class _Left(Exception):
    """A curve has left the manifold."""


class Problem:
    """Minimise ``sign * function`` on a manifold.

    Args:
        function: From points, shape ``(rows, *point)``, or from single ones, to values.
        path: The curves, which know the manifold.
        sign: 1 to minimise, -1 to maximise.
        batched: Whether the function takes several points at once.
        caller: The public function's name, for messages.
    """

    def __init__(
        self, function: Callable, path: Path, sign: int, batched: bool, caller: str
    ):
        self.path, self.manifold, self.sign = path, path.manifold, sign
        self.caller = caller
        self._function, self._batched = function, batched
        self.values = self.gradients = self.hessian_products = 0

    @property
    def evaluations(self) -> Evaluations:
        """What was spent so far."""
        return Evaluations(self.values, self.gradients, self.hessian_products)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The metric, shape ``(rows,)``."""
        return self.manifold.inner(x, u, v)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """The length of tangent vectors, shape ``(rows,)``."""
        return self.manifold.inner(x, u).clamp(min=0).sqrt()

    def value(self, x: Tensor) -> Tensor:
        """``sign * function(x)``, shape ``(rows,)``, differentiable."""
        if self._batched:
            values = self._function(x)
        else:
            values = torch.stack([self._single(row) for row in x])
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
            raise ValueError(
                f"{self.caller}: function returned {got} for points of shape {tuple(x.shape)}, it "
                f"must return values of shape {tuple(x.shape[:1])}; pass batched=False if it takes "
                "one point at a time"
            )
        self.values += len(x)
        return self.sign * values

    def _single(self, x: Tensor) -> Tensor:
        value = self._function(x)
        if not isinstance(value, Tensor) or value.ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value)
            raise ValueError(
                f"{self.caller}: function returned {got} for one point of shape {tuple(x.shape)}, "
                "it must return a tensor of shape ()"
            )
        return value

    def derivatives(self, values: Tensor, *of: Tensor, **options) -> tuple[Tensor, ...]:
        """Derivatives of the sum of values, zero where a value does not depend on them."""
        if not values.requires_grad:
            raise ValueError(
                f"{self.caller}: function's result is not differentiable in the point: it was "
                "detached, computed under no_grad, or does not depend on it"
            )
        found = torch.autograd.grad(values.sum(), of, allow_unused=True, **options)
        return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, of))

    def at(self, x: Tensor) -> Iterate:
        """The function and its Riemannian gradient at points, shape ``(rows, *point)``."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = self.value(leaf)
            (egrad,) = self.derivatives(values, leaf)
        self.gradients += len(x)
        gradient, values = self.manifold.egrad2rgrad(x, egrad), values.detach()
        return Iterate(x, values, gradient, self.norm(x, gradient), values.abs())

    def trial(self, x: Tensor, direction: Tensor, step: Tensor) -> Trial:
        """The function after ``step`` along curves; NaN where they leave the manifold."""
        try:
            return self._trial(x, direction, step)
        except _Left:
            if len(x) == 1:
                lost = torch.full_like(step, torch.nan)
                return Trial(x, lost, torch.full_like(x, torch.nan), lost, lost)
        rows = range(len(x))
        parts = [slice(row, row + 1) for row in rows]
        return Trial.stack([self.trial(x[p], direction[p], step[p]) for p in parts])

    def _trial(self, x: Tensor, direction: Tensor, step: Tensor) -> Trial:
        with torch.enable_grad():
            time = step.detach().requires_grad_()
            velocity = column(time, direction) * direction
            try:
                y = self.path.move(x, velocity)
                valid = self.path.valid(x, velocity.detach())
            except (ValueError, torch.linalg.LinAlgError) as error:
                raise _Left from error
            try:
                values = self.value(y)
            except NotOnManifoldError as error:
                raise _Left from error
            egrad, slope = self.derivatives(values, y, time)
        self.gradients += len(x)
        y, values = y.detach(), values.detach()
        values = torch.where(valid, values, torch.nan)
        try:
            gradient = self.manifold.egrad2rgrad(y, egrad)
            return Trial(y, values, gradient, self.norm(y, gradient), slope)
        except ValueError as error:
            raise _Left from error
