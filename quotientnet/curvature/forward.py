"""Forward passes of a point's model with one leaf for each parameter tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from quotientnet.curvature.samples import count, take
from quotientnet.curvature.uses import Recorder, Use
from quotientnet.point import Point

__all__ = [
    "Batch",
    "Pass",
    "Leaves",
    "convolution_groups",
    "loss_places",
    "parameters_in_loss",
    "require_separate_samples",
    "three_of",
]


@dataclass(frozen=True)
class Batch:
    """Arguments and targets of some samples.

    Attributes:
        args: Positional arguments of the model.
        kwargs: Keyword arguments.
        targets: Targets.
        n: The number of samples.
    """

    args: tuple
    kwargs: dict
    targets: object
    n: int

    def take(self, chosen) -> Batch:
        """Some of the samples, by a slice or a list of places."""
        args, kwargs, targets = take(
            (self.args, self.kwargs, self.targets), self.n, chosen
        )
        return Batch(
            args,
            kwargs,
            targets,
            len(range(self.n)[chosen]) if isinstance(chosen, slice) else len(chosen),
        )

    def chunks(self, size: int) -> Iterator[tuple[slice, Batch]]:
        """All samples, at most ``size`` at a time."""
        for start in range(0, self.n, size):
            chosen = slice(start, min(start + size, self.n))
            yield chosen, self if size >= self.n else self.take(chosen)


@dataclass(frozen=True)
class Pass:
    """What one forward pass left: its outputs and the uses of parameters."""

    outputs: object
    uses: list[Use]


class Leaves:
    """A point's parameters as leaves of autograd, by name.

    Args:
        point: The point.
    """

    def __init__(self, point: Point):
        if not isinstance(point, Point):
            raise TypeError(
                f"ggn: point must be a Point, got {type(point).__name__}; objective.at(w) makes one"
            )
        point.require_modes()
        self.point, layout = point, point.layout
        views = layout.unflatten(point.w)
        self.parameters: dict[str, Tensor] = {
            entry.name: views[entry.name].detach().requires_grad_()
            for entry in layout.entries
            if not entry.passive
        }

    def batches(self) -> Iterator[Batch]:
        """The batches of the objective.

        Raises:
            ValueError: The first axis of inputs and targets does not count samples.
        """
        objective = self.point.objective
        for batch in objective.data:
            args, kwargs, targets = objective._read(batch, self.point.w)
            yield Batch(args, kwargs, targets, count((args, kwargs), targets))

    def tensors(self, parameters=None) -> dict[str, Tensor]:
        """What stands in for the model's parameters and buffers, each module named once."""
        parameters = self.parameters if parameters is None else parameters
        layout, objective = self.point.layout, self.point.objective
        found = layout.substitutes(objective.model, self.point.w)
        for name in found:
            if name in layout and layout[name].name in parameters:
                found[name] = parameters[layout[name].name]
        return found

    def call(self, batch: Batch, parameters=None):
        """The outputs for a batch."""
        return torch.func.functional_call(
            self.point.objective.model,
            self.tensors(parameters),
            batch.args,
            batch.kwargs,
            tie_weights=False,
        )

    def record(self, batch: Batch, keep_outputs: bool = False) -> Pass:
        """The outputs for a batch with their graph, and the uses of the parameters."""
        recorder = Recorder(self.parameters, keep_outputs)
        with torch.enable_grad(), recorder:
            outputs = self.call(batch)
        return Pass(outputs, recorder.uses)


def three_of(batch: Batch) -> Batch:
    """The first three samples, repeated if there are fewer, their inputs changed a little at
    random: equal samples would hide that they interact."""
    batch = batch.take([i % batch.n for i in range(3)])
    generator = torch.Generator().manual_seed(0)

    def changed(t):
        if not isinstance(t, Tensor) or not t.is_floating_point() or not t.ndim:
            return t
        noise = torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
        return t * (1 + 0.01 * noise) if len(t) == 3 else t

    args, kwargs = tree_map(changed, (batch.args, batch.kwargs))
    return Batch(args, kwargs, batch.targets, 3)


def convolution_groups(point: Point) -> dict[str, int]:
    """The number of groups of every weight that enters a convolution, from the first batches."""
    found: dict[str, int] = {}
    for name, groups in itertools.chain(
        *point.objective._processes.gather(
            "groups of convolutions", lambda: _grouped_weights(point)
        )
    ):
        found[name] = lcm(found.get(name, 1), groups)
    return found


def _grouped_weights(point: Point) -> list[tuple[str, int]]:
    """The weight and the groups of each convolution, from this process's first batch."""
    leaves, objective = Leaves(point), point.objective
    with objective._preserved(point.w):
        first = next(iter(objective.data), None)
        if first is None:
            return []
        args, kwargs, targets = objective._read(first, point.w)
        uses = leaves.record(Batch(args, kwargs, targets, 0)).uses
    return [
        (use.roles["weight"], use.call.options.get("groups", 1))
        for use in uses
        if "weight" in use.roles and "convolution" in use.call.kind
    ]


def parameters_in_loss(point: Point, outputs, targets) -> dict[str, int]:
    """The parameters that the loss reads beside the outputs, such as those that it penalises."""
    cut = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, outputs)
    leaf = point.w.detach().requires_grad_()
    objective = point.objective
    with torch.enable_grad():
        value = objective._within(leaf, lambda: objective.loss(cut, targets))
    if not value.requires_grad:
        return {}
    return point.layout.count(torch.autograd.grad(value, leaf)[0] != 0)


def require_separate_samples(model: nn.Module) -> None:
    """Refuse batch statistics.

    Raises:
        ValueError: A batch normalisation normalises by the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"ggn: {name!r} normalises by the statistics of the batch, so that samples "
                "interact; use model.eval() with a small eps, or ggn_traces_estimate"
            )


def loss_places(point: Point, outputs, targets) -> tuple[int, ...]:
    """Which leaves of the outputs the loss depends on.

    Raises:
        ValueError: None of them, or outputs without tensors.
    """
    if isinstance(outputs, Tensor):
        return (0,)
    leaves, form = tree_flatten(outputs)
    floating = [
        i
        for i, t in enumerate(leaves)
        if isinstance(t, Tensor) and t.is_floating_point()
    ]
    with torch.enable_grad():
        for i in floating:
            leaves[i] = leaves[i].detach().requires_grad_()
        value = point.objective.loss(
            torch.utils._pytree.tree_unflatten(leaves, form), targets
        )
        if not floating or not value.requires_grad:
            raise ValueError(
                f"ggn: the loss depends on no tensor in the outputs, a {type(outputs).__name__}; "
                "return a tensor, tuple, dict or registered pytree"
            )
        grads = torch.autograd.grad(
            value, [leaves[i] for i in floating], allow_unused=True
        )
    return tuple(i for i, g in zip(floating, grads) if g is not None)
