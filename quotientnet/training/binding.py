"""A module whose parameters are views of one point of a manifold."""

from __future__ import annotations

import copy
from weakref import ref

import geoopt
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from quotientnet.errors import NotOnManifoldError
from quotientnet.layout import tensors_of
from quotientnet.options import require_module
from quotientnet.manifolds.vectors import LayoutManifold

__all__ = ["BoundParameter", "bind", "require_unbound"]

_OWNERS = WeakTensorKeyDictionary()
"""A weak reference to the vector that a parameter is a view of."""


class BoundParameter(geoopt.ManifoldParameter):
    """A point of a manifold that a module's parameters are views of; :func:`bind` makes one.

    Its ``grad`` is one vector, of which the parameters' gradients are made views when it is read:
    zeroing, scaling or removing the one does so to the others. What has been computed of the vector
    itself, a penalty say, is added, running statistics apart. A copy of it is bound to a copy of
    the module.
    """

    _module: nn.Module
    _trained: dict[str, bool]
    _gradient: Tensor | None

    @property
    def module(self) -> nn.Module:
        """The module that is bound."""
        return self._module

    @property
    def bound(self) -> list[nn.Parameter]:
        """The module's parameters that are views of this vector."""
        return list(self._tied().values())

    @property
    def grad(self) -> Tensor | None:
        """The gradient, shape ``(n,)``, zero where the module has none; None if it has none at all.

        Raises:
            RuntimeError: The module's parameters no longer share memory with the vector, or other
                ones are frozen than when they were bound.
        """
        with torch.no_grad():
            return self._gathered(self._tied())

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        tensors = self._tied()
        torch.Tensor.grad.__set__(self, None)
        if gradient is None:
            self._gradient = None  # whoever holds it may keep it
            for tensor in tensors.values():
                tensor.grad = None
            return
        self._gradient = gradient.detach().clone()
        self._give(tensors)

    def _gathered(self, tensors: dict[str, Tensor]) -> Tensor | None:
        own = torch.Tensor.grad.__get__(self)
        slopes = {n: t.grad for n, t in tensors.items() if t.grad is not None}
        if not slopes and own is None:
            return None
        if not self._is_current(slopes):
            self._gradient = torch.zeros_like(self.data)
            views = self.manifold.layout.unflatten(self._gradient)
            for name, slope in slopes.items():
                views[name].copy_(slope)
            self._give(tensors)
        if own is not None:
            count = self.manifold.layout.parameter_size
            self._gradient[:count].add_(own[:count])
            torch.Tensor.grad.__set__(self, None)
        return self._gradient

    def _is_current(self, slopes: dict[str, Tensor]) -> bool:
        """Whether every parameter's gradient is a view of the present vector."""
        if self._gradient is None:
            return False
        views = self.manifold.layout.unflatten(self._gradient)
        entries = [e for e in self.manifold.layout.entries if not e.passive]
        return len(slopes) == len(entries) and all(
            slope.data_ptr() == views[name].data_ptr() for name, slope in slopes.items()
        )

    def _give(self, tensors: dict[str, Tensor]) -> None:
        views = self.manifold.layout.unflatten(self._gradient)
        for name, tensor in tensors.items():
            tensor.grad = views[name].data  # no view to autograd

    def _tied(self) -> dict[str, Tensor]:
        """The module's parameters by name, checked to be views of this vector."""
        own, entries = tensors_of(self._module), self.manifold.layout.entries
        base, size = self.data_ptr(), self.element_size()
        for entry in entries:
            tensor = own[entry.name]
            if entry.numel and tensor.data_ptr() != base + size * entry.start:
                raise RuntimeError(
                    f"bind: {entry.name!r} of the module no longer shares memory with the bound "
                    "vector (after module.to(...), or an assignment to .data); call bind again "
                    "and make a new optimizer"
                )
        tensors = {e.name: own[e.name] for e in entries if not e.passive}
        for name, tensor in tensors.items():
            if tensor.requires_grad != self._trained[name]:
                raise RuntimeError(
                    f"bind: requires_grad of {name!r} has changed since the module was bound; the "
                    "manifold is that of all parameters together: build one from discover of the "
                    "module as it is now, bind again, and make a new optimizer"
                )
        return tensors

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            module, manifold = copy.deepcopy((self._module, self.manifold), memo)
            memo[id(self)] = _tie(module, manifold, self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, proto):
        return _tie, (self._module, self.manifold, self.requires_grad)


