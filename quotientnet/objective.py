"""A loss as a function on parameter space."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from quotientnet.kinds import WeightNorm, leaf_of
from quotientnet.layout import ParameterLayout
from quotientnet.losses import normaliser, require_classes
from quotientnet.point import Point, require_finite
from quotientnet.processes import Processes
from quotientnet.programs import Programs
from quotientnet.shards import check_shard, others_of, require_good_shards
from quotientnet.wrappers import eagerly, unwrapped

__all__ = ["Objective"]


class Objective:
    """The loss of a model on data, as a function ``f(w)`` of one flat vector.

    The model is called functionally in its present mode: its parameters, buffers and mode, and
    the states of all random generators, are the same after every call. Running statistics are
    passive coordinates of ``w``: in eval mode they enter the value, in train mode they are
    ignored (and batch normalisation couples the samples of a batch, so that the value depends on
    the split into batches).

    Args:
        model: Any module whose forward takes the inputs of a batch. Of one that is wrapped for
            several processes or compiled, the module inside is taken, and is not run compiled.
        loss: ``loss(outputs, targets)``, a scalar: a torch loss, any mean over samples, or an
            object with its own ``normaliser(outputs, targets)``.
        data: One batch, or an iterable of batches that can be iterated again (a
            :class:`~torch.utils.data.DataLoader`). A batch is a pair ``(inputs, targets)``, where
            inputs are a tensor, a tuple (positional arguments) or a dict (keyword arguments), or
            a dict that holds the targets under ``target_key``. Floating-point tensors are moved to
            the dtype, and all tensors to the device, of ``w``.
        target_key: The key of the targets in dict batches; the rest are keyword arguments.
        layout: The coordinates; by default those of ``ParameterLayout.from_module(model)``.
        products: How products with second derivatives are computed. ``"graph"``: double backward,
            on one batch over a graph that is kept. ``"record"``: the same, recorded once for the
            form of a batch as a program, of which the part without the vector is run once a point
            and the rest simplified; quicker where there are convolutions and pools, after ten to a
            hundred gradients of set-up.
            ``"recompute"``: double backward, and nothing is kept between products. ``"auto"``:
            ``"graph"`` until the set-up of ``"record"`` has paid off, if the model can be
            recorded and both agree; nothing is kept that exceeds ``memory``.
        memory: Bytes that may be kept between products at one point; by default a quarter of the
            machine's memory, or of the accelerator's.
        process_group: None, and the objective is this process's own. ``"world"``, or a group of
            ``torch.distributed``: the data are this rank's part of them, and every call is one of
            all ranks, who get the value, derivative or measure of all data
            (:doc:`/howto/processes`).

    Raises:
        ValueError: No data, a batch of another form, an iterator that can be read only once, or
            another word for ``products``; a sampler that repeats samples among the ranks.
        RuntimeError: A rank has failed, is lost, or has another model.

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
        products: str = "auto",
        memory: int | None = None,
        process_group=None,
    ):
        self._processes = Processes(process_group, _device_of(model))
        self._processes.gather(
            "the construction",
            lambda: self._take(model, loss, data, target_key, layout),
        )
        if self._processes.several:
            self._processes.gather(
                "the construction",
                lambda: None,
                layout=self.layout,
                loss=getattr(loss, "__qualname__", type(loss).__qualname__),
                frozen_tensors=others_of(self.model, self.layout),
            )
        self._checked_modes = None
        self._copies = (
            True  # until it is known that the model does not write to its inputs
        )
        self._lent: list[tuple[Tensor, int]] | None = None
        self._programs = Programs(products, memory)

    def _take(self, model, loss, data, target_key: str, layout) -> None:
        """Check what was passed, and keep it."""
        if isinstance(loss, type):
            raise TypeError(
                f"Objective: loss is the class {loss.__name__}; pass {loss.__name__}()"
            )
        if not isinstance(model, nn.Module) or not callable(loss):
            raise TypeError(
                "Objective: model must be a torch.nn.Module and loss a callable, got "
                f"{type(model).__name__} and {type(loss).__name__}"
            )
        self.model, self.loss, self.target_key = unwrapped(model), loss, target_key
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
        check_shard(self.data, self._processes)

    def __call__(self, w: Tensor) -> Tensor:
        """``f(w)``, a scalar, differentiable in ``w``, shape ``(size,)``; works under
        :func:`torch.func.vmap` for batches of points.

        Raises:
            TypeError: ``w`` is no tensor.
            ValueError: It has another shape.
        """
        self._require_one(w, "Objective")
        with self._preserved(w):
            return self._total(w.clone())  # some modules write to their parameters

    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """``f(w)`` and ``∇f(w)``, shape ``(size,)``, in one pass that holds one batch at a time.

        Args:
            w: One point, shape ``(size,)``.

        Returns:
            Both detached; the gradient is zero on passive coordinates. The value may be NaN or
            infinite, as at a neighbour that is far from any sensible network.

        Raises:
            TypeError: ``w`` is no tensor.
            ValueError: It has another shape.
        """
        self._require_one(w, "Objective.value_and_gradient")

        def term(batch):
            # Backward within, too: checkpointed modules are run again.
            def derivative():
                value, weight, _ = self._evaluate(batch)
                (slope,) = torch.autograd.grad(value, leaf)
                return torch.cat([value.detach()[None], slope]), weight

            return self._within(whole, derivative)

        def local():
            return self._added(whole, term, w.new_zeros(1 + len(leaf)))

        with torch.enable_grad(), self._preserved(w):
            leaf, whole = leaf_of(w, self.layout)
            both = self._processes.sum("a gradient", local, point=w).mean
        slope = torch.nn.functional.pad(both[1:], (0, len(w) + 1 - len(both)))
        return both[0], slope

    def _require_one(self, w: Tensor, caller: str) -> None:
        self.layout.check(w, caller)
        if w.ndim != 1:
            raise ValueError(
                f"{caller}: needs one point, got shape {tuple(w.shape)}; "
                "torch.func.vmap(objective)(w) takes rows of them, a loop takes less memory"
            )

    def streamed(self, w: Tensor) -> Tensor:
        """``f(w)``, a scalar, with a first derivative in ``w`` for which no graph is kept: on a
        loader the memory is that of one batch."""
        if not w.requires_grad:
            with torch.no_grad():
                return self(w)
        return _Streamed.apply(w, self)

    def at(self, w: Tensor) -> Point:
        """All local knowledge of ``f`` at ``w``, each piece computed when first asked for.

        The first call in each mode of the model evaluates the loss twice, and refuses a loss that
        is not a function.

        Args:
            w: One point, shape ``(size,)``, of the model's dtype and device.

        Raises:
            ValueError: Another length, dtype or device; NaN or infinite entries; a loss that is
                not a finite scalar; or two evaluations that differ.
            RuntimeError: A process of several has failed, or is at another point.
        """
        self._processes.gather("a point", lambda: self._check_point(w), point=w)
        point = Point(self, w)
        self._require_deterministic(point.w)
        if not torch.equal(point.w, w):
            name = next(iter(self.layout.count(point.w != w)))
            raise ValueError(
                f"Objective.at: the model writes to its parameter {name!r} when it is called, so "
                "the loss is not a function of w; is it nn.Embedding(max_norm=...)? Write where "
                "parameters are updated instead"
            )
        return point

    def _check_point(self, w: Tensor) -> None:
        """Refuse what is no point of the model."""
        if not isinstance(w, Tensor):
            raise TypeError(
                f"Objective.at: w must be a torch.Tensor, got {type(w).__name__}; "
                "objective.layout.flatten(model) makes one"
            )
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

    def of(self, model: nn.Module) -> Objective:
        """The same loss on the same data for another model with this layout."""
        other = copy.copy(self)
        other.model, other._programs = unwrapped(model), self._programs.anew()
        other._checked_modes = None
        return other

    def _total(self, w: Tensor) -> Tensor:
        """The mean, or the sum, over all batches of all processes."""

        def local():
            return self._local_total(self._processes.spread(w))

        return self._processes.sum("a value", local, point=w, modes=self._modes()).mean

    def _local_total(self, w: Tensor) -> tuple[Tensor, list, None]:
        """The sum over this process's batches, and their weights."""

        def term(batch):
            value, weight, _ = self._within(w, lambda: self._evaluate(batch))
            return value, weight

        # Of no batches, too, it depends on w: every rank takes part in the backward pass.
        return self._added(w, term, w[:0].sum())

    def _added(
        self, w: Tensor, term: Callable, nothing: Tensor
    ) -> tuple[Tensor, list, None]:
        """The sum of ``term(batch) -> (value, weight)`` over this process's batches, ``nothing``
        if there are none, and their weights: what :meth:`Processes.sum` adds up."""
        total, weights = None, []
        for value, _ in self._each(w, term, weights):
            total = value if total is None else total + value
        return nothing if total is None else total, weights, None

    def _each(self, w: Tensor, term: Callable, weights: list) -> Iterator[tuple]:
        """``term(batch)``, a pair of anything and a weight, for each batch that counts: one of
        weight 0 is a mean over nothing. All weights are added to a list."""
        for number, batch in enumerate(self.data):
            batch = self._read(batch, w)
            with _described(number, batch):
                found, weight = term(batch)
            weights.append(weight)
            if weight is None or float(weight) != 0:
                yield found, weight

    def _within(self, w: Tensor, function: Callable):
        """``function()`` while the model has the parameters and running statistics of ``w``."""
        tensors = self.layout.substitutes(self.model, w)
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        with torch.autocast(w.device.type, enabled=False):
            return torch.func.functional_call(
                _Host(self.model), tensors, (function,), tie_weights=False
            )

    def _outputs(self, batch):
        """What the model returns for a batch, within a point."""
        args, kwargs, _ = batch
        with WeightNorm():
            return self.model(*args, **kwargs)

    def _evaluate(self, batch) -> tuple[Tensor, Tensor | float | None, object]:
        """A batch's loss times its normaliser, the normaliser (None for a sum) and the outputs."""
        outputs = self._outputs(batch)
        return *self._loss(outputs, batch), outputs

    def _loss(self, outputs, batch) -> tuple[Tensor, Tensor | float | None]:
        targets = batch[-1]
        if self._lent is not None:  # the first look at the data
            require_classes(self.loss, outputs, targets)
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
        weight = normaliser(self.loss, outputs, targets)
        return value if weight is None else value * weight, weight

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
        if self._copies:
            inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        if self._lent is not None:
            leaves = pytree.tree_leaves(inputs)
            self._lent += [(t, t._version) for t in leaves if isinstance(t, Tensor)]
        if isinstance(inputs, Mapping):
            return (), dict(inputs), targets
        return (
            (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)),
            {},
            targets,
        )

    @contextmanager
    def _preserved(self, w: Tensor):
        """Give back every random generator that a pass through the data may draw from; nothing
        that is compiled is run so."""
        owners = (self.data, getattr(self.data, "sampler", None))
        found = (getattr(owner, "generator", None) for owner in owners)
        own = [g for g in found if isinstance(g, torch.Generator)]
        with _preserved_random_states(w.device, own), eagerly(self.model, self.loss):
            yield

    def _modes(self) -> tuple[bool, ...]:
        return tuple(module.training for module in self.model.modules())

    def _require_deterministic(self, w: Tensor) -> None:
        modes = self._modes()
        if self._checked_modes == modes:
            return
        self._lent, self._copies = [], True
        with torch.no_grad(), self._preserved(w):
            first, second = (self._total(w) for _ in range(2))
            lent, self._lent = self._lent, None
            self._copies = any(tensor._version > version for tensor, version in lent)
            if self._processes.several:
                inputs = [tensor for tensor, _ in lent]
                part = partial(self._local_total, w)
                require_good_shards(self._processes, first, inputs, part)
        require_finite(first)
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


class _Streamed(torch.autograd.Function):
    """A loss whose gradient is computed with it."""

    @staticmethod
    def forward(ctx, w: Tensor, objective: Objective) -> Tensor:
        value, gradient = objective.value_and_gradient(w.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, outer: Tensor):
        return outer * ctx.saved_tensors[0], None


class _Host(nn.Module):
    """Runs any function while the model's tensors are others: backward passes too, in which
    checkpointed modules are run again."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable):
        """The function's result."""
        return function()


def _device_of(model) -> torch.device:
    """The device of a model's first parameter."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))


@contextmanager
def _described(number: int, batch):
    """Add to what is raised on a batch which one it is."""
    try:
        yield
    except Exception as error:
        inputs, targets = (
            ", ".join(
                f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
                for t in pytree.tree_leaves(part)
                if isinstance(t, Tensor)
            )
            for part in (batch[:-1], batch[-1])
        )
        error.add_note(
            f"Objective: in the model or the loss, at batch {number} of data, with inputs "
            f"{inputs} and targets {targets}"
        )
        raise


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
        moved = [_moved(value, w) for value in data]
        named = hasattr(data, "_fields")
        return type(data)(*moved) if named else type(data)(moved)
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
