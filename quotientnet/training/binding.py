"""A module whose parameters are views of one point of a manifold."""

from __future__ import annotations

import geoopt
import torch
from torch import Tensor, nn

from quotientnet.errors import NotOnManifoldError
from quotientnet.layout import tensors_of
from quotientnet.manifolds.vectors import LayoutManifold

__all__ = ["BoundParameter", "bind"]


class BoundParameter(geoopt.ManifoldParameter):
    """A point of a manifold that a module's parameters are views of; :func:`bind` makes one.

    Its ``grad`` is one vector, of which the parameters' gradients are made views when it is read:
    zeroing, scaling or removing the one does so to the others.
    """

    _module: nn.Module
    _gradient: Tensor

    @property
    def grad(self) -> Tensor | None:
        """The gradient, shape ``(n,)``, zero where the module has none; None if it has none at all.

        Raises:
            RuntimeError: The module's parameters no longer share memory with the vector.
        """
        tensors = self._tied()
        if all(tensor.grad is None for tensor in tensors.values()):
            return None
        for name, view in self.manifold.layout.unflatten(self._buffer()).items():
            gradient = tensors[name].grad if name in tensors else None
            if gradient is None:
                view.zero_()
            elif gradient.data_ptr() != view.data_ptr():
                view.copy_(gradient)
            if name in tensors:
                tensors[name].grad = view
        return self._gradient

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        tensors = self._tied()
        if gradient is None:
            for tensor in tensors.values():
                tensor.grad = None
            return
        views = self.manifold.layout.unflatten(self._buffer().copy_(gradient))
        for name, tensor in tensors.items():
            tensor.grad = views[name]

    def _buffer(self) -> Tensor:
        """Where the gradient is; memory is taken when it is first needed."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.data)
        return self._gradient

    def _tied(self) -> dict[str, Tensor]:
        """The module's parameters by name, checked to be views of this vector."""
        own = tensors_of(self._module)
        base, size = self.data_ptr(), self.element_size()
        for entry in self.manifold.layout.entries:
            tensor = own[entry.name]
            if entry.numel and tensor.data_ptr() != base + size * entry.start:
                raise RuntimeError(
                    f"bind: {entry.name!r} of the module no longer shares memory with the bound "
                    "vector (after module.to(...), or an assignment to .data); call bind again "
                    "and make a new optimizer"
                )
        entries = self.manifold.layout.entries
        return {e.name: own[e.name] for e in entries if not e.passive}

    def __deepcopy__(self, memo):
        """A point of its own, to which no module is bound."""
        if id(self) not in memo:
            memo[id(self)] = geoopt.ManifoldParameter(
                self.data.clone(), self.manifold, self.requires_grad
            )
        return memo[id(self)]

    def __reduce_ex__(self, proto):
        # Saved alone, it is a point; modules and optimizers are saved by their state_dict.
        return self.__deepcopy__({}).__reduce_ex__(proto)


def bind(module: nn.Module, manifold: LayoutManifold) -> BoundParameter:
    """Make a module's parameters and running statistics views of one vector, and return that.

    This changes the module: its tensors keep their values, names and identity, and share memory
    with the vector from now on, so that an optimizer which moves the vector moves the module.
    The vector is what an optimizer for manifolds is given: one of this package's, or geoopt's.
    ``module.to(...)``, and whatever else gives the module new memory, unties them; the next use of
    the gradient refuses that.

    Args:
        module: A module whose parameters are those of the manifold's layout. Others that it has
            stay as they are; give them to the optimizer as a group of their own.
        manifold: A quotient, or another manifold on a layout.

    Returns:
        The point, shape ``(n,)``, whose ``grad`` is made of the module's gradients.

    Raises:
        TypeError: A manifold without a layout.
        ValueError: The layout has a tensor that the module lacks, or of another shape.
        NotOnManifoldError: The module's parameters are no point of the manifold.

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
    own = _require_layout(module, manifold)
    vector = manifold.layout.flatten(own)
    reason = manifold._check_point_on_manifold(vector)[1]
    if reason is not None:
        raise NotOnManifoldError(f"bind: {reason}")
    w = BoundParameter(vector, manifold=manifold)
    w._module, w._gradient = module, None
    for name, view in manifold.layout.unflatten(w.data).items():
        own[name].data = view
    return w


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
