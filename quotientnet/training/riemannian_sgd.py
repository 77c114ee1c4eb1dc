"""Gradient descent with momentum on manifolds."""

from __future__ import annotations

from math import inf

from torch import Tensor

from quotientnet.training.riemannian import Here, RiemannianOptimizer

__all__ = ["RiemannianSGD"]


class RiemannianSGD(RiemannianOptimizer):
    r"""Stochastic gradient descent along the curves of a manifold, with momentum.

    With the Riemannian gradient :math:`g = \operatorname{grad}(f + \lambda F)(w)`,

    .. math:: m \leftarrow \mu\, \Gamma m + (1 - \tau) g, \qquad w \leftarrow R_w(-\eta\, m),

    where :math:`\Gamma` carries the momentum along the last step; it starts as the first gradient.
    So on a quotient it is a tangent vector of the quotient from the first step: started at an
    equivalent network, the optimizer passes through equivalent networks, with the same losses
    (:func:`quotientnet.testing.check_equivariant_training`). On plain parameters it is
    :class:`torch.optim.SGD`.

    Args:
        params: The vector that :func:`bind` returned, other parameters of geoopt manifolds, plain
            parameters, or dicts of these with options of their own.
        lr: Learning rate. The length of a step is in units of the metric: on a log-polar quotient
            it is relative to the weights.
        momentum: :math:`\mu`, in [0, 1).
        dampening: :math:`\tau`.
        nesterov: Whether to step along :math:`g + \mu m`.
        weight_decay: :math:`\lambda`; ``F`` is :func:`decay` on a quotient, half the squared norm
            elsewhere.
        along: ``"geodesic"`` or ``"retraction"``; by default geodesics on log-polar quotients,
            retractions elsewhere.
        check_invariance: Whether to refuse the gradient of a loss that is not invariant under the
            group, at the first step.

    Raises:
        ValueError: An option out of range, or geodesics that a manifold does not have.

    Note:
        Beyond the gradient: a few passes through the vector on a log-polar quotient, two convex
        problems on a ``BalancedQuotient``, one for weight decay on another quotient.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(32, 2)
        >>> w = qn.training.bind(model, qn.BalancedQuotient(qn.discover(model, x)))
        >>> optimizer = qn.training.RiemannianSGD([w], lr=0.05, momentum=0.9)
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
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        along: str | None = None,
        *,
        check_invariance: bool = True,
    ):
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov,
            "weight_decay": weight_decay, "along": along,
        }  # fmt: skip
        super().__init__(params, defaults, check_invariance)

    def check_options(self, options: dict) -> None:
        """Ranges of the options, and Nesterov's method only with momentum."""
        super().check_options(options)
        self.require_range(options, "momentum", 0, 1)
        self.require_range(options, "dampening", -inf, inf)
        if options["nesterov"] and (not options["momentum"] or options["dampening"]):
            raise ValueError(
                "RiemannianSGD: nesterov=True needs a momentum and no dampening, got momentum="
                f"{options['momentum']}, dampening={options['dampening']}"
            )

    def propose(self, here: Here, state: dict, options: dict) -> tuple[Tensor, dict]:
        """The next point, and the momentum carried to it."""
        gradient, momentum = here.gradient, options["momentum"]
        if options["weight_decay"]:
            gradient = gradient.add(here.decay(), alpha=options["weight_decay"])
        direction = gradient = here.manifold.egrad2rgrad(here.x, gradient)
        m = state.get("momentum_buffer")
        if momentum:
            fresh = gradient if m is None else gradient * (1 - options["dampening"])
            m = fresh.clone() if m is None else fresh.add_(m, alpha=momentum)
            direction = gradient + momentum * m if options["nesterov"] else m
        u = -options["lr"] * direction
        y, following = here.move(u), {"step": state.get("step", 0) + 1}
        if m is not None:
            following["momentum_buffer"] = here.carry(u, y, m)
        return y, following
