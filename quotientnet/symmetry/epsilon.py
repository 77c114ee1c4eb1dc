"""How far a normalisation's ``eps`` makes its symmetry approximate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from quotientnet.symmetry.graph import Walk
from quotientnet.symmetry.guards import Guard
from quotientnet.symmetry.nodes import by_position
from quotientnet.symmetry.record import Record

__all__ = ["Approximation", "graph_inputs", "measure_eps"]


@dataclass(frozen=True)
class Approximation:
    """A normalisation whose ``eps`` makes the scaling of its input approximate.

    Attributes:
        place: The module.
        operation: The normalisation.
        eps: What it adds to the variance.
        size: The relative change of the normalised channel that moves most when its input is
            halved, on the example inputs; ``None`` where they have no values.
    """

    place: str
    operation: str
    eps: float
    size: float | None


def measure_eps(walk: Walk, args: tuple, kwargs: dict) -> list[Approximation]:
    """One run of the graph that measures every normalisation with an ``eps`` above zero."""
    records = [r for r in walk.records if r.eps is not None and r.eps[0] > 0]
    inputs = graph_inputs(walk.program, args, kwargs)
    sizes: dict[str, float] = {}
    if records and not any(isinstance(x, Tensor) and x.is_meta for x in inputs):
        probe = _Probe(walk.program.graph_module, {r.node: r for r in records}, sizes)
        device = next(
            (x.device for x in inputs if isinstance(x, Tensor)), torch.device("cpu")
        )
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            probe.run(*inputs)
    return [
        Approximation(r.place, r.operation, r.eps[0], sizes.get(r.node))
        for r in records
    ]


def graph_inputs(program, args: tuple, kwargs: dict) -> list:
    """The graph's inputs in order; all that it may write into are copies."""
    given = iter(torch.utils._pytree.tree_leaves((args, kwargs)))
    values = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            value = next(given)
        else:
            value = program.state_dict.get(
                spec.target, program.constants.get(spec.target)
            )
        copied = isinstance(value, Tensor) and spec.kind != InputKind.PARAMETER
        values.append(value.detach().clone() if copied else value)
    return values


class _Probe(torch.fx.Interpreter):
    """Runs a graph and measures the variances that its normalisations see."""

    def __init__(self, module, records: dict[str, Record], sizes: dict[str, float]):
        super().__init__(module)
        self.records, self.sizes = records, sizes

    def run_node(self, node):
        if node.name in self.records:
            args = self.map_nodes_to_values(by_position(node)[0], node)
            record = self.records[node.name]
            if record.guard is not None:
                self.sizes[node.name] = record.guard.change(args[0])
            else:
                cosine = record.operation == "cosine_similarity"
                eps = record.eps[0] ** 2 if cosine else record.eps[0]
                by = Guard(eps, clamps=cosine, rooted=True)
                self.sizes[node.name] = by.change(_variance(record.operation, args))
        return super().run_node(node)


def _variance(operation: str, args) -> Tensor:
    """What a normalisation divides by the root of, without ``eps``."""
    x = args[0]
    if operation in ("batch_norm", "instance_norm"):
        if not args[5]:
            return args[4]
        keep = (1,) if operation == "batch_norm" else (0, 1)
        return x.var([a for a in range(x.ndim) if a not in keep], correction=0)
    if operation == "cosine_similarity":
        return x.square().sum(args[2])
    if operation == "group_norm":
        return x.reshape(x.shape[0], args[1], -1).var(-1, correction=0)
    axes = list(range(-len(args[1]), 0))
    return (
        x.square().mean(axes) if operation == "rms_norm" else x.var(axes, correction=0)
    )
