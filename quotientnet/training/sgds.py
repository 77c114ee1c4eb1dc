"""Descent on the loss and on its BN-sharpness together (yi2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import copysign, inf, isfinite
from numbers import Integral

import torch
from torch import Tensor, nn

from quotientnet.errors import NotOnManifoldError
from quotientnet.group import ScalingGroup
from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.manifolds.vectors import listed
from quotientnet.options import grown, require_count, require_number
from quotientnet.symmetry import Symmetry
from quotientnet.training.filters import filter_blocks
from quotientnet.training.neighbours import Neighbours
from quotientnet.training.sides import Probe, Sides, sharpest
from quotientnet.training.wrapper import Wrapper

__all__ = ["SGDS"]

_GRADIENTS = ("full", "partial")


class SGDS(Wrapper):
    r"""Descent on :math:`f + \lambda R` with ``R`` the BN-sharpness to the power ``p``: Algorithm 1
    of [Yi2019]_, around any optimizer.

    With ``v`` the sharpest direction, of length :math:`\|w_i\|` in each normalised filter and 1 in
    all the rest, with :math:`a = p/(p+1)` and :math:`\nabla f_\pm = \nabla f(w \pm a \delta v)`,
    the optimizer inside is given :math:`g + \lambda h`, where

    .. math::
        h = (g^\top v)^{p-1} \left[\frac{\nabla f_+ - \nabla f_-}{\delta}
            + a \sum_i \frac{\langle (\nabla f_+ + \nabla f_-)_i, v_i \rangle}{\|w_i\|^2} w_i\right]

    The first term is Eq. (15) of [Yi2019]_ with a difference in place of what is printed, the
    gradient at fixed ``v``. As ``v`` follows the filters' norms, there is the second: with it ``h``
    is that of a function which scales of filters leave alone, orthogonal to each of them and
    :math:`h_i(\alpha w) = h_i(w) / \alpha_i`. Both are good to :math:`O(\delta^2)` as long as the
    slope along ``v`` outweighs the curvature, :math:`\delta |v^\top H v| \ll |g^\top v|`. Close to
    a minimum it does not: there ``R`` is of the order of :math:`(\delta v^\top H v)^p`, and ``h``
    still the gradient of :math:`\tfrac{2}{p+1} (g^\top v)^p`, its limit for small ``δ``. Nor is it
    so where the loss has kinks within ``δ``: with ReLU, gradients jump, and ``h`` is dominated by
    the jumps as ``δ`` falls.

    Without search steps ``v`` is along the gradient, filter by filter, which is the answer for
    small ``δ``. A search, by :func:`~quotientnet.optimization.maximize` from there, follows Eq.
    (16) of [Yi2019]_ with the same ``a``: so it climbs the slope between the two sides, a function
    whose last evaluation serves the parameters. It ends early where nothing rises. ``v`` does not
    move a filter whose gradient is zero, nor a frozen parameter.

    Args:
        module: The module that is trained.
        base: Any torch optimizer of the module's parameters, with the learning rate, momentum and
            weight decay; it makes the steps.
        filters: What :func:`~quotientnet.discover` returned, or a scaling group: a filter is all
            that a generator scales alike, with its bias. Or a list of names, of tensors such as
            ``"conv1.weight"``, whose first axis counts filters while the bias is one of the rest,
            or of layers such as ``"conv1"``, weight and bias together.
        p: The exponent, even.
        delta: ``δ``, relative to the filters. Differences of gradients lose ``ε/δ`` of their
            digits, with ε the precision: for smooth losses in float32 take 1e-4 or more.
        regularization: ``λ`` at the beginning.
        growth: What ``λ`` is multiplied by ...
        growth_every: ... each time as many steps have been made; those of an epoch, in the paper,
            with 1.02.
        max_norm: The largest norm of :math:`\lambda h`, which is scaled down to it; None for any.
            In [Yi2019]_ ``h₁`` includes ``λ``; clipped before, it would never exceed 1e-5.
        search_steps: ``K₁``.
        gradient: ``"full"``, or ``"partial"`` for the first term only, as the paper has it.

    Raises:
        TypeError: ``base`` is no optimizer, ``filters`` nothing of the kind, or what must be a
            number is none.
        ValueError: An odd ``p``, no filters, or another option out of range.

    Note:
        A step costs 3 gradients, and each search step, of which some are trials, 2 more. It is
        undefined where a filter is zero (:class:`~quotientnet.NotOnManifoldError`). Parameters that
        are frozen count as constants; make a new optimizer when others are.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        >>> x, y = torch.randn(16, 2), torch.randn(16, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = qn.training.SGDS(model, base, qn.discover(model, x))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> losses = [float(optimizer.step(closure)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        module: nn.Module,
        base: torch.optim.Optimizer,
        filters: Symmetry | ScalingGroup | Iterable[str],
        *,
        p: int = 2,
        delta: float = 1e-3,
        regularization: float = 1e-4,
        growth: float = 1.0,
        growth_every: int = 1,
        max_norm: float | None = 0.1,
        search_steps: int = 0,
        gradient: str = "full",
    ):
        if not isinstance(p, Integral) or p < 2 or p % 2:
            raise ValueError(
                f"SGDS: p must be even, 2, 4, 6, ..., got {p!r}: for other powers the gradient "
                "of the sharpness is no difference of two"
            )
        self.p, name = int(p), "SGDS"
        self.search_steps = require_count(search_steps, name, "search_steps", 0)
        self.delta = require_number(delta, name, "delta", strict=True)
        self.regularization = require_number(regularization, name, "regularization")
        self.growth = require_number(growth, name, "growth", strict=True)
        self.growth_every = require_count(growth_every, name, "growth_every")
        self.max_norm = inf
        if max_norm is not None:
            self.max_norm = require_number(max_norm, name, "max_norm")
        if gradient not in _GRADIENTS:
            raise ValueError(
                f"SGDS: gradient must be one of {_GRADIENTS}, got {gradient!r}"
            )
        self.whole = gradient == "full"
        layout, index, count = filter_blocks(module, filters, "SGDS")
        super().__init__(module, base, layout)
        self.manifold = ProductOblique(layout, torch.ones(count), index)

    @property
    def coefficient(self) -> float:
        """``λ`` at the next step."""
        times = self.steps // self.growth_every
        return grown(self.regularization, self.growth, times, "SGDS", "regularization")

    def gradient(
        self,
        near: Neighbours,
        closure: Callable,
        plus: Callable | None = None,
        minus: Callable | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""The loss, and :math:`g + \lambda h`, shape ``(n,)``; ``step`` calls it.

        Args:
            near: The parameters and their neighbours.
            closure: The batch of ``g``.
            plus: Another batch for :math:`\nabla f_+`, and ``minus`` for :math:`\nabla f_-`, which
                ``step`` takes after the first closure. The paper has three; but then
                :math:`(\nabla f_A - \nabla f_B)/\delta` drowns the difference that is sought.
        """
        probe = self._probe(near, closure, plus, minus)
        loss, g = near.here(closure)
        radii, lengths = self._norms(near.w, g)
        if not lengths.any() or not self.coefficient:
            return loss, g
        # A filter without slope has no sharpest direction: it stays where it is.
        scale = torch.where(lengths > 0, radii / lengths, 0.0)
        if self.search_steps:
            slope, sides = self._searched(probe, g, radii, (scale > 0).to(scale))
        else:
            slope, sides = (radii * lengths).sum(), probe(scale, g)
        difference, along = sides.difference, sides.along
        del sides  # and one vector with it
        rates = self._rates(along, radii)
        factor = self._factor(near.w, difference, rates, radii, float(slope))
        # g + factor (difference + rates w), without a vector more.
        g.add_(difference, alpha=factor)
        if self.whole:
            blocks = self.manifold.blocks
            g = blocks.combine(None, g, factor * rates, near.w, out=difference)
        return loss, g

    def _probe(self, near: Neighbours, closure, plus, minus) -> Probe:
        """The two sides, of one batch or of others."""
        if (plus is None) != (minus is None):
            raise TypeError(
                "SGDS.step: needs one closure, or three: step(closure, plus, minus)"
            )
        shift = self.p / (self.p + 1) * self.delta
        plus, minus = plus or closure, minus or closure
        return Probe(near, self.manifold.blocks, shift, plus, minus)

    def _norms(self, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The radius of each block and the norm of its gradient, float64, shape ``(count,)``."""
        blocks = self.manifold.blocks
        radii, lengths = (s.sqrt() for s in blocks.dots((w, w), (g, g)))
        radii[blocks.rest :] = 1.0
        if not radii.all():
            raise NotOnManifoldError(
                f"SGDS: normalised filters are zero in {listed(blocks.named(radii == 0))}, where "
                "they have no direction; give them weights, freeze them and make a new SGDS, or "
                "list the tensors without them as filters. Nothing was changed"
            )
        return radii, lengths

    def _searched(
        self, probe: Probe, g: Tensor, radii: Tensor, kept: Tensor
    ) -> tuple[Tensor, Sides]:
        """The slope ``gᵀv`` along the direction that a search found, and its sides."""
        blocks = self.manifold.blocks
        manifold = self.manifold.with_radii(radii[: blocks.rest])
        v, sides = sharpest(
            probe, manifold, manifold.steepest(g), kept, self.search_steps
        )
        return (kept * blocks.dot(g, v)).sum(), sides

    def _rates(self, along: Tensor, radii: Tensor) -> Tensor:
        """How much of ``w`` is to be added to the difference in each block."""
        rates = 2 * self.p / (self.p + 1) * self.delta * along / radii**2
        rates[self.manifold.blocks.rest :] = 0.0
        return rates if self.whole else torch.zeros_like(rates)

    def _factor(
        self, w: Tensor, difference: Tensor, rates: Tensor, radii: Tensor, slope: float
    ) -> float:
        r"""What makes :math:`\lambda h` of ``difference`` + ``rates`` ``w``, clipped."""
        squares, along = self.manifold.blocks.dots(
            (difference, difference), (difference, w)
        )
        squares = squares + rates * (2 * along + rates * radii**2)
        length = float(squares.sum().clamp(min=0).sqrt())
        factor = self.coefficient / self.delta * _power(slope, self.p - 1)
        if not length:
            return 0.0
        if abs(factor) * length > self.max_norm:
            factor = copysign(self.max_norm / length, factor)
        if not isfinite(factor * length):
            raise FloatingPointError(
                f"SGDS: the gradient of the sharpness overflows, {slope:g} to the power "
                f"{self.p - 1}; use a smaller p, or max_norm. Nothing was changed"
            )
        return factor


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return inf
