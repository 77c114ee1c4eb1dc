"""Traces and diagonals of the generalised Gauss-Newton matrix, layer by layer, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from quotientnet.curvature.factor import LossFactor, loss_factor
from quotientnet.curvature.forward import (
    Batch,
    Leaves,
    Pass,
    require_separate_samples,
    three_of,
)
from quotientnet.curvature.graph import agreed
from quotientnet.curvature.per_sample import squares
from quotientnet.curvature.plan import Plan, make_plan
from quotientnet.curvature.scales import badly_scaled, require_finite_diagonal, widened
from quotientnet.estimate import Estimate
from quotientnet.losses import normaliser, refuse_linear
from quotientnet.point import Point
from quotientnet.progress import progress

__all__ = ["LayerTraces", "Cost", "ggn_traces", "ggn_diagonal", "ggn_cost"]

_WORKING_SET = 12_000_000  # entries of derivatives in outputs, and inputs, at a time


@dataclass(frozen=True)
class LayerTraces:
    """The trace of each parameter tensor's diagonal block.

    Attributes:
        traces: By the name of the tensor.
        total: The trace of the whole matrix.
        kinds: ``"Hessian"`` where the block equals that of the Hessian, because the outputs are
            piecewise linear in the tensor by autograd's graph; else ``"Gauss-Newton"``.
        ways: How each was computed: ``"linear"``, ``"convolution"``, ``"transposed convolution"``,
            ``"embedding"``, ``"scaling"`` (affine parameters of norms, products, sums),
            ``"per sample"`` for what has no rule, ``"unused"``, or ``"random signs"``.
    """

    traces: dict[str, Estimate]
    total: Estimate
    kinds: dict[str, str]
    ways: dict[str, str]

    def __str__(self) -> str:
        """A line for each tensor."""
        width = max(map(len, (*self.traces, "total")))
        lines = [
            f"{name:{width}}  {_short(each)}  {self.kinds[name]}, {self.ways[name]}"
            for name, each in self.traces.items()
        ]
        return "\n".join([*lines, f"{'total':{width}}  {_short(self.total)}"])


def ggn_traces(point: Point, *, chunk: int | None = None) -> LayerTraces:
    r"""The exact trace of every tensor's block of the generalised Gauss-Newton matrix.

    That is :math:`G = \frac1N \sum_z J_z^\top \nabla^2\ell_z J_z` [Schraudolph2002]_, with the
    Jacobians :math:`J_z` of a sample's outputs in the parameters and the second derivative of the
    loss in the outputs, everything after the outputs included. With
    :math:`\nabla^2\ell_z = S_z S_z^\top` the trace of a block is a sum of squares of derivatives
    of :math:`\langle S_z e_k, f_z \rangle`; for linear maps, convolutions, embeddings and norms it
    is read off inputs and outputs, and no derivative of a single sample in a weight is kept.
    Which parameter may be treated so is checked on three samples; all others (used twice, tied, or
    in operations without a rule) take the derivatives of single samples, as exactly.

    Args:
        point: A point of an objective. Samples must not interact in the model; its inputs and
            targets have them on their first axis.
        chunk: Samples at a time; by default as many as a cache holds.

    Returns:
        The traces, of the unit of the loss over squared parameters, per sample if the loss is a
        mean; exact up to rounding, their ``error`` 0. Neither is invariant to symmetries.

    Raises:
        ValueError: Batch normalisation by batch statistics, or other samples that interact; a loss
            that couples samples, or is linear in the outputs; inputs and targets of other lengths;
            a graph that changes from batch to batch.

    Note:
        ``K − 1`` backward passes for a cross-entropy of ``K`` classes, times the positions of a
        sequence of outputs, without derivatives in weights: ask :func:`ggn_cost`.

    Example:
        >>> import torch, quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()).double()
        >>> data = torch.ones(4, 2).double(), torch.zeros(4, 3).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), data)
        >>> result = ggn_traces(objective.at(torch.zeros(9).double()))
        >>> round(result.traces["0.weight"].value, 9), round(result.traces["0.bias"].value, 9)
        (4.0, 2.0)
        >>> result.kinds["0.weight"], result.ways["0.weight"]
        ('Gauss-Newton', 'linear')
    """
    run = LayerRun(point, chunk, "traces")
    values = {name: float(value) for name, value in run().items()}
    traces = {
        name: Estimate(value, 0.0, True, run.passes) for name, value in values.items()
    }
    total = Estimate(sum(values.values()), 0.0, True, run.passes)
    return LayerTraces(traces, total, run.kinds, run.ways)


def ggn_diagonal(point: Point, *, chunk: int | None = None) -> Tensor:
    """The exact diagonal of the generalised Gauss-Newton matrix.

    Args:
        point: As in :func:`ggn_traces`.
        chunk: As in :func:`ggn_traces`.

    Returns:
        Shape ``(size,)``, zero on passive coordinates. The entries of a tensor are those of the
        Hessian where ``LayerTraces.kinds`` says so.

    Raises:
        ValueError: As :func:`ggn_traces`.

    Note:
        The backward passes of :func:`ggn_traces`. Layers with several positions a sample form
        derivatives of single samples, a bounded number at a time.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double()
        >>> objective = qn.Objective(torch.nn.Linear(2, 1).double(), torch.nn.MSELoss(), data)
        >>> ggn_diagonal(objective.at(torch.zeros(3).double())).round().tolist()
        [2.0, 8.0, 2.0]
    """
    diagonal = labelled_diagonal(point, chunk)[0]
    require_finite_diagonal(point, diagonal, "ggn_diagonal")
    return diagonal


def labelled_diagonal(
    point: Point, chunk: int | None = None
) -> tuple[Tensor, dict[str, str], int]:
    """What :func:`ggn_diagonal` returns, the kind of each tensor's entries as in
    :class:`LayerTraces`, and the backward passes spent."""
    run = LayerRun(point, chunk, "diagonals")
    diagonal = torch.zeros_like(point.w)
    for name, value in run().items():
        diagonal[point.layout[name].slice] = value.flatten().to(diagonal)
    return diagonal, run.kinds, run.passes


def _short(estimate: Estimate) -> str:
    error = f" ± {estimate.error:.2g}" if estimate.error else ""
    return f"{estimate.value:12.6g}{error}"


@dataclass(frozen=True)
class Cost:
    """What :func:`ggn_traces` would spend, from three samples.

    Attributes:
        gradients: Multiply-adds, in those of one gradient on the same data.
        passes: Backward passes for each sample.
        columns: How many of them go together.
        chunk: Samples at a time.
        ways: How each tensor is computed.
    """

    gradients: float
    passes: int
    columns: int
    chunk: int
    ways: dict[str, str]


def ggn_cost(point: Point, *, chunk: int | None = None) -> Cost:
    """The cost of :func:`ggn_traces` before it is spent, from three samples of the first batch.

    Args:
        point: A point of an objective.
        chunk: As in :func:`ggn_traces`.

    Returns:
        The cost. Multiply-adds are those of matrix products and convolutions that
        ``torch.utils.flop_counter`` knows; tensors that are computed one sample at a time take
        longer than they count.

    Raises:
        ValueError: As :func:`ggn_traces`.
    """
    run = LayerRun(point, chunk, "traces")
    found = point.objective._processes.gather(
        "the cost of layers' traces", lambda: run.within(run.cost)
    )
    return next(cost for cost in found if cost is not None)


class _Operations(TorchDispatchMode):
    """Counts multiplications and additions of products and convolutions within. (That of torch
    tracks modules, too, by hooks that double backward does not allow.)"""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = flop_registry.get(function.overloadpacket)
        if known is not None:
            self.count += known(*args, **(kwargs or {}), out_val=result)
        return result


class LayerRun:
    """One pass through the data.

    Args:
        point: The point.
        chunk: Samples at a time.
        what: ``"traces"`` or ``"diagonals"``.
        factor: The factor of a batch's outputs, called as :func:`loss_factor`.
    """

    def __init__(
        self, point: Point, chunk: int | None, what: str, factor: Callable = loss_factor
    ):
        if chunk is not None and chunk < 1:
            raise ValueError(f"ggn: chunk must be at least 1, got {chunk}")
        self.leaves, self.chunk, self.what = Leaves(point), chunk, what
        require_separate_samples(point.objective.model)
        self.loss, self.factor = point.objective.loss, factor
        self.wide = badly_scaled(point)
        self.plan: Plan | None = None
        self.kinds = dict.fromkeys(self.leaves.parameters, "Hessian")
        self.ways: dict[str, str] = {}
        self.passes, self.samples, self.weights = 0, 0, []
        self.sums = {
            name: torch.zeros((), dtype=torch.float64, device=p.device)
            for name, p in self.leaves.parameters.items()
        }

    def __call__(self) -> dict[str, Tensor]:
        """The sums over the batches of all processes, divided as the objective divides them."""
        processes, point = self.leaves.point.objective._processes, self.leaves.point
        found = processes.sum(f"the {self.what} of layers", self._added, point=point.w)
        self.weights = found.weights
        for number, (passes, samples, kinds, ways) in enumerate(found.facts):
            self.kinds = kinds if number == 0 else agreed(self.kinds, kinds)
            self.ways = self.ways or ways
        self.passes, self.samples = (
            sum(each[i] for each in found.facts) for i in range(2)
        )
        if not self.passes:
            refuse_linear()
        parameters = self.leaves.parameters
        if self.what == "traces":
            return dict(zip(parameters, found.mean))
        pieces = found.mean.split([p.numel() for p in parameters.values()])
        return dict(zip(parameters, pieces))

    def _added(self) -> tuple[Tensor, list, tuple]:
        """The sums over this process's batches in one vector, their weights, and what was found."""
        self.within(self._all_batches)
        pieces = [
            s if self.what == "traces" else s.expand(self.leaves.parameters[name].shape)
            for name, s in self.sums.items()
        ]
        facts = self.passes, self.samples, self.kinds, self.ways
        return torch.cat([piece.reshape(-1) for piece in pieces]), self.weights, facts

    def cost(self) -> Cost | None:
        """What it would cost, from three samples of the first batch; None without any."""
        batch = next(self.leaves.batches(), None)
        if batch is None:
            return None
        self._plan(batch)
        three = three_of(batch)
        with _Operations() as spent:
            self._batch(three)
        passes = self.passes
        if not passes:
            refuse_linear()
        with _Operations() as unit:
            tensors = self.plan.readout.tensors(self.leaves.call(three))
            wanted = list(self.leaves.parameters.values())
            seeds = [torch.ones_like(t) for t in tensors]
            torch.autograd.grad(tensors, wanted, seeds, allow_unused=True)
        width, size = self._sizes(batch, passes)
        ratio = spent.count / max(unit.count, 1)
        return Cost(ratio, passes, width, size, self.ways)

    def within(self, function):
        """``function()`` where the loss sees the point's parameters, too."""
        point = self.leaves.point
        with torch.enable_grad(), point.objective._preserved(point.w):
            return point.objective._within(point.w, function)

    def _all_batches(self) -> None:
        for batch in self.leaves.batches():
            if self.plan is None:
                self._plan(batch)
            self._batch(batch)

    def _plan(self, batch: Batch) -> None:
        self.plan = make_plan(self.leaves, batch)
        self.kinds, self.ways = self.plan.kinds, self.plan.ways

    def _batch(self, batch: Batch) -> None:
        self.samples += batch.n
        factor = self._whole_factor(batch)
        rank = self.plan.rank if factor is None else factor.rank
        width, size = self._sizes(batch, rank)
        for chosen, part in progress(batch.chunks(size), "layer traces"):
            run = self.leaves.record(part)
            outputs, readout = run.outputs, self.plan.readout
            if factor is None:
                own = self.factor(self.loss, outputs, part.targets, readout, part.n)
                self.weights.append(normaliser(self.loss, outputs, part.targets))
            else:
                own = factor.select(chosen)
            self._chunk(part, run, own, width)

    def _whole_factor(self, batch: Batch) -> LossFactor | None:
        """The factor for all samples, where the loss may not be a sum over chunks."""
        if self.plan.by_chunk:
            return None
        with torch.no_grad():
            outputs = self.leaves.call(batch)
        self.weights.append(normaliser(self.loss, outputs, batch.targets))
        return self.factor(
            self.loss, outputs, batch.targets, self.plan.readout, batch.n
        )

    def _sizes(self, batch: Batch, rank: int) -> tuple[int, int]:
        """Columns and samples at a time, so that the derivatives in outputs fit a cache."""
        each = self.plan.activation
        width = max(1, min(rank, 32, _WORKING_SET // (8 * each)))
        sample = width * each + self.plan.inputs
        most = self.chunk or max(1, _WORKING_SET // sample)
        return width, ceil(batch.n / ceil(batch.n / most))

    def _chunk(self, part: Batch, run: Pass, factor: LossFactor, width: int) -> None:
        tensors = self.plan.readout.tensors(run.outputs)
        found = self.plan.kinds_of(tensors, self.leaves.parameters)
        self.kinds = agreed(self.kinds, found)
        rules = [duty.rule(run, part.n, self.wide) for duty in self.plan.duties]
        edges = [run.uses[duty.place].edge for duty in self.plan.duties]
        run.uses.clear()
        for sign, rows in factor.blocks(width):
            self.passes += len(rows)
            if edges:
                seeds = self.plan.readout.unrows(rows, tensors)
                for duty, rule, delta in zip(
                    self.plan.duties, rules, self._pull(tensors, edges, seeds)
                ):
                    delta = widened(delta) if self.wide else delta
                    found = getattr(rule, self.what)(delta, duty.names)
                    for role, value in found.items():
                        self._add(duty.names[role], sign, value)
            if self.plan.generic:
                found = squares(self.leaves, self.plan, part, rows, self.wide)
                for name, value in found.items():
                    self._add(
                        name, sign, value.sum() if self.what == "traces" else value
                    )

    def _add(self, name: str, sign: float, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + sign * value.double()

    def _pull(self, tensors, edges, seeds):
        """The derivatives at the edges for each column, ``(columns, *output)``."""
        pull = partial(torch.autograd.grad, tensors, edges, retain_graph=True)
        if self.plan.batched:
            return pull(seeds, is_grads_batched=True)
        columns = [pull([s[i] for s in seeds]) for i in range(len(seeds[0]))]
        # Samples first in memory, which is how convolutions read them.
        return [torch.stack(each, 1).movedim(1, 0) for each in zip(*columns)]
