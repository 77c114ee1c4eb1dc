"""A module's graph, walked once: every operation's rule applied to log-scales."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.control import CONTROL
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.guards import Guard, guards_of
from quotientnet.symmetry.live import needed_entries
from quotientnet.symmetry.nodes import (
    SHAPE_ONLY,
    aliased,
    by_position,
    changed,
    dtype_of,
    graphs,
    is_written,
    live_nodes,
    module_of,
    operands,
    operation_of,
    shape_of,
    writes_floats,
)
from quotientnet.symmetry.record import Record
from quotientnet.symmetry.rules import Call, find_rule
from quotientnet.symmetry.rules.shapes import MOVES
from quotientnet.symmetry.running import INLINED, constant, takes
from quotientnet.symmetry.scales import Leaf, LogScale, Unset, scales_among
from quotientnet.symmetry.views import Views, chooses, opaque

__all__ = ["Walk"]


@dataclass
class Walk:
    """One pass over a graph that collects the equations of all its operations.

    Attributes:
        program: The exported model.
        layout: The parameters that may be scaled; others are constants.
        equations: The collected equations.
        records: What happened, operation by operation; reasons in the equations refer to these.
        leaves: The log-scale of each entry of the layout, by name.
        used: The names of these, in the order in which operations first read them.
    """

    program: ExportedProgram
    layout: ParameterLayout
    equations: Equations = field(default_factory=Equations)
    records: list[Record] = field(default_factory=list)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)

    def __post_init__(self):
        self._values: dict[Node, object] = {}
        self._views = Views(self.equations, self._values)
        self._guards: dict[Node, Guard] = {}
        self._returned: dict[Node, Sequence] = {}
        self._needed: dict[Node, dict[Node, Tensor]] = {}
        self._writes = any(
            writes_floats(m.graph) for m in graphs(self.program.graph_module)
        )
        self._fake = {
            node.name: node.meta.get("val") for node in self.program.graph.nodes
        }
        signature = self.program.graph_signature.input_specs
        inputs = [self._input(spec) for spec in signature]
        self._run(self.program.graph_module, inputs)

    def scale_of(self, node: Node):
        """The log-scale of a node's result, or of several; ``None`` if it was not walked."""
        value = self._values.get(node)
        if not isinstance(value, Unset):
            return value
        if value.leaf.complete:
            return self.equations.resolve(value)
        # Entries that nothing has determined have no effect.
        terms = [(c, i.reshape(-1)[value.entries]) for c, i in value.leaf.terms]
        return LogScale(terms, value.shape)

    def _run(
        self,
        module: torch.fx.GraphModule,
        inputs: Sequence,
        outer: Sequence = (),
        caller=None,
    ):
        """Walk a graph whose inputs have the given log-scales; returns what it returns.

        Args:
            module: The graph.
            inputs: The log-scales of its inputs.
            outer: The nodes that they are in the graph that calls this one.
            caller: The node of the call.
        """
        given, live, names = iter(inputs), live_nodes(module.graph), iter(outer)
        self._guards.update(guards_of(module.graph, live))
        places = [node for node in module.graph.nodes if node.op == "placeholder"]
        known = {n: x for n, x in zip(places, inputs) if isinstance(x, Tensor)}
        self._needed.update(needed_entries(module.graph, live, known))
        for node in module.graph.nodes:
            if node not in live:
                continue
            place, kind = module_of(node)
            self.records.append(
                Record(place, operation_of(node), "constant", node.name, kind)
            )
            with self.equations.because(len(self.records) - 1):
                if node.op == "placeholder":
                    self.records[-1].called = False
                    self._values[node] = next(given)
                    self._views.same(node, next(names, None))
                elif node.op == "get_attr":
                    self.records[-1].called = False
                    self._values[node] = operator.attrgetter(node.target)(module)
                elif node.op == "output":
                    self.records[-1].called = False
                    result = self._arguments(node.args[0])
                    if caller is None:
                        self._pin(result)
                    else:
                        self._returned[caller] = node.args[0]
                    return result
                else:
                    self._values[node] = self._called(node)

    # -- inputs ---

    def _input(self, spec):
        name = spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in self.layout:
            entry = self.layout[name]
            leaf = self.leaves.setdefault(entry.name, Leaf(entry.name, entry.shape))
            return Unset(leaf)
        if spec.kind == InputKind.BUFFER or spec.kind == InputKind.CONSTANT_TENSOR:
            value = self.program.state_dict.get(name, self.program.constants.get(name))
            literal = name.rpartition(".")[2].startswith("lifted_tensor")
            known = isinstance(value, Tensor) and not value.is_meta
            if known and (literal or not value.is_floating_point()):
                return value.cpu()
        value = self._fake[spec.arg.name]
        if isinstance(value, Tensor) and chooses(value.dtype):
            return self.equations.choices.variables(*value.shape)
        return (
            self.equations.pinned(*value.shape) if isinstance(value, Tensor) else value
        )

    # -- operations ---

    def _called(self, node: Node):
        if node.target is operator.getitem:
            self.records[-1].called = False
            container, index = node.args
            if container in self._returned:
                self._views.same(node, self._returned[container][index])
            else:
                self._views.item(node, container, index)
            return self._values[container][index]
        needed = self._needed.get(node, {})
        args, kwargs = (self._arguments(a) for a in by_position(node))
        if needed and next(scales_among([args, kwargs]), None) is not None:
            args, kwargs = (self._arguments(a, needed) for a in by_position(node))
        if isinstance(node.target, torch._ops.OpOverload):
            self._values[node] = self._apply(node, args, kwargs)
            self._note_alias(node, args, kwargs)
            return self._values[node]
        record = self.records[-1]
        if str(node.target) in INLINED:
            record.called = False
            start = next(
                i for i, a in enumerate(args) if isinstance(a, torch.fx.GraphModule)
            )
            result = self._run(
                args[start], args[start + 1 :], node.args[start + 1 :], node
            )
            return list(result) if isinstance(result, tuple) else result
        operation = CONTROL.get(operation_of(node))
        if operation and next(scales_among([args, kwargs]), None) is not None:
            record.treatment = "rule"
            return operation(self.equations, partial(self._inside, node), args)
        if next(scales_among([args, kwargs]), None) is not None:
            result = self._unknown(node, [args, kwargs])
            self._store(node.all_input_nodes)  # a kernel may write into any of them
            return result
        return node.target(*args, **kwargs)

    def _inside(
        self, node: Node, graph: torch.fx.GraphModule, inputs: Sequence
    ) -> list:
        """What a graph that an operation runs makes of inputs."""
        operands = [n for n in tree_leaves(node.args) if isinstance(n, Node)]
        outer = [
            next((n for n in operands if self._values[n] is x), None) for x in inputs
        ]
        result = self._run(graph, inputs, outer, node)
        del self._returned[node]
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def _apply(self, node: Node, args, kwargs):
        record, operation = self.records[-1], node.target
        name = operation._schema.name.removeprefix("aten::")
        if name in SHAPE_ONLY:
            value = node.args[0].meta["val"]
            args = (torch.empty(value.shape, dtype=value.dtype), *args[1:])
        scales = list(scales_among([args, kwargs]))
        if not scales:
            return self._constant(node, args, kwargs)
        self.used.update((x.leaf.name, None) for x in scales if isinstance(x, Unset))
        if node in self._guards:
            record.treatment, record.guard = "rule", self._guards[node]
            record.eps = (record.guard.eps, args[0])
            return args[0]
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            args = (self.equations.constant(args[0]), *args[1:])
        rule = find_rule(operation)
        call = _call(self.equations, node)
        into = [
            a.name for a in operation._schema.arguments if a.kwarg_only and is_written(a)
        ]
        if _is_out(node):  # the rule need not know where the result goes
            kwargs, into = {k: v for k, v in kwargs.items() if k != "out"}, []
        if rule is None or into or not takes(rule, call, args, kwargs):
            return self._unknown(node, [args, kwargs])
        own = rule.__module__.startswith(_OWN_RULES)
        if not own:
            args, kwargs = tree_map_only(
                LogScale, self.equations.resolve, (args, kwargs)
            )
        try:
            result = rule(call, *args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"discover: the rule of {record} failed with {type(error).__name__}: {error}. "
                "Mend it; call.pin(*args) is a rule that is never wrong"
            ) from error
        if not own and not changed(node):
            _require_scales(result, node)
        record.treatment = (
            "unknown" if call.unknown else "pins" if call.pinned else "rule"
        )
        record.outputs, record.eps = call.outputs, call.eps
        return self._completed(result, node)

    def _completed(self, result, node: Node):
        """A rule's result, checked; pinned what it left out, such as the indices of a maximum."""
        into = changed(node)
        if into:
            result = self._stored(result, node, into)
        rest = opaque(self.equations, node)
        if isinstance(rest, list):
            result = [b if a is None else a for a, b in zip(result, rest)]
        elif result is None:
            result = rest
        first = result[0] if isinstance(result, list) else result
        if isinstance(first, Tensor):
            first = result = self.equations.pinned(*first.shape)
        if isinstance(first, LogScale) and first.shape != shape_of(node):
            raise ValueError(
                f"discover: the rule of {operation_of(node)} returned a log-scale of shape "
                f"{first.shape}, its result has shape {shape_of(node)}"
            )
        if not (dtype_of(node).is_floating_point or dtype_of(node).is_complex):
            self._pin(first)  # rounding knows no scale
        kept = operation_of(node) in _KEEPS_INTEGERS and dtype_of(node) != torch.bool
        if not chooses(dtype_of(node)):
            lost = isinstance(result, Choice) and not kept
            return self.equations.pinned(*result.shape) if lost else result
        if isinstance(result, LogScale) and not (kept and isinstance(result, Choice)):
            return self.equations.choices.variables(*result.shape)
        return result

    def _stored(self, result, node: Node, into: Sequence[Node]):
        """The results of a rule, after those that its operation writes into arguments are there."""
        given = list(result) if isinstance(result, (list, tuple)) else [result]
        own = len(node.target._schema.returns)
        if len(given) != own + len(into):
            raise ValueError(
                f"discover: the rule of {operation_of(node)} returned {len(given)} log-scales; the "
                f"operation has {own} results and then writes into {len(into)} arguments"
            )
        self._store(into, given[own:])
        return given[:own] if own > 1 else given[0] if own else None

    def _store(self, into: Sequence[Node], scales: Sequence = ()) -> None:
        """Let tensors hold something else: scales, pinned where there is none."""
        for operand, scale in zip_longest(into, scales):
            if not isinstance(operand.meta.get("val"), Tensor):
                continue
            scale = (
                self.equations.pinned(*shape_of(operand)) if scale is None else scale
            )
            if scale.shape != shape_of(operand):
                raise ValueError(
                    f"discover: a rule returned a log-scale of shape {scale.shape} for an argument "
                    f"of shape {shape_of(operand)} that its operation writes into"
                )
            self._views.write(operand, scale)

    def _constant(self, node: Node, args, kwargs):
        """The value of an operation on constants, none of which is touched."""
        if changed(node):
            self._store(changed(node))
            return opaque(self.equations, node)
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return opaque(self.equations, node)
        return constant(node, args, kwargs)

    def _unknown(self, node: Node, arguments):
        """Pin all that an operation without a rule touches; nothing, if all is constant anyway."""
        scales = list(scales_among(arguments))
        if any(
            isinstance(x, Unset) or self.equations.simplify(x).terms for x in scales
        ):
            self.records[-1].treatment = "unknown"
        self._pin(arguments)
        if isinstance(node.target, torch._ops.OpOverload):
            self._store(changed(node))
        return opaque(self.equations, node)

    def _pin(self, arguments) -> None:
        for scale in scales_among(arguments):
            self.equations.pin(scale)

    def _arguments(self, arguments, needed: Mapping[Node, Tensor] | None = None):
        """The log-scales of arguments; what is not needed of them fits any."""

        def value(node: Node):
            own = self._values[node]
            if not needed or node not in needed:
                return own
            return self._where_read(own, needed[node], node)

        return torch.fx.node.map_arg(arguments, value)

    def _where_read(self, x, mask: Tensor, node: Node):
        if isinstance(x, Tensor) and x.is_floating_point():
            x = self.equations.constant(x)
        if not isinstance(x, LogScale) or isinstance(x, Choice):
            return x
        if isinstance(x, Unset) and x.leaf.known is None and _used_once(node):
            return x  # this determines it: what is not read gets a scale of its own
        return self.equations.where_read(x, mask)

    def _replay_of(self, node: Node, target: Node, args, kwargs) -> Callable | None:
        """What makes a view of ``target`` again, after that was overwritten; None if unknown."""
        rule, rest = find_rule(node.target), args[1:]
        call = _call(self.equations, node)
        known = (
            target is node.args[0]
            and rule is not None
            and takes(rule, call, args, kwargs)
        )
        if not known or self.records[-1].treatment == "unknown":
            return None
        return lambda value: rule(call, value, *rest, **kwargs)

    def _note_alias(self, node: Node, args, kwargs) -> None:
        """Remember views, and carry what is written in place to all views of the same tensor."""
        if changed(node):
            return
        written = [
            operand
            for argument, operand in operands(node)
            if is_written(argument) and isinstance(operand, Node)
        ]
        target = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if _is_out(node):
            self._views.write(node.kwargs["out"], self._values[node])
            self._views.same(node, node.kwargs["out"])
            return
        for operand in written:
            if operand is not target:
                self._views.write(operand, self.equations.pinned(*shape_of(operand)))
        shape_only = torch.Tag.inplace_view in node.target.tags
        if target is not None and target in written and not shape_only:
            self._views.write(target, self._values[node])
            self._views.same(node, target)
            return
        others = aliased(node) if self._writes else []
        for other in [target] if target is not None and shape_only else others:
            replay = self._replay_of(node, other, args, kwargs)
            self._views.note(node, other, replay)