def bind(module: nn.Module, manifold: LayoutManifold) -> BoundParameter:
    """Make a module's parameters and running statistics views of one vector, and return that.

    This changes the module: its tensors keep their values, names and identity, and share memory
    with the vector from now on, so that an optimizer which moves the vector moves the module.
    The vector is what an optimizer for manifolds is given: one of this package's, or geoopt's.
    (Weight decay of torch's own would move running statistics, too.) What is frozen is not bound,
    and not trained if it is no longer frozen: bind again then.
    ``module.to(...)``, and whatever else gives the module new memory, unties them; the next use of
    the gradient refuses that.

    Args:
        module: A module whose parameters are those of the manifold's layout. Others that it has
            stay as they are; give them to the optimizer as a group of their own.
        manifold: A quotient, or another manifold on a layout.

    Returns:
        The point, shape ``(n,)``, whose ``grad`` is made of the module's gradients.

    Raises:
        TypeError: A manifold without a layout, or no module.
        ValueError: A tensor without values; the layout has a tensor that the module lacks, or of
            another shape.
        NotOnManifoldError: The module's parameters are no point of the manifold.
        RuntimeError: On a balanced quotient, weights so far apart in scale that float64 finds no
            canonical network.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> w = qn.training.bind(model, qn.LayerScaleQuotient(qn.discover(model, torch.ones(4, 2))))
        >>> model(torch.ones(4, 2)).sum().backward()
        >>> w.grad.shape == w.shape
        True
    """
    if not isinstance(manifold, LayoutManifold):
        raise TypeError(
            "bind: manifold must be one on a layout, such as NodeWiseQuotient(symmetry), got "
            f"{type(manifold).__name__}"
        )
    require_module(module, "bind")
    own = _require_layout(module, manifold)
    without = [name for name, tensor in own.items() if tensor.is_meta]
    if without:
        raise ValueError(
            f"bind: {without[0]!r} is on the meta device and has no values; use "
            "module.to_empty(device=...) and set them first"
        )
    reason = manifold._check_point_on_manifold(manifold.layout.flatten(own))[1]
    if reason is not None:
        raise NotOnManifoldError(
            f"bind: {reason}. Here w is manifold.layout.flatten(module). What is held or excluded "
            "is not trained here; zeros are no obstacle on BalancedQuotient, and small random "
            "numbers in their place are none anywhere"
        )
    return _tie(module, manifold)


def _tie(module: nn.Module, manifold: LayoutManifold, requires_grad=True):
    """Make the module's tensors views of a new vector."""
    own, layout = tensors_of(module), manifold.layout
    w = BoundParameter(layout.flatten(own), manifold, requires_grad)
    w._module, w._gradient = module, None
    w._trained = {e.name: own[e.name].requires_grad for e in layout.entries}
    for name, view in layout.unflatten(w.data).items():
        own[name].data = view
        _OWNERS[own[name]] = ref(w)
    return w


def require_unbound(parameter: Tensor, caller: str) -> None:
    """Refuse a parameter that is a view of a bound vector.

    Raises:
        ValueError: It is one, still.
    """
    owner = _OWNERS[parameter]() if parameter in _OWNERS else None
    if owner is None:
        return
    start, size = owner.data_ptr(), owner.numel() * owner.element_size()
    if start <= parameter.data_ptr() < start + size:
        raise ValueError(
            f"{caller}: got a parameter of shape {tuple(parameter.shape)} that is a view of a "
            "bound point and knows no manifold; pass the vector that bind returned, alone or "
            "beside parameters that are not bound"
        )


def _require_layout(module: nn.Module, manifold: LayoutManifold) -> dict[str, Tensor]:
    """The module's tensors by name, which fit the manifold's layout."""
    own = tensors_of(module)
    for entry in manifold.layout.entries:
        found = tuple(own[entry.name].shape) if entry.name in own else "none"
        if found != entry.shape:
            raise ValueError(
                f"bind: the manifold is of another model: its {entry.name!r} has shape "
                f"{entry.shape}, the module has {found}; build the manifold from "
                "discover(module, inputs)"
            )
    return own
