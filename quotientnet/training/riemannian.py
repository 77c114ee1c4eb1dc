"""What optimizers on manifolds share: a step is proposed for all parameters, then made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import geoopt
import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.manifolds import QuotientManifold
from quotientnet.manifolds.vectors import LayoutManifold, listed
from quotientnet.optimization.paths import Path, path_on
from quotientnet.orbit import require_flat_orbit
from quotientnet.training.decay import decay
from quotientnet.training.neighbours import require_loss

__all__ = ["Here", "RiemannianOptimizer", "manifold_of"]


def manifold_of(parameter: Tensor) -> geoopt.Manifold:
    """The manifold of a parameter; Euclidean space for a plain one."""
    return getattr(parameter, "manifold", None) or geoopt.Euclidean()


@dataclass(frozen=True)
class Here:
    """A parameter before a step.

    Attributes:
        x: Its value.
        gradient: The Euclidean gradient, finite.
        path: Which curves are followed.
        caller: Who is to be named in errors.
    """

    x: Tensor
    gradient: Tensor
    path: Path
    caller: str

    @property
    def manifold(self) -> geoopt.Manifold:
        """The parameter's manifold."""
        return self.path.manifold

    def decay(self) -> Tensor:
        """The Euclidean gradient of what weight decay makes small."""
        if isinstance(self.manifold, QuotientManifold):
            return decay(self.x, self.manifold).gradient
        return self.x

    def move(self, u: Tensor) -> Tensor:
        """The end of the curve with velocity ``u``.

        Raises:
            NotOnManifoldError: The curve leaves the manifold on the way.
        """
        if isinstance(self.manifold, LayoutManifold):
            rows = (t.reshape(-1, t.shape[-1]) for t in (self.x, u))
            if not self.path.valid(*rows).all():
                crossed = self.manifold.component_inner(self.x, self.x, u) <= -1
                raise NotOnManifoldError(
                    f"{self.caller}: the step would take blocks of "
                    f"{listed(self.manifold.layout.count(crossed))} through zero, where the metric "
                    "is singular; lower the learning rate or use along='geodesic'. Nothing was "
                    "changed"
                )
        return self.path.settled(self.path.move(self.x, u))

    def carry(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``v``, tangent here, carried to ``y = move(u)``."""
        return self.path.transport(self.x, u, y, v)


class RiemannianOptimizer(torch.optim.Optimizer):
    """Steps along curves of each parameter's manifold.

    A member writes :meth:`propose`, and :meth:`check_options` for options of its own.
    """

    @abstractmethod
    def propose(self, here: Here, state: dict, options: dict) -> tuple[Tensor, dict]:
        """The next point and the next state; neither argument is changed.

        Args:
            here: The parameter.
            state: Of the step before; empty at the first.
            options: Those of the parameter group.
        """

    def check_options(self, options: dict) -> None:
        """Refuse options of a parameter group by raising ValueError."""
        self.require_range(options, "lr", 0, inf)
        self.require_range(options, "weight_decay", 0, inf)

    def require_range(self, options: dict, name: str, low: float, high: float) -> None:
        """Raise ValueError unless ``low <= options[name] < high``."""
        if not low <= options[name] < high:
            raise ValueError(
                f"{type(self).__name__}: {name} must be at least {low} and less than {high}, got "
                f"{options[name]}"
            )

    def add_param_group(self, param_group: dict) -> None:
        """Add a group of parameters with options of its own, as torch's optimizers do.

        Raises:
            ValueError: Options out of range, or ``along`` that a manifold does not have.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_options(group)
            for parameter in group["params"]:
                manifold = manifold_of(parameter)
                path_on(manifold, group["along"], type(self).__name__)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One step of all parameters that have a gradient.

        Args:
            closure: Zeroes the gradients, computes the loss, calls ``backward()`` and returns it.

        Returns:
            What the closure returned; None without one.

        Raises:
            TypeError: The closure returns no loss.
            FloatingPointError: The loss or a gradient is NaN or infinite; names the parameter.
            ValueError: At the first step: the loss is not invariant under the group of a
                parameter's manifold.
            NotOnManifoldError: A step would leave the manifold, or weight decay has no canonical
                network.

        Note:
            Whatever is raised, no parameter and no state has been changed.
        """
        loss, value = None, torch.ones(())
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            value = require_loss(loss, type(self).__name__)
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"{type(self).__name__}: the loss is {float(value)}; is there NaN in the "
                    "batch, or is the learning rate too large? Nothing was changed"
                )
        proposals = []
        for group in self.param_groups:
            for i, parameter in enumerate(group["params"]):
                gradient = parameter.grad
                if gradient is not None:
                    here = self._here(parameter, gradient, group, i, value)
                    state = self.state.get(parameter, {})
                    proposals.append((parameter, *self.propose(here, state, group)))
        for parameter, point, state in proposals:
            parameter.copy_(point)
            self.state[parameter] = state
        return loss

    def _here(self, parameter, gradient: Tensor, group: dict, i: int, value) -> Here:
        """The parameter, once its gradient is known to be one."""
        caller = type(self).__name__
        manifold, x = manifold_of(parameter), parameter.detach()
        state = self.state.get(parameter, {})
        if not torch.isfinite(gradient.sum()):
            bad = ~torch.isfinite(gradient)
            if bad.any():
                raise FloatingPointError(
                    f"{caller}: the gradient of {_named(manifold, group, i, bad)} is NaN or "
                    f"infinite at step {state.get('step', 0) + 1}. Nothing was changed"
                )
        if not state and isinstance(manifold, QuotientManifold) and x.ndim == 1:
            require_flat_orbit(manifold.group, x, gradient, value, caller)
        return Here(x, gradient, path_on(manifold, group["along"], caller), caller)


def _named(manifold, group: dict, i: int, bad: Tensor) -> str:
    """The parameter's name, as far as it is known."""
    if isinstance(manifold, LayoutManifold):
        return listed(manifold.layout.count(bad))
    names = group.get("param_names")
    return repr(names[i]) if names else f"parameter {i}, shape {tuple(bad.shape)},"