_OWN_RULES = find_rule.__module__.rpartition(".")[0]
"""Where rules are that look at parameters before their log-scales are determined."""

_KEEPS_INTEGERS = {
    *MOVES,
    "clone",
    "detach",
    "alias",
    "contiguous",
    "lift_fresh",
    "index",
    "to",
    "histc",
    "cumsum",
}
"""Operations whose results are integers that they were given."""


def _call(equations: Equations, node: Node) -> Call:
    into = changed(node) if not node.target._schema.returns else []
    like = into[0] if into else node
    call = Call(equations, shape_of(like), dtype_of(like))
    call.operation = node.target._schema.name
    return call


def _is_out(node: Node) -> bool:
    """Whether an operation writes its one result into the whole of a tensor given as ``out``."""
    out, schema = node.kwargs.get("out"), node.target._schema
    return (
        isinstance(out, Node)
        and [a.name for a in schema.arguments if is_written(a)] == ["out"]
        and len(schema.returns) == 1
        and shape_of(out) == shape_of(node)
        and dtype_of(out) == dtype_of(node)
    )


def _used_once(node: Node) -> bool:
    """Whether a parameter, seen through changes of shape, has no other use."""
    while len(node.users) == 1:
        if node.op == "placeholder":
            return True
        node = node.args[0]
    return False


def _require_scales(result, node: Node) -> None:
    """Refuse what a rule returned if it does not tell the scales of the results."""
    expected, scale = node.meta.get("val"), (LogScale, Tensor)
    if isinstance(expected, (list, tuple)):
        several = isinstance(result, (list, tuple)) and len(result) == len(expected)
        good = several and all(x is None or isinstance(x, scale) for x in result)
        wanted = f"a list of {len(expected)} log-scales, None for what cannot be scaled"
    else:
        good = isinstance(result, scale) or not isinstance(expected, Tensor)
        wanted = "one LogScale"
    if not good:
        raise ValueError(
            f"discover: the rule of {operation_of(node)} returned {type(result).__name__} "
            f"{str(result)[:80]}; it must return {wanted}. Did it forget to return, or mean "
            "call.pin(*args)?"
        )
