"""Adam on manifolds: second moments per block, in the metric."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from quotientnet.manifolds import QuotientManifold
from quotientnet.training.riemannian import Here, RiemannianOptimizer

__all__ = ["RiemannianAdam"]


class RiemannianAdam(RiemannianOptimizer):
    r"""Adam along the curves of a manifold, invariant on quotients.

    The first moment is the Riemannian gradient's, carried along the steps. The second moment has
    one number for each block ``b`` of the metric (a tensor, filter or entry, as the manifold's
    ``component_inner`` has it), the squared length of the gradient's part there:

    .. math:: m \leftarrow \beta_1 \Gamma m + (1 - \beta_1) g, \qquad
        v_b \leftarrow \beta_2 v_b + (1 - \beta_2) \|g_b\|_w^2, \qquad
        w \leftarrow R_w\Big(-\eta \Big[P \frac{\hat m_b}{\sqrt{\hat v_b} + \epsilon}
        + \lambda \operatorname{grad} F\Big]\Big).

    Lengths in the metric are the same on the whole orbit, so the trajectory is equivariant as that
    of :class:`RiemannianSGD`; the projection :math:`P` keeps the scaled direction horizontal. Adam
    itself divides by sizes of Euclidean gradients, which depend on the representative. On plain
    parameters it is :class:`torch.optim.AdamW`.

    Args:
        params: As for :class:`RiemannianSGD`.
        lr: Learning rate: about the length of a step in each block.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1).
        eps: :math:`\epsilon`, in units of the metric gradient, so that it is invariant, too.
        weight_decay: :math:`\lambda`, decoupled from the moments; ``F`` is :func:`decay` on a
            quotient, half the squared norm elsewhere.
        amsgrad: Whether to divide by the largest second moment so far.
        along: ``"geodesic"`` or ``"retraction"``; by default geodesics on log-polar quotients,
            retractions elsewhere.

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
        along: str | None = None,
    ):
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "along": along,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check_options(self, options: dict) -> None:
        """Ranges of the options."""
        super().check_options(options)
        self.require_range(options, "eps", 0, inf)
        for name, beta in zip(("betas[0]", "betas[1]"), options["betas"]):
            self.require_range({name: beta}, name, 0, 1)

    def propose(self, here: Here, state: dict, options: dict) -> tuple[Tensor, dict]:
        """The next point, the first moment carried to it, and the second."""
        manifold, x, (beta1, beta2) = here.manifold, here.x, options["betas"]
        gradient = manifold.egrad2rgrad(x, here.gradient)
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
        root = (top / (1 - beta2**step)).sqrt_().add_(options["eps"])
        direction = m / root.mul_(1 - beta1**step)
        if isinstance(manifold, QuotientManifold):
            direction = manifold.proju(x, direction)
        if options["weight_decay"]:
            slope = manifold.egrad2rgrad(x, here.decay())
            direction = direction.add(slope, alpha=options["weight_decay"])
        u = -options["lr"] * direction
        y = here.move(u)
        return y, following | {"exp_avg": _carried(here, u, y, m)}


def _carried(here: Here, u: Tensor, y: Tensor, m: Tensor) -> Tensor:
    """The first moment at ``y``, with the length that it had in each block.

    A projection after each step would move some of it into blocks without gradients, where it
    would be divided by a second moment of nothing; the direction is projected instead.
    """
    manifold = here.manifold
    if type(manifold).transp is QuotientManifold.transp:
        return manifold.frame(here.x) * m / manifold.frame(y)
    return here.carry(u, y, m)
