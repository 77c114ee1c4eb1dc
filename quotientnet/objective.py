"""A loss as a function on parameter space, and all local knowledge of it at a point."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.losses import normaliser
from quotientnet.operator import Operator

__all__ = ["Objective", "Point"]


class Objective:
    """The loss of a model on data, as a function ``f(w)`` of one flat vector.

    The model is called functionally in its present mode: its parameters, buffers and mode, and
    the states of all random generators, are the same after every call. Running statistics are
    passive coordinates of ``w``: in eval mode they enter the value, in train mode they are
    ignored (and batch normalisation couples the samples of a batch, so that the value depends on
    the split into batches).

    Args:
        model: Any module whose forward takes the inputs of a batch.
        loss: ``loss(outputs, targets)``, a scalar: a torch loss, any mean over samples, or an
            object with its own ``normaliser(outputs, targets)``.
        data: One batch, or an iterable of batches that can be iterated again (a
            :class:`~torch.utils.data.DataLoader`). A batch is a pair ``(inputs, targets)``, where
            inputs are a tensor, a tuple (positional arguments) or a dict (keyword arguments), or
            a dict that holds the targets under ``target_key``. Floating-point tensors are moved to
            the dtype, and all tensors to the device, of ``w``.
        target_key: The key of the targets in dict batches; the rest are keyword arguments.
        layout: The coordinates; by default those of ``ParameterLayout.from_module(model)``.

    Raises:
        ValueError: No data, a batch of another form, or an iterator that can be read only once.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1).double()
        >>> inputs, targets = torch.ones(4, 2), torch.zeros(4, 1)
        >>> objective = Objective(model, nn.MSELoss(), (inputs, targets))
        >>> point = objective.at(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
        >>> point.value.item(), point.gradient.tolist()
        (9.0, [6.0, 6.0, 6.0])
    """

    def __init__(
        self,
        model: nn.Module,
        loss,
        data,
        *,
        target_key: str = "labels",
        layout: ParameterLayout | None = None,
    ):
        if not isinstance(model, nn.Module) or not callable(loss):
            raise TypeError(
                "Objective: model must be a torch.nn.Module and loss a callable, got "
                f"{type(model).__name__} and {type(loss).__name__}"
            )
        self.model, self.loss, self.target_key = model, loss, target_key
        self.layout = ParameterLayout.from_module(model) if layout is None else layout
        if isinstance(data, Iterator):
            raise ValueError(
                "Objective: data is an iterator, which can be read only once; pass a list of "
                "batches or a DataLoader"
            )
        if isinstance(data, torch.utils.data.Dataset) or not isinstance(data, Iterable):
            raise ValueError(
                f"Objective: data is a {type(data).__name__}, not a batch or batches; wrap a "
                "dataset in torch.utils.data.DataLoader"
            )
        self._whole = isinstance(data, Mapping) or _is_pair(data)
        self.data = [data] if self._whole else data
        if hasattr(self.data, "__len__") and len(self.data) == 0:
            raise ValueError(
                "Objective: data has no batches; the loss of nothing is undefined"
            )
        self._checked_modes = None

    def __call__(self, w: Tensor) -> Tensor:
        """``f(w)``, a scalar, differentiable in ``w``, shape ``(size,)``; works under
        :func:`torch.func.vmap` for batches of points."""
        self.layout.check(w, "Objective")
        with self._preserved(w):
            return self._total(w)

    def at(self, w: Tensor) -> Point:
        """All local knowledge of ``f`` at ``w``, each piece computed when first asked for.

        The first call in each mode of the model evaluates the loss twice, and refuses a loss that
        is not a function.

        Args:
            w: One point, shape ``(size,)``, of the model's dtype and device.

        Raises:
            ValueError: Another length, dtype or device; NaN or infinite entries; a loss that is
                not a finite scalar; or two evaluations that differ.
        """
        self.layout.check(w, "Objective.at")
        if w.ndim != 1:
            raise ValueError(
                f"Objective.at: needs one point, got shape {tuple(w.shape)}"
            )
        reference = next(iter(self.model.parameters()))
        if (w.dtype, w.device) != (reference.dtype, reference.device):
            raise ValueError(
                f"Objective.at: w is {w.dtype} on {w.device}, the model is {reference.dtype} on "
                f"{reference.device}; use w.to(...) or model.to(...)"
            )
        bad = ~torch.isfinite(w)
        if bad.any():
            name, count = next(iter(self.layout.count(bad).items()))
            raise ValueError(
                f"Objective.at: {name!r} has {count} NaN or infinite entries"
            )
        self._require_deterministic(w)
        return Point(self, w)

    def _total(self, w: Tensor) -> Tensor:
        """The mean, or the sum, over all batches."""
        sums, weights = zip(
            *((value, n) for _, value, n in self._sums(lambda: (None, w)))
        )
        return sum(sums[1:], sums[0]) / _divisor(weights)

    def _sums(self, point) -> Iterator[tuple]:
        """For each batch that counts: what ``point()`` returns beside ``w``, the loss times its
        normaliser, and the normaliser (None for a sum)."""
        batches = counted = 0
        for batch in self.data:
            batches += 1
            companion, w = point()
            value, weight = self._batch_loss(w, batch)
            if weight is not None and float(weight) == 0:
                continue  # a mean over nothing, which is not a number
            counted += 1
            yield companion, value if weight is None else value * weight, weight
        if not counted:
            what = "batches" if not batches else "targets that count"
            raise ValueError(
                f"Objective: data has no {what}; the loss of nothing is undefined"
            )

    def _batch_loss(self, w: Tensor, batch) -> tuple[Tensor, Tensor | float | None]:
        """A batch's loss and its normaliser, None for a sum."""
        args, kwargs, targets = self._read(batch, w)
        tensors = self.layout.substitutes(self.model, w)
        outputs = torch.func.functional_call(
            self.model, tensors, args, kwargs, tie_weights=False
        )
        value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = (
                tuple(value.shape)
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise ValueError(
                f"Objective: the loss must be a scalar tensor, got {got}; "
                "use reduction='mean' or 'sum'"
            )
        return value, normaliser(self.loss, outputs, targets)

    def _read(self, batch, w: Tensor):
        """Positional and keyword arguments, and targets, of a batch."""
        if isinstance(batch, Mapping):
            if self.target_key not in batch:
                raise ValueError(
                    f"Objective: a dict batch has no {self.target_key!r} among "
                    f"{', '.join(map(str, batch))}; pass target_key=..."
                )
            inputs = {k: v for k, v in batch.items() if k != self.target_key}
            targets = batch[self.target_key]
        elif _is_pair(batch):
            inputs, targets = batch
        else:
            raise ValueError(
                "Objective: a batch must be a pair (inputs, targets) or a dict, got "
                f"{type(batch).__name__}; pass tensors, as (inputs, targets) or a list of pairs"
            )
        inputs, targets = _moved(inputs, w), _moved(targets, w)
        if isinstance(inputs, Mapping):
            return (), dict(inputs), targets
        return (
            (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)),
            {},
            targets,
        )

    def _preserved(self, w: Tensor):
        """Give back every random generator that a pass through the data may draw from."""
        owners = (self.data, getattr(self.data, "sampler", None))
        found = (getattr(owner, "generator", None) for owner in owners)
        own = [g for g in found if isinstance(g, torch.Generator)]
        return _preserved_random_states(w.device, own)

    def _require_deterministic(self, w: Tensor) -> None:
        modes = tuple(module.training for module in self.model.modules())
        if self._checked_modes == modes:
            return
        with torch.no_grad(), self._preserved(w):
            first, second = (self._total(w) for _ in range(2))
        _require_finite(first)
        gap = float(
            (first - second).abs() / first.abs().clamp(min=torch.finfo(w.dtype).tiny)
        )
        if not gap <= 64 * torch.finfo(w.dtype).eps:
            raise ValueError(
                f"Objective.at: two evaluations differ by {gap:.1e} relative, so the loss is not a "
                "function of w; is dropout on (use model.eval()), or are the batches augmented or "
                "drawn at random?"
            )
        self._checked_modes = modes


class Point:
    """The value, gradient and Hessian of an objective at ``w``, computed once each.

    Attributes:
        objective: The function, for its values at neighbours.
        w: The point, shape ``(size,)``; a detached copy.
    """

    def __init__(self, objective: Objective, w: Tensor):
        self.objective, self.w = objective, w.detach().clone()

    @property
    def layout(self) -> ParameterLayout:
        """The coordinates."""
        return self.objective.layout

    @cached_property
    def value(self) -> Tensor:
        """``f(w)``, a scalar, per sample if the loss is a mean."""
        if "_graph" in self.__dict__:
            return self._graph[0].detach()
        with torch.no_grad():
            return _require_finite(self.objective(self.w))

    @cached_property
    def gradient(self) -> Tensor:
        """``∇f(w)``, shape ``(size,)``, Euclidean; zero on passive coordinates.

        Note: two gradient units for one batch, where the work is kept for the Hessian.
        """
        if self.objective._whole:
            return self._pad(self._graph[2].detach())
        return self._accumulate(lambda gradient, leaf: gradient, create_graph=False)

    @cached_property
    def hessian(self) -> Operator:
        """``∇²f(w)``, zero on passive coordinates; on one batch it reuses the gradient's graph."""
        return _Hessian(self)

    @cached_property
    def _graph(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, leaf and gradient with its graph, on a single batch."""
        with torch.enable_grad():
            leaf, w = self._leaf()
            value = _require_finite(self.objective(w))
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        return value, leaf, gradient

    def _leaf(self) -> tuple[Tensor, Tensor]:
        """The parameters as a leaf, and the whole point that depends on it."""
        count = self.layout.parameter_size
        leaf = self.w[:count].clone().requires_grad_()
        return leaf, leaf if count == len(self.w) else torch.cat([leaf, self.w[count:]])

    def _pad(self, u: Tensor) -> Tensor:
        """A vector on the parameters with zeros on passive coordinates."""
        return torch.nn.functional.pad(u, (0, len(self.w) - len(u)))

    def _accumulate(self, term, create_graph: bool = True) -> Tensor:
        """``term(gradient, leaf)`` summed over the batches of a loader and normalised."""
        total, weights = 0.0, []
        with torch.enable_grad(), self.objective._preserved(self.w):
            for leaf, value, weight in self.objective._sums(self._leaf):
                (gradient,) = torch.autograd.grad(
                    value, leaf, create_graph=create_graph
                )
                total = total + term(gradient, leaf).detach()
                weights.append(weight)
        return self._pad(total / _divisor(weights))


class _Hessian(Operator):
    """Double backward: over a retained graph for one batch, batch by batch for a loader."""

    def __init__(self, point: Point):
        super().__init__(point.w.shape[0], point.w.dtype, point.w.device)
        self._point = point

    def _matvec(self, v: Tensor) -> Tensor:
        point, v = self._point, v[: self._point.layout.parameter_size]
        if point.objective._whole:
            _, leaf, gradient = point._graph
            return point._pad(_pullback(gradient, leaf, v, retain=True))
        return point._accumulate(
            lambda gradient, leaf: _pullback(gradient, leaf, v, retain=False)
        )


def _require_finite(value: Tensor) -> Tensor:
    if not torch.isfinite(value):
        raise ValueError(
            f"Objective.at: the loss is {value.item()} at this point; check the data, the "
            "targets and the scale of w"
        )
    return value


def _divisor(weights):
    """What the sum over batches is divided by: 1 for losses that are sums."""
    return 1.0 if weights[0] is None else sum(weights)


def _pullback(gradient: Tensor, leaf: Tensor, v: Tensor, retain: bool) -> Tensor:
    """``∂⟨gradient, v⟩/∂leaf``; zero where the gradient is constant."""
    if not gradient.requires_grad:
        return torch.zeros_like(v)
    (product,) = torch.autograd.grad(
        gradient,
        leaf,
        v,
        retain_graph=retain,
        allow_unused=True,
        materialize_grads=True,
    )
    return product


def _is_pair(data) -> bool:
    """Whether ``data`` is one ``(inputs, targets)`` batch rather than a list of batches."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    return isinstance(data[1], Tensor)


def _moved(data, w: Tensor):
    """Tensors inside ``data`` on ``w``'s device, the floating ones in its dtype."""
    if isinstance(data, Tensor):
        return data.to(w.device, w.dtype if data.is_floating_point() else data.dtype)
    if isinstance(data, Mapping):
        return {key: _moved(value, w) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return type(data)(_moved(value, w) for value in data)
    return data


@contextmanager
def _preserved_random_states(device: torch.device, generators: list[torch.Generator]):
    """Give back the global generators, and those listed, as they were."""
    states = (
        random.getstate(),
        np.random.get_state(),
        [g.get_state() for g in generators],
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for generator, state in zip(generators, states[2]):
                generator.set_state(state)
