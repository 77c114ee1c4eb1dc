"""A module's graph, walked once: every operation's rule applied to moves."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.nodes import (
    SHAPE_ONLY,
    aliased,
    by_position,
    changed,
    graphs,
    in_place,
    live_nodes,
    module_of,
    operation_of,
    shape_of,
    writes_floats,
)
from quotientnet.symmetry.running import INLINED, constant, takes
from quotientnet.symmetry.translations import (  # noqa: F401
    rules_attention,
    rules_elementwise,
    rules_forgetting,
    rules_products,
    rules_recurrences,
    rules_shapes,
)
from quotientnet.symmetry.translations.registry import SHIFT_RULES, ShiftCall
from quotientnet.symmetry.translations.shifts import Leaf, Seen, Shift
from quotientnet.symmetry.translations.unknowns import Unknowns

__all__ = ["ShiftWalk"]


class ShiftWalk:
    """One pass over a graph that collects what its operations need of moves of parameters.

    Args:
        program: The exported model.
        layout: The parameters that may move; others are constants.

    Attributes:
        unknowns: What was collected.
        places: The operation and the module that called it, for each record.
    """

    def __init__(self, program: ExportedProgram, layout: ParameterLayout):
        self.program, self.layout = program, layout
        self.unknowns, self.places = Unknowns(), []
        self.leaves: dict[str, Leaf] = {}
        self._values: dict[Node, object] = {}
        self._family: dict[Node, list[Node]] = {}
        self._writes = any(writes_floats(m.graph) for m in graphs(program.graph_module))
        self._fake = {n.name: n.meta.get("val") for n in program.graph.nodes}
        inputs = [self._input(s) for s in program.graph_signature.input_specs]
        self.unknowns.pin(self._run(program.graph_module, inputs, True))

    def _input(self, spec):
        name, value = spec.target, self._fake[spec.arg.name]
        tensors = self.program.state_dict, self.program.constants
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in self.layout:
            entry = self.layout[name]
            leaf = self.leaves.setdefault(entry.name, Leaf(entry.name, entry.shape))
            return Seen(leaf)
        if not isinstance(value, Tensor):
            return value
        own = next((t[name] for t in tensors if name in t), None)
        if (
            not isinstance(own, Tensor)
            or own.is_meta
            or spec.kind == InputKind.USER_INPUT
        ):
            return Shift(value.shape)
        literal = spec.kind == InputKind.CONSTANT_TENSOR or not own.is_floating_point()
        if literal:
            return own.detach().cpu()
        return Seen(Leaf("", tuple(own.shape), own.detach()))

    def _run(self, module: torch.fx.GraphModule, inputs: Sequence, outer: bool = False):
        given, live = iter(inputs), live_nodes(module.graph)
        for node in module.graph.nodes:
            if node not in live:
                continue
            place, kind = module_of(node)
            self.unknowns.record = len(self.places)
            self.places.append((operation_of(node), place, kind))
            if node.op == "placeholder":
                self._values[node] = next(given)
            elif node.op == "get_attr":
                self._values[node] = operator.attrgetter(node.target)(module)
            elif node.op == "output":
                return self._arguments(node.args[0])
            else:
                self._values[node] = self._called(node)
                self._follow_writes(node)

    def _called(self, node: Node):
        if node.target is operator.getitem:
            return self._values[node.args[0]][node.args[1]]
        args, kwargs = (self._arguments(a) for a in by_position(node))
        if isinstance(node.target, torch._ops.OpOverload):
            return self._applied(node, args, kwargs)
        graph = next((a for a in args if isinstance(a, torch.fx.GraphModule)), None)
        if str(node.target) in INLINED and graph is not None and not self._writes:
            start = args.index(graph) + 1
            result = self._run(graph, args[start:])
            return list(result) if isinstance(result, tuple) else result
        moving = list(_moving([args, kwargs]))
        if not moving and graph is None:
            return node.target(*args, **kwargs)
        self.unknowns.pin(args, kwargs)
        return self._still(node)

    def _applied(self, node: Node, args, kwargs):
        operation = node.target
        name = operation._schema.name
        if name.removeprefix("aten::") in SHAPE_ONLY:
            value = node.args[0].meta["val"]
            args = (torch.empty(value.shape, dtype=value.dtype), *args[1:])
        if not list(_moving([args, kwargs])):
            return self._constant(node, args, kwargs)
        rule = SHIFT_RULES.get(name)
        if rule is None and operation._schema.is_mutable:
            rule = SHIFT_RULES.get(name.removesuffix("_"))
        call = ShiftCall(self.unknowns, shape_of(node), name)
        if rule is None or not takes(rule, call, args, kwargs):
            self.unknowns.pin(args, kwargs)
            return self._still(node)
        result = rule(call, *args, **kwargs)
        first = result[0] if isinstance(result, list) else result
        if first.shape != call.shape:
            raise ValueError(
                f"discover: the rule on moves of {name} returned the shape {first.shape}, its "
                f"result has shape {call.shape}"
            )
        if not _floats(node):
            self.unknowns.pin(result)  # integers do not move
            return self._still(node)
        return result

    def _constant(self, node: Node, args, kwargs):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return self._still(node)
        return constant(node, args, kwargs)

    def _still(self, node: Node):
        def still(value):
            symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
            if isinstance(value, Tensor) or symbolic:
                return Shift(() if symbolic else value.shape)
            return value

        value = node.meta.get("val")
        return (
            [still(v) for v in value]
            if isinstance(value, (list, tuple))
            else still(value)
        )

    def _arguments(self, arguments):
        return torch.fx.node.map_arg(arguments, lambda node: self._values[node])

    # -- operations in place ---

    def _follow_writes(self, node: Node) -> None:
        """Whoever shares memory with what is written to may not move, but for the target itself."""
        if not self._writes:
            return
        known = isinstance(node.target, torch._ops.OpOverload)
        written = changed(node) if known else []
        for operand in written:  # its results are other tensors
            for member in self._family.get(operand, [operand]):
                self.unknowns.pin(self._values[member])
                self._values[member] = self._still(member)
        if written:
            return
        target = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if target is not None and in_place(node):
            shared = [target]
        else:
            shared = aliased(node) if known else node.all_input_nodes
        family = next(
            (self._family[n] for n in shared if n in self._family), list(shared)
        )
        family.append(node)
        for member in family:
            self._family[member] = family
        if not in_place(node):
            return
        others = [n for n in family if n not in (target, node) and not in_place(n)]
        if others or target is not None and target.op == "placeholder":
            values = [self._values[n] for n in family]
            self.unknowns.pin(values)
            for member in family:
                self._values[member] = self._still(member)
        else:
            for member in family:
                self._values[member] = self._values[node]


def _moving(arguments):
    if isinstance(arguments, (Shift, Seen)):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for argument in arguments:
            yield from _moving(argument)
    elif isinstance(arguments, dict):
        yield from _moving(list(arguments.values()))


def _floats(node: Node) -> bool:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(value, Tensor) and (
        value.is_floating_point() or value.is_complex()
    )
