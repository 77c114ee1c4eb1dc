"""Traces and diagonals of the generalised Gauss-Newton matrix, layer by layer, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quotientnet.curvature.factor import LossFactor, has_closed_form, loss_factor
from quotientnet.curvature.forward import Batch, Leaves, Pass, require_separate_samples
from quotientnet.curvature.per_sample import squares
from quotientnet.curvature.plan import Plan, make_plan
from quotientnet.estimate import Estimate
from quotientnet.losses import normaliser
from quotientnet.objective import Point

__all__ = ["LayerTraces", "ggn_traces", "ggn_diagonal"]

_WORKING_SET = 1 << 21  # entries of the largest layer's derivatives at a time


@dataclass(frozen=True)
class LayerTraces:
    """The trace of each parameter tensor's diagonal block.

    Attributes:
        traces: By the name of the tensor.
        total: The trace of the whole matrix.
        kinds: ``"Hessian"`` where the block equals that of the Hessian: the outputs are piecewise
            linear in the tensor; else ``"Gauss-Newton"``.
        ways: How each was computed.
    """

    traces: dict[str, Estimate]
    total: Estimate
    kinds: dict[str, str]
    ways: dict[str, str]


def ggn_traces(point: Point, *, chunk: int | None = None) -> LayerTraces:
    """The exact trace of every tensor's block of the generalised Gauss-Newton matrix.

    Args:
        point: A point of an objective.
        chunk: Samples at a time; by default as many as a cache holds.
    """
    run = _Run(point, chunk, "traces")
    sums = run()
    values = {name: float(value) for name, value in sums.items()}
    traces = {
        name: Estimate(value, 0.0, True, run.passes) for name, value in values.items()
    }
    total = Estimate(sum(values.values()), 0.0, True, run.passes)
    return LayerTraces(traces, total, run.plan.kinds, run.plan.ways)


def ggn_diagonal(point: Point, *, chunk: int | None = None) -> Tensor:
    """The exact diagonal of the generalised Gauss-Newton matrix, shape ``(size,)``; zero on
    passive coordinates.

    Args:
        point: A point of an objective.
        chunk: As in :func:`ggn_traces`.
    """
    sums = _Run(point, chunk, "diagonals")()
    diagonal = torch.zeros_like(point.w)
    for name, value in sums.items():
        diagonal[point.layout[name].slice] = value.flatten().to(diagonal)
    return diagonal


class _Run:
    """One pass through the data.

    Args:
        point: The point.
        chunk: Samples at a time.
        what: ``"traces"`` or ``"diagonals"``.
    """

    def __init__(self, point: Point, chunk: int | None, what: str):
        require_separate_samples(point.objective.model)
        self.leaves, self.chunk, self.what = Leaves(point), chunk, what
        self.loss = point.objective.loss
        self.plan: Plan | None = None
        self.passes = 0

    def __call__(self) -> dict[str, Tensor]:
        """The sums, divided as the objective divides them."""
        with torch.enable_grad(), self.leaves.point.objective._preserved(
            self.leaves.point.w
        ):
            self.weights = []
            self.sums = {
                name: torch.zeros((), dtype=torch.float64, device=p.device)
                for name, p in self.leaves.parameters.items()
            }
            for batch in self.leaves.batches():
                if self.plan is None:
                    self.plan = make_plan(self.leaves, batch)
                self._batch(batch)
        divisor = 1.0 if self.weights[0] is None else sum(self.weights)
        shapes = {name: p.shape for name, p in self.leaves.parameters.items()}
        return {
            name: (
                s / divisor
                if self.what == "traces"
                else (s / divisor).expand(shapes[name])
            )
            for name, s in self.sums.items()
        }

    def _batch(self, batch: Batch) -> None:
        factor = self._whole_factor(batch)
        width, size = self._sizes(batch, factor)
        for chosen, part in batch.chunks(size):
            run = self.leaves.record(part)
            outputs, readout = run.outputs, self.plan.readout
            if factor is None:
                own = loss_factor(self.loss, outputs, part.targets, readout, part.n)
                self.weights.append(normaliser(self.loss, outputs, part.targets))
            else:
                own = factor.select(chosen)
            self._chunk(part, run, own, width)

    def _whole_factor(self, batch: Batch) -> LossFactor | None:
        """The factor for all samples, where the loss may not be a sum over chunks."""
        readout = self.plan.readout
        with torch.no_grad():
            probe = self.leaves.call(batch.take(slice(0, 1)))
            one = batch.take(slice(0, 1))
            if has_closed_form(self.loss, probe, one.targets, readout):
                return None
            outputs = self.leaves.call(batch)
        self.weights.append(normaliser(self.loss, outputs, batch.targets))
        return loss_factor(self.loss, outputs, batch.targets, readout, batch.n)

    def _sizes(self, batch: Batch, factor: LossFactor | None) -> tuple[int, int]:
        """Columns and samples at a time."""
        return 16, self.chunk or 64

    def _chunk(self, part: Batch, run: Pass, factor: LossFactor, width: int) -> None:
        tensors = self.plan.readout.tensors(run.outputs)
        rules = [duty.rule(run, part.n) for duty in self.plan.duties]
        edges = [run.uses[duty.place].edge for duty in self.plan.duties]
        run.uses.clear()
        for sign, rows in factor.blocks(width):
            self.passes += len(rows)
            if edges:
                seeds = self.plan.readout.unrows(rows, tensors)
                for duty, rule, delta in zip(
                    self.plan.duties, rules, self._pull(tensors, edges, seeds)
                ):
                    found = getattr(rule, self.what)(delta, duty.names)
                    for role, value in found.items():
                        self._add(duty.names[role], sign, value)
            if self.plan.generic:
                found = squares(self.leaves, self.plan, part, rows)
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
        return [torch.stack(each) for each in zip(*columns)]
