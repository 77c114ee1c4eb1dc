"""Adam on manifolds: second moments per block, or per entry, in the metric."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from quotientnet.manifolds import LogPolarQuotient, QuotientManifold
from quotientnet.training.riemannian import (
    Here,
    RiemannianOptimizer,
    manifold_of,
)

__all__ = ["RiemannianAdam"]

_LEAST = 3e-4
"""Sizes of gradients that count, relative to the largest: the root of the precision of float32."""


class RiemannianAdam(RiemannianOptimizer):
    r"""Adam along the curves of a manifold, invariant on quotients.

    The first moment is the Riemannian gradient's, carried along the steps. The second moment has
    one number for each block ``b``, the squared length of the gradient's part there:

    .. math:: m \leftarrow \beta_1 \Gamma m + (1 - \beta_1) g, \qquad
        v_b \leftarrow \beta_2 v_b + (1 - \beta_2) \|g_b\|_w^2, \qquad
        w \leftarrow R_w\left(-\eta \left[P \frac{\hat{m_b}}{\sqrt{\hat{v_b}} + \epsilon}
        + \lambda \operatorname{grad} F\right]\right).

    Blocks are those of a log-polar metric (tensors, filters or entries), and on other quotients the
    single entries. Lengths in the metric are the same on the whole orbit, and so are those of
    entries, :math:`d_i |g_i|` with the frame ``d``; so the trajectory is equivariant as that of
    :class:`RiemannianSGD`. The projection :math:`P` keeps the scaled direction horizontal. Adam
    itself divides by sizes of Euclidean gradients, which depend on the representative. On plain
    parameters it is :class:`torch.optim.AdamW`.

    Args:
        params: As for :class:`RiemannianSGD`.
        lr: Learning rate: about the length of a step in each block.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1).
        eps: :math:`\epsilon`, positive, in units of the metric gradient, so that it is invariant,
            too. On quotients :math:`\sqrt{\hat{v_b}}` counts as 3e-4 times the largest at least:
            far smaller gradients, as those of a bias before batch normalisation, are rounding or
            the normalisation's own ``eps``, which are not equivariant.
        weight_decay: :math:`\lambda`, decoupled from the moments; ``F`` is :func:`decay` on a
            quotient, half the squared norm elsewhere.
        amsgrad: Whether to divide by the largest second moment so far.
        moments: ``"blocks"`` for the manifold's ``component_inner``, which on a
            ``BalancedQuotient`` is that of tensors, or ``"entries"``, on quotients only. By default
            as above.
        along: ``"geodesic"`` or ``"retraction"``; by default geodesics on log-polar quotients,
            retractions elsewhere.
        check_invariance: Whether to refuse the gradient of a loss that is not invariant under the
            group, at the first step.

    Raises:
        ValueError: An option out of range, or geodesics that a manifold does not have.

    Note:
        Cost as for :class:`RiemannianSGD`.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(32, 2)
        >>> w = qn.training.bind(model, qn.NodeWiseQuotient(qn.discover(model, x)))
        >>> optimizer = qn.training.RiemannianAdam([w], lr=0.1)
        >>> losses = []
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     losses.append((model(x) - x[:, :1].abs()).square().mean())
        ...     losses[-1].backward()
        ...     optimizer.step()
        >>> bool(losses[-1] < 0.1 * losses[0])
        True
    """

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        moments: str | None = None,
        along: str | None = None,
        *,
        check_invariance: bool = True,
    ):
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "moments": moments, "along": along,
        }  # fmt: skip
        super().__init__(params, defaults, check_invariance)

    def check_options(self, options: dict) -> None:
        """Ranges of the options."""
        super().check_options(options)
        self.require_range(options, "eps", 0, inf)
        if not options["eps"]:
            raise ValueError(
                "RiemannianAdam: eps must be positive; with 0 an entry without gradients would be "
                "0/0"
            )
        if len(options["betas"]) != 2:
            raise ValueError(
                f"RiemannianAdam: betas must be two numbers, got {options['betas']}"
            )
        for name, beta in zip(("betas[0]", "betas[1]"), options["betas"]):
            self.require_range({name: beta}, name, 0, 1)
        if options["moments"] not in (None, "blocks", "entries"):
            raise ValueError(
                "RiemannianAdam: moments must be 'blocks' or 'entries', got "
                f"{options['moments']!r}"
            )
        others = [m for m in map(manifold_of, options["params"]) if not _has_frame(m)]
        if options["moments"] == "entries" and others:
            raise ValueError(
                "RiemannianAdam: moments='entries' needs a frame, which quotients have and "
                f"{others[0].name} does not; use moments='blocks'"
            )

    def propose(self, here: Here, state: dict, options: dict) -> tuple[Tensor, dict]:
        """The next point, the first moment carried to it, and the second."""
        manifold, x, (beta1, beta2) = here.manifold, here.x, options["betas"]
        gradient = manifold.egrad2rgrad(x, here.gradient)
        entries = _entrywise(manifold, options["moments"])
        if entries:
            sizes = (manifold.frame(x) * gradient).square_()
        else:
            sizes = manifold.component_inner(x, gradient).expand_as(x)
        step = state.get("step", 0) + 1
        m, v = gradient * (1 - beta1), sizes * (1 - beta2)
        if state:
            m.add_(state["exp_avg"], alpha=beta1)
            v.add_(state["exp_avg_sq"], alpha=beta2)
        following, top = {"step": step, "exp_avg_sq": v}, v
        if options["amsgrad"]:
            top = torch.maximum(v, state.get("max_exp_avg_sq", v))
            following["max_exp_avg_sq"] = top
        root = (top / (1 - beta2**step)).sqrt_()
        # What is far below the largest is rounding, and differs from one representative to another.
        if _has_frame(manifold):
            root = torch.maximum(root, _LEAST * root.max())
        root.add_(options["eps"])
        direction = m / root.mul_(1 - beta1**step)
        if isinstance(manifold, QuotientManifold):
            direction = manifold.proju(x, direction)
        if options["weight_decay"]:
            slope = manifold.egrad2rgrad(x, here.decay())
            direction = direction.add(slope, alpha=options["weight_decay"])
        u = -options["lr"] * direction
        y = here.move(u)
        return y, following | {"exp_avg": _carried(here, u, y, m, entries)}


def _carried(here: Here, u: Tensor, y: Tensor, m: Tensor, entries: bool) -> Tensor:
    """The first moment at ``y``, in the coordinates of the second.

    A projection after each step would move some of it to where there are no gradients, and it would
    be divided by a second moment of nothing; the direction is projected instead.
    """
    manifold = here.manifold
    if entries or type(manifold).transp is QuotientManifold.transp:
        return manifold.frame(here.x) * m / manifold.frame(y)
    return here.carry(u, y, m)


def _entrywise(manifold, moments: str | None) -> bool:
    """Whether the second moment is that of single entries."""
    if moments is None:
        return _has_frame(manifold) and not isinstance(manifold, LogPolarQuotient)
    return moments == "entries"


def _has_frame(manifold) -> bool:
    return isinstance(manifold, QuotientManifold)
