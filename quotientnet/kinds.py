"""Sorts of second derivatives, each in the two ways to compute its products on a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = [
    "BatchMap",
    "Kind",
    "HESSIAN",
    "GAUSS_NEWTON",
    "WeightNorm",
    "leaf_of",
    "twice_differentiable",
]


@dataclass(frozen=True)
class BatchMap:
    """A symmetric linear map on the parameters, of one batch at one point.

    Attributes:
        apply: From a vector to the product, both of shape ``(parameters,)``; not yet divided by
            the weight.
        weight: The batch's normaliser; None for a sum.
        device: Where it lives.
        size: Bytes that it holds, at most.
        recorded: Whether it is a recorded program rather than double backward.
    """

    apply: Callable[[Tensor], Tensor]
    weight: Tensor | float | None
    device: torch.device
    size: int
    recorded: bool = False

    def sized(self, size: int) -> BatchMap:
        """The same map with another size."""
        return replace(self, size=size)


class Kind(ABC):
    """A sort of second derivative, in the two ways to compute its products.

    Attributes:
        name: What it is called.
    """

    name: str

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    @abstractmethod
    def by_graph(self, objective, w: Tensor, batch, size: int) -> BatchMap:
        """By reverse mode twice, over a graph of ``size`` bytes that the map holds."""

    @abstractmethod
    def by_program(self, objective, batch, v: Tensor, leaf: Tensor, passive: Tensor):
        """``(value, weight), product`` by :mod:`torch.func`, to be recorded; ``(value,)`` for a
        sum. The value is the loss times the weight."""


class _Hessian(Kind):
    """``∇²f``."""

    name = "Hessian"

    def by_graph(self, objective, w: Tensor, batch, size: int) -> BatchMap:
        leaf, whole = leaf_of(w, objective.layout)

        def derivative():
            value, weight, _ = objective._evaluate(batch)
            return torch.autograd.grad(value, leaf, create_graph=True)[0], weight

        with torch.enable_grad(), twice_differentiable():
            gradient, weight = objective._within(whole, derivative)

        def apply(v: Tensor) -> Tensor:
            return objective._within(whole, lambda: _pullback(gradient, leaf, v))

        return BatchMap(apply, weight, w.device, size)

    def by_program(self, objective, batch, v: Tensor, leaf: Tensor, passive: Tensor):
        def value(leaf):
            w = torch.cat([leaf, passive])
            value, weight, _ = objective._within(w, lambda: objective._evaluate(batch))
            return value, (value.clone(), *_as_tensors(weight, value))

        _, pull, outputs = vjp(grad(value, has_aux=True), leaf, has_aux=True)
        return outputs, pull(v)[0]


class _GaussNewton(Kind):
    """``Jᵀ (∇²ℓ) J``, with ``J`` the derivative of the model's outputs."""

    name = "Gauss-Newton matrix"

    def by_graph(self, objective, w: Tensor, batch, size: int) -> BatchMap:
        leaf, whole = leaf_of(w, objective.layout)

        def linearised():
            outputs, rebuild = _differentiable(objective._outputs(batch), of=leaf)
            zeros = [torch.zeros_like(z, requires_grad=True) for z in outputs]
            back = torch.autograd.grad(outputs, leaf, zeros, create_graph=True)[0]
            cut = [z.detach().requires_grad_() for z in outputs]
            value, weight = objective._loss(rebuild(cut), batch)
            slopes = torch.autograd.grad(
                value, cut, create_graph=True, materialize_grads=True
            )
            return outputs, zeros, back, cut, slopes, weight

        with torch.enable_grad(), twice_differentiable():
            kept = objective._within(whole, linearised)
        outputs, zeros, back, cut, slopes, weight = kept

        def chain(v: Tensor) -> Tensor:
            forward = _pullback(back, zeros, v)
            return _pullback(outputs, leaf, _pullback(slopes, cut, forward))

        def apply(v: Tensor) -> Tensor:
            return objective._within(whole, lambda: chain(v))

        return BatchMap(apply, weight, w.device, size)

    def by_program(self, objective, batch, v: Tensor, leaf: Tensor, passive: Tensor):
        def model(leaf):
            w = torch.cat([leaf, passive])
            outputs = objective._within(w, lambda: objective._outputs(batch))
            z, rebuild = _differentiable(outputs)
            rebuilds.append(rebuild)
            return tuple(z)

        def loss(*z):
            value, weight = objective._loss(rebuilds[0](z), batch)
            return value, (value.clone(), *_as_tensors(weight, value))

        rebuilds: list[Callable] = []
        z, back = vjp(model, leaf)
        # The derivative of the linear map Jᵀ is J, and J v what it pulls v back to.
        forward = vjp(lambda *u: back(u)[0], *map(torch.zeros_like, z))[1](v)
        slopes = grad(loss, argnums=tuple(range(len(z))), has_aux=True)
        _, second, outputs = vjp(slopes, *z, has_aux=True)
        return outputs, back(second(forward))[0]


@contextmanager
def twice_differentiable():
    """Attention by the kernels that have second derivatives; the choice is given back."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


class WeightNorm(TorchFunctionMode):
    """Weight normalisation written out: the second derivative of torch's own (2.13) is wrong."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    norm = v.norm() if dim == -1 else torch.norm_except_dim(v, 2, dim)
    return v * (g / norm)


def leaf_of(w: Tensor, layout) -> tuple[Tensor, Tensor]:
    """The parameters as a leaf, and the whole point that depends on it."""
    count = layout.parameter_size
    leaf = w[:count].clone().requires_grad_()
    return leaf, leaf if count == len(w) else torch.cat([leaf, w[count:]])


def _differentiable(outputs, of: Tensor | None = None) -> tuple[list[Tensor], Callable]:
    """The floating tensors among a model's outputs, those only that have a graph if they must
    depend on a leaf, and how to put others in their place."""
    leaves, spec = pytree.tree_flatten(outputs)
    places = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and (of is None or leaf.requires_grad)
    ]

    def rebuild(tensors):
        changed = list(leaves)
        for place, tensor in zip(places, tensors):
            changed[place] = tensor
        return pytree.tree_unflatten(changed, spec)

    return [leaves[i] for i in places], rebuild


def _as_tensors(weight, like: Tensor) -> tuple[Tensor, ...]:
    """A normaliser among a program's outputs: none for a sum."""
    if weight is None or isinstance(weight, Tensor):
        return () if weight is None else (weight,)
    return (like.new_full((), weight),)


def _pullback(outputs, inputs, cotangents):
    """``∂⟨outputs, cotangents⟩/∂inputs``; zero where nothing depends. The graph is kept."""
    several = isinstance(outputs, (list, tuple))
    pairs = zip(outputs, cotangents) if several else [(outputs, cotangents)]
    pairs = [(y, c) for y, c in pairs if y.requires_grad]
    many = isinstance(inputs, (list, tuple))
    if not pairs:
        return (
            [torch.zeros_like(x) for x in inputs] if many else torch.zeros_like(inputs)
        )
    outputs, cotangents = zip(*pairs)
    found = torch.autograd.grad(
        outputs,
        inputs,
        cotangents,
        retain_graph=True,
        materialize_grads=True,
    )
    return list(found) if many else found[0]


HESSIAN, GAUSS_NEWTON = _Hessian(), _GaussNewton()
