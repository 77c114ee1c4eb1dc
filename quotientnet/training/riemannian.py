"""What optimizers on manifolds share: a step is proposed for all parameters, then made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real

import geoopt
import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.manifolds import QuotientManifold
from quotientnet.manifolds.vectors import LayoutManifold, listed
from quotientnet.optimization.paths import Path, path_on
from quotientnet.orbit import require_flat_orbit
from quotientnet.training.binding import require_unbound
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
            FloatingPointError: Its end is beyond the numbers of the dtype.
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
        try:
            return self.path.settled(self.path.move(self.x, u))
        except ValueError as error:
            ended = torch.isfinite((self.x + u).sum())
            if isinstance(error, NotOnManifoldError) and ended:
                raise  # a network that has no place on the manifold
            raise FloatingPointError(
                f"{self.caller}: the step overflows; lower the learning rate. ({error}) Nothing "
                "was changed"
            ) from error

    def carry(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``v``, tangent here, carried to ``y = move(u)``."""
        return self.path.transport(self.x, u, y, v)


def _listed(params, caller: str) -> list:
    """Parameters, or groups of them, one or more."""
    if isinstance(params, (Tensor, str, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(
            f"{caller}: params must be a list of tensors, or of dicts with them under 'params', "
            f"got {type(params).__name__}; for a bound module pass [bind(module, manifold)]"
        )
    found = list(params)
    if not found:
        raise ValueError(f"{caller}: params is empty; pass [bind(module, manifold)]")
    for each in found:
        if not isinstance(each, (Tensor, Mapping, tuple)):
            raise TypeError(
                f"{caller}: each of params must be a tensor or a dict, got {type(each).__name__}"
            )
    return found


class RiemannianOptimizer(torch.optim.Optimizer):
    """Steps along curves of each parameter's manifold.

    A member writes :meth:`propose`, and :meth:`check_options` for options of its own.

    Args:
        params: As any torch optimizer takes them.
        defaults: The options of parameter groups that do not name them.
        check_invariance: Whether to refuse gradients of a loss that is not invariant under the
            group of a quotient.
    """

    def __init__(self, params, defaults: dict, check_invariance: bool):
        self.check_invariance = check_invariance
        self._checked: dict[Tensor, tuple[bool, ...]] = {}
        super().__init__(_listed(params, type(self).__name__), defaults)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_checked": {}}

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
        """Raise ValueError unless ``low <= options[name] < high``, TypeError for no number."""
        value = options[name]
        if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise TypeError(f"{type(self).__name__}: {name} must be a number, got {value!r}")
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
                require_unbound(parameter, type(self).__name__)
                path_on(manifold_of(parameter), group["along"], type(self).__name__)
        except (TypeError, ValueError):
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
            FloatingPointError: The loss or a gradient is NaN or infinite; names the parameter. Or
                the step overflows.
            ValueError: At the first step, and the first in another mode of a bound module: the
                loss is not invariant under the group of a parameter's manifold. Or a gradient is
                sparse, or the closure computes none.
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
        if closure is not None and not proposals:
            raise ValueError(
                f"{type(self).__name__}: the closure computed no gradient; call loss.backward() in "
                "it"
            )
        for parameter, point, state in proposals:
            parameter.copy_(point)
            self.state[parameter] = state
        return loss

    def _here(self, parameter, gradient: Tensor, group: dict, i: int, value) -> Here:
        """The parameter, once its gradient is known to be one."""
        caller = type(self).__name__
        manifold, x = manifold_of(parameter), parameter.detach()
        state = self.state.get(parameter, {})
        if gradient.is_sparse:
            raise ValueError(
                f"{caller}: the gradient of {_named(manifold, group, i, gradient)} is sparse; make "
                "it dense, with sparse=False in the embedding say. Nothing was changed"
            )
        if not torch.isfinite(gradient.sum()):
            bad = ~torch.isfinite(gradient)
            if bad.any():
                raise FloatingPointError(
                    f"{caller}: the gradient of {_named(manifold, group, i, bad)} is NaN or "
                    f"infinite at step {state.get('step', 0) + 1}. Nothing was changed"
                )
        self._require_invariance(parameter, manifold, gradient, value)
        return Here(x, gradient, path_on(manifold, group["along"], caller), caller)

    def _require_invariance(self, parameter, manifold, gradient: Tensor, value) -> None:
        """Refuse a loss with slopes along orbits; looked at once in each mode of the module."""
        quotient = isinstance(manifold, QuotientManifold) and parameter.ndim == 1
        if not (self.check_invariance and quotient):
            return
        module = getattr(parameter, "module", None)
        modes = tuple(m.training for m in module.modules()) if module else ()
        if self._checked.get(parameter) != modes:
            name = type(self).__name__
            try:
                x = parameter.detach()
                require_flat_orbit(manifold.group, x, gradient, value, name)
            except ValueError as error:
                raise ValueError(
                    f"{error} If the gradient is meant not to be that of the loss, as inside SAM, "
                    "pass check_invariance=False. Nothing was changed"
                ) from None
            self._checked[parameter] = modes


def _named(manifold, group: dict, i: int, bad: Tensor) -> str:
    """The parameter's name, as far as it is known."""
    if isinstance(manifold, LayoutManifold):
        return listed(manifold.layout.count(bad))
    names = group.get("param_names")
    return repr(names[i]) if names else f"parameter {i}, shape {tuple(bad.shape)},"
