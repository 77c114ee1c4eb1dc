"""The generalised power method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.optimization.method import Method, Step
from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, Rows, column

__all__ = ["Power"]

_TRIALS = 60

_ROUNDING = 1e-14
"""The shift of blocks in which nothing changes, relative to the least shift."""


@dataclass(frozen=True)
class _Memory(Rows):
    """The shift ``c`` of each row, and the Euclidean gradient."""

    shift: Tensor
    egrad: Tensor


@dataclass(frozen=True)
class _Slopes(Rows):
    """Euclidean gradients."""

    egrad: Tensor


class Power(Method):
    r"""From ``x`` to the point that maximises the linear model,
    :math:`\operatorname{argmax}_y \langle \nabla f(x) + c x, y\rangle` (Algorithm 1 of
    [Journee2010]_).

    On a set of constant norm :math:`c \|y\|^2 / 2` is a constant, so that a step with shift ``c``
    is one for ``f + c‖y‖²/2``, and it increases a function that this makes convex. The shift is 0
    until a step does not increase the function; then it is doubled until one does.
    """

    def begin(self, problem: Problem, start: Iterate) -> _Memory:
        """No shift.

        Raises:
            ValueError: The manifold's projection does not maximise linear functions.
        """
        egrad = problem.evaluate(start.point)[1]
        _require_sphere_like(problem, start.point, egrad)
        return _Memory(torch.zeros_like(start.norm), egrad)

    def step(self, problem: Problem, here: Iterate, memory: _Memory) -> Step:
        """One power step, with as much shift as it needs."""
        x, shift, start = here.point, memory.shift, _Slopes(memory.egrad)
        least = _size(memory.egrad) / _size(x) / 16
        there, end = here, start
        finite = torch.zeros_like(here.norm, dtype=torch.bool)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(_TRIALS):
            kept = shift[rows] + _ROUNDING * least[rows]  # a block without slope stays
            old, down = here.take(rows), start.take(rows).egrad
            target = (-down).addcmul_(column(kept, x), old.point)
            new, slopes = problem.evaluate(problem.manifold.projx(target))
            good = _better(new, old)
            finite = finite.index_put((rows,), finite[rows] | torch.isfinite(new.value))
            there = there.put(rows[good], new.take(good))
            end = end.put(rows[good], _Slopes(slopes).take(good))
            rows = rows[~good]
            if not len(rows):
                break
            more = torch.maximum(2 * shift[rows], least[rows])
            shift = shift.index_put((rows,), more)
        stuck = (there.point == x).flatten(1).all(1)
        stuck[rows] = True
        return Step(there.after(here), _Memory(shift, end.egrad), stuck, finite)


def _better(new: Iterate, old: Iterate) -> Tensor:
    """A smaller value, or a smaller gradient where the values differ by rounding only."""
    lower = new.value < old.value - old.noise
    return lower | (new.value <= old.value + old.noise) & (new.norm <= old.norm)


def _require_sphere_like(problem: Problem, x: Tensor, egrad: Tensor) -> None:
    if isinstance(problem.manifold, ProductOblique):
        return
    manifold, v = problem.manifold, x - 0.5 * egrad
    try:
        once, twice = manifold.projx(v), manifold.projx(3 * v)
        fits = torch.allclose(once, twice, atol=1e-5, rtol=1e-5)
        fits &= torch.allclose(_size(once), _size(x), rtol=1e-4)
    except (ValueError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{problem.caller}: method 'power' needs a set of constant norm whose projection "
            f"maximises linear functions (a sphere, Stiefel, ProductOblique); {manifold.name} is "
            "none; use method='conjugate-gradient'"
        )


def _size(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
