"""A function on a manifold, evaluated with its Riemannian gradient at many points at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.optimization.paths import Path
from quotientnet.optimization.rows import Iterate, Rows, column

__all__ = ["Evaluations", "Problem", "Trial", "metric"]


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
    scale: Tensor
    slope: Tensor

    def after(self, start: Iterate) -> Iterate:
        """The points as iterates that follow others."""
        own = (self.point, self.value, self.gradient, self.norm, self.scale)
        return Iterate(*own).after(start)


class _Left(Exception):
    """A curve has left the manifold."""


def metric(manifold, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``inner`` of each row, shape ``(rows,)``; without ``keepdim``, geoopt's of a ball returns
    ``(rows, rows)``."""
    return manifold.inner(x, u, v, keepdim=True).reshape(len(x))


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
        self._last = None

    @property
    def evaluations(self) -> Evaluations:
        """What was spent so far."""
        return Evaluations(self.values, self.gradients, self.hessian_products)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The metric, shape ``(rows,)``."""
        return metric(self.manifold, x, u, v)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """The length of tangent vectors, shape ``(rows,)``."""
        return self.inner(x, u, u).clamp(min=0).sqrt()

    def value(self, x: Tensor) -> Tensor:
        """``sign * function(x)``, shape ``(rows,)``, differentiable."""
        if self._batched:
            values = self._function(x)
        else:
            rows = (
                [x.reshape(x.shape[1:])] if len(x) == 1 else x
            )  # a view, also backward
            values = torch.stack([self._single(row) for row in rows])
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
            remedy = "pass batched=False if it takes one point at a time"
            if not self.manifold.ndim:
                remedy = "points of this manifold are numbers; take Euclidean(ndim=1) for vectors"
            raise ValueError(
                f"{self.caller}: function returned {got} for points of shape {tuple(x.shape)}, it "
                f"must return values of shape {tuple(x.shape[:1])}; {remedy}"
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
        return self.evaluate(x)[0]

    def evaluate(self, x: Tensor) -> tuple[Iterate, Tensor]:
        """:meth:`at`, and the Euclidean gradient; the last result is remembered."""
        if self._last is not None and self._last[0].point is x:
            return self._last
        self._last = None  # before it is needed, its memory
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = self.value(leaf)
            (egrad,) = self.derivatives(values, leaf)
        self.gradients += len(x)
        gradient, values = self.manifold.egrad2rgrad(x, egrad), values.detach()
        norm = self.norm(x, gradient)
        terms = torch.linalg.vector_norm((x * egrad).flatten(1), ord=1, dim=1)
        scale = torch.maximum(values.abs(), terms)
        self._last = Iterate(x, values, gradient, norm, scale), egrad
        return self._last

    def trial(self, x: Tensor, direction: Tensor, step: Tensor) -> Trial:
        """The function after ``step`` along curves; NaN where they leave the manifold."""
        try:
            return self._trial(x, direction, step)
        except _Left:
            if len(x) == 1:
                gone, lost = torch.full_like(x, torch.nan), torch.full_like(
                    step, torch.nan
                )
                return Trial(gone, lost, gone, lost, lost, lost)
        rows = range(len(x))
        parts = [slice(row, row + 1) for row in rows]
        return Trial.stack([self.trial(x[p], direction[p], step[p]) for p in parts])

    def _trial(self, x: Tensor, direction: Tensor, step: Tensor) -> Trial:
        time = step.detach().requires_grad_()
        try:
            with torch.enable_grad():
                moved = self.path.move(x, column(time, direction) * direction)
            valid = self.path.valid(x, column(step, direction) * direction)
            y = self.path.settled(moved.detach())
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise _Left from error
        try:
            there = self.at(y)
            slope = self._slope(there, moved, time)
        except NotOnManifoldError as error:
            raise _Left from error
        values = torch.where(valid, there.value, torch.nan)
        return Trial(y, values, there.gradient, there.norm, there.scale, slope)

    def _slope(self, there: Iterate, moved: Tensor, time: Tensor) -> Tensor:
        """The derivative along the curves, from the Riemannian gradient: the Euclidean one would
        see the rounding by which a curve leaves the manifold."""
        with torch.enable_grad():
            velocity = torch.zeros_like(moved, requires_grad=True)
            pairing = self.inner(there.point, there.gradient, velocity).sum()
        (covector,) = torch.autograd.grad(pairing, velocity)
        (slope,) = torch.autograd.grad(moved, time, covector)
        return slope
