"""How each parameter's part of the Gauss-Newton matrix is computed, checked on three samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from quotientnet.curvature.factor import has_closed_form, loss_factor
from quotientnet.curvature.forward import (
    Batch,
    Leaves,
    Pass,
    loss_places,
    parameters_in_loss,
    three_of,
)
from quotientnet.curvature.graph import ParameterGraph
from quotientnet.curvature.rules import Rule, rule_for
from quotientnet.curvature.samples import Readout, SampleAxis, sample_axis

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Duty:
    """A use whose derivatives are computed by a rule.

    Attributes:
        place: The number of the use in a forward pass.
        key: What the use must be.
        names: The parameters it serves, by role.
        x_axis: Where samples are in its input.
        out_axis: Where they are in its output.
    """

    place: int
    key: tuple
    names: dict[str, str]
    x_axis: SampleAxis | None
    out_axis: SampleAxis

    def rule(self, run: Pass, n: int, wide: bool = False) -> Rule:
        """The rule on a new forward pass."""
        use = run.uses[self.place] if self.place < len(run.uses) else None
        if use is None or use.key != self.key:
            raise ValueError(
                "ggn: the model called other layers than for its first samples; its graph must "
                "be the same for all batches"
            )
        return rule_for(use.call)(use.call, self.x_axis, self.out_axis, n, wide)


@dataclass(frozen=True)
class Plan:
    """What was found on three samples.

    Attributes:
        readout: Where the samples are in the outputs.
        duties: The uses that rules take care of.
        ways: How each parameter is computed.
        kinds: ``"Hessian"`` or ``"Gauss-Newton"``.
        counts: How often each parameter enters the graph.
        activation: How many entries a sample has in all outputs of the uses.
        inputs: How many it has in all their inputs, as rules read them.
        batched: Whether several seeds go through one backward pass.
        by_chunk: Whether the loss is known to be a sum over any split of the samples.
        rank: Backward passes for each sample; 0 if not known by the shapes.
    """

    readout: Readout
    duties: tuple[Duty, ...]
    ways: dict[str, str]
    kinds: dict[str, str]
    counts: dict[str, int]
    activation: int
    inputs: int
    batched: bool
    by_chunk: bool
    rank: int

    def kinds_of(self, tensors, parameters) -> dict[str, str]:
        """The kinds by these outputs' own graph.

        Raises:
            ValueError: Parameters enter this graph in other numbers than that of the plan.
        """
        graph = ParameterGraph(tensors, parameters)
        changed = [n for n, count in graph.counts.items() if count != self.counts[n]]
        if changed:
            raise ValueError(
                f"ggn: {changed[0]!r} is used {graph.uses(changed[0])} times by some samples and "
                f"{self.counts[changed[0]]} times by the first three; the model's graph must be "
                "the same for all samples; use ggn_traces_estimate"
            )
        return graph.kinds()

    @property
    def generic(self) -> tuple[str, ...]:
        """The parameters without a rule."""
        return tuple(name for name, way in self.ways.items() if way == "per sample")


def make_plan(leaves: Leaves, batch: Batch) -> Plan:
    """Run two and three samples and see which rules hold.

    Raises:
        ValueError: Samples interact, or the loss depends on no tensor of the outputs.
    """
    samples = three_of(batch)
    probes = samples.take([0, 1]), samples.take([1, 2, 0])
    two, three = (_record(leaves, probe) for probe in probes)
    places = loss_places(leaves.point, three.outputs, probes[1].targets)
    readout = _readout(places, two, three)
    tensors = readout.tensors(three.outputs)
    graph = ParameterGraph(tensors, leaves.parameters)
    ways = {n: "per sample" if graph.uses(n) else "unused" for n in leaves.parameters}
    duties, entries, inputs = [], [], 0
    for place, (a, b) in enumerate(zip(two.uses, three.uses)):
        duty = _duty(place, a, b, graph) if len(two.uses) == len(three.uses) else None
        if duty is not None:
            duties.append(duty)
            ways |= {name: b.call.kind for name in duty.names.values()}
            entries.append(b.out.numel() // 3)
            inputs += b.call.input_entries(b.out) // 3
    inside = parameters_in_loss(leaves.point, three.outputs, probes[1].targets)
    kinds = graph.kinds() | dict.fromkeys(inside, "Gauss-Newton")
    edges = [three.uses[duty.place].edge for duty in duties]
    batched = bool(edges) and _can_batch(tensors, edges)
    arguments = leaves.point.objective.loss, three.outputs, probes[1].targets, readout
    by_chunk = has_closed_form(*arguments)
    rank = loss_factor(*arguments, 3).rank if by_chunk else 0
    entries = max(1, sum(entries))
    return Plan(
        readout, tuple(duties), ways, kinds, graph.counts, entries, inputs, batched, by_chunk, rank
    )  # fmt: skip


def _record(leaves: Leaves, probe: Batch) -> Pass:
    try:
        return leaves.record(probe, keep_outputs=True)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"ggn: the model failed on {probe.n} samples of the first batch ({error}); is there an "
            "input whose first axis is as long as the batch but does not count samples? Make it a "
            "buffer, or give it a leading axis of 1"
        ) from error


def _readout(places, two: Pass, three: Pass) -> Readout:
    readout = Readout(places, ())
    pairs = zip(readout.tensors(two.outputs), readout.tensors(three.outputs))
    axes = tuple(sample_axis(a.detach(), b.detach()) for a, b in pairs)
    if any(axis is None for axis in axes):
        raise ValueError(
            "ggn: a sample's outputs depend on other samples or on its place in the batch, or have "
            "no axis of samples; do samples interact? ggn_traces_estimate needs only that they do "
            "not in the loss"
        )
    return Readout(places, axes)


def _duty(place: int, two, three, graph: ParameterGraph) -> Duty | None:
    """What a rule can do for one use, None if nothing."""
    names = {
        role: name
        for role, name in three.roles.items()
        if graph.is_used_only_in(name, three.edge)
    }
    x = three.call.x
    if (
        not names
        or two.key != three.key
        or (x is not None and x._version != three.version)
    ):
        return None
    x_axis = None if x is None else sample_axis(two.call.x, x)
    out_axis = sample_axis(two.out, three.out)
    if not rule_for(three.call).fits(three.call, x_axis, out_axis, three.out.ndim):
        return None
    return Duty(place, three.key, names, x_axis, out_axis)


def _can_batch(tensors, edges) -> bool:
    """Whether the backward pass has a rule for several seeds at once at every node."""
    seeds = [torch.ones(2, *t.shape, dtype=t.dtype, device=t.device) for t in tensors]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.autograd.grad(
                tensors, edges, seeds, retain_graph=True, is_grads_batched=True
            )
    except (RuntimeError, UserWarning):
        return False
    return True
