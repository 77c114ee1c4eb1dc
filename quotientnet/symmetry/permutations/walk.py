"""The axes of every tensor in a module's graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.nodes import by_position, live_nodes, operation_of
from quotientnet.symmetry.permutations.axes import fix, fixed, new
from quotientnet.symmetry.permutations.registry import AXIS_RULES, Axes, Steps
from quotientnet.symmetry.running import INLINED, constant, takes

__all__ = ["AxisWalk"]


class AxisWalk:
    """One pass over a graph, in which every operation says which axes go together.

    Attributes:
        parameters: The axes of each parameter and running statistic, by name.
        tensors: The axes of all tensors that occur.
        unknown: The operations without a rule; all axes that they touch are fixed.
    """

    def __init__(self, program: ExportedProgram, layout: ParameterLayout):
        self.parameters: dict[str, Axes] = {}
        self.tensors: list[Axes] = []
        self.unknown: list[str] = []
        self._program, self._layout = program, layout
        self._values: dict[Node, object] = {}
        fake = {n.name: n.meta.get("val") for n in program.graph.nodes}
        inputs = [self._input(s, fake) for s in program.graph_signature.input_specs]
        self._fix(self._run(program.graph_module, inputs))

    def _input(self, spec, fake):
        name = spec.target
        if (
            spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
            and name in self._layout
        ):
            entry = self._layout[name]
            if entry.name not in self.parameters:
                self.parameters[entry.name] = Axes(new(n) for n in entry.shape)
                self.tensors.append(self.parameters[entry.name])
            return self.parameters[entry.name]
        if spec.kind != InputKind.USER_INPUT:
            constants = self._program.constants
            value = self._program.state_dict.get(name, constants.get(name))
            if isinstance(value, Tensor) and not value.is_meta:
                return value.detach().cpu()
        value = fake[spec.arg.name]
        return Axes(map(fixed, value.shape)) if isinstance(value, Tensor) else value

    def _run(self, module: torch.fx.GraphModule, inputs: Sequence):
        given, live = iter(inputs), live_nodes(module.graph)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = next(given)
            elif node.op == "get_attr":
                self._values[node] = operator.attrgetter(node.target)(module)
            elif node.op == "output":
                return self._arguments(node.args[0])
            elif node in live:
                self._values[node] = self._called(node)

    def _arguments(self, arguments):
        return torch.fx.node.map_arg(arguments, lambda node: self._values[node])

    def _called(self, node: Node):
        args, kwargs = (self._arguments(a) for a in by_position(node))
        if node.target is operator.getitem:
            return args[0][args[1]]
        if str(node.target) in INLINED:
            graphs = [
                i for i, a in enumerate(args) if isinstance(a, torch.fx.GraphModule)
            ]
            result = self._run(args[graphs[0]], args[graphs[0] + 1 :])
            return list(result) if isinstance(result, tuple) else result
        if not _typed((args, kwargs)):
            value = self._constant(node, args, kwargs)
            if value is not None:
                return value
        result = self._ruled(node, args, kwargs)
        if result is None:
            self.unknown.append(operation_of(node))
            self._fix((args, kwargs))
            result = self._opaque(node)
        self.tensors += _typed(result)
        return result

    def _ruled(self, node: Node, args, kwargs):
        """The axes of an operation's result by its rule; ``None`` if nothing is known."""
        shapes = _shapes(node)
        if not isinstance(node.target, torch._ops.OpOverload) or shapes is None:
            return None
        schema = node.target._schema
        rule = AXIS_RULES.get(schema.name) or AXIS_RULES.get(schema.name.rstrip("_"))
        if rule is None:
            return None
        named = {a.name: value for a, value in zip(schema.arguments, args)} | kwargs
        named = tree_map_only(Tensor, _axes_of_constant, named)
        named = {name: value for name, value in named.items() if value is not None}
        steps = Steps(schema.name.removeprefix("aten::").rstrip("_"), shapes)
        if not takes(rule, steps, (), named):
            return None
        try:
            result = rule(steps, **named)
        except Exception as error:
            raise ValueError(
                f"permutation_classes: the rule of {steps.name} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        self.tensors += steps.noted
        if not shapes:
            return result if result is not None else ()
        if result is None or [t.sizes for t in _typed(result)] != shapes:
            return None
        return result

    def _constant(self, node: Node, args, kwargs):
        """The value of an operation on constants; ``None`` if it has none."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.target(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return None
        if any(
            isinstance(a, Tensor) and a.is_meta for a in tree_leaves((args, kwargs))
        ):
            return None
        return constant(node, args, kwargs)

    def _opaque(self, node: Node):
        values = node.meta.get("val")
        return torch.utils._pytree.tree_map(
            lambda v: Axes(map(fixed, v.shape)) if isinstance(v, Tensor) else v, values
        )

    def _fix(self, arguments) -> None:
        for axes in _typed(arguments):
            for axis in axes:
                fix(axis)


def _typed(arguments) -> list[Axes]:
    """The axes among arguments."""
    if isinstance(arguments, Axes):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        return [axes for a in arguments for axes in _typed(a)]
    return []


def _axes_of_constant(value: Tensor) -> Axes:
    """Axes along which a constant does not vary can be permuted; the others are fixed."""
    result = []
    for axis, size in enumerate(value.shape):
        first = value.narrow(axis, 0, min(size, 1))
        alike = size == 0 or bool(torch.equal(value, first.expand_as(value)))
        result.append(new(size) if alike else fixed(size))
    return Axes(result)


def _shapes(node: Node) -> list[tuple[int, ...]] | None:
    """The shapes of all results; ``None`` if one depends on data."""
    values = node.meta.get("val")
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    shapes = [tuple(v.shape) for v in values if isinstance(v, Tensor)]
    known = all(isinstance(n, int) for shape in shapes for n in shape)
    return shapes if known else None
