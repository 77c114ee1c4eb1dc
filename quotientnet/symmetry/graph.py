"""A module's graph, walked once: every operation's rule applied to log-scales."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.rules import Call, find_rule
from quotientnet.symmetry.scales import Leaf, LogScale, Unset, scales_among

__all__ = ["Record", "Walk", "export", "by_position"]


def export(model: nn.Module, args: tuple, kwargs: Mapping) -> ExportedProgram:
    """The model's graph, with an error that names the place where there is none.

    Raises:
        ValueError: The model cannot be exported: it branches on data, say.
    """
    try:
        return torch.export.export(model, args, dict(kwargs), strict=False)
    except Exception as error:
        place = _place_of(error, model)
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"discover: the model cannot be exported as one graph; {place}: "
            f"{type(error).__name__}: {reason.strip()}. Its operations must not depend on the "
            "values of tensors (branches, loops, .item()); torch.where selects without a branch"
        ) from error


def _place_of(error: BaseException, model: nn.Module) -> str:
    """The innermost line of a module's own code on the way to the error."""
    names = {id(child): name for name, child in model.named_modules()}
    place = f"in {type(model).__name__}"
    frames = error.__traceback__
    for frame, line in traceback.walk_tb(frames):
        child = frame.f_locals.get("self")
        own = not str(frame.f_globals.get("__name__", "")).startswith("torch.")
        if own and isinstance(child, nn.Module) and id(child) in names:
            name = names[id(child)] or "the model"
            code, kind = frame.f_code, type(child).__name__
            place = f"in {code.co_name} of {name} ({kind}), {code.co_filename}:{line}"
    return place


@dataclass
class Record:
    """What happened at one operation.

    Attributes:
        place: The module that called it, by name.
        operation: Its name in aten.
        treatment: ``"rule"``, ``"pins"``, ``"unknown"`` or ``"constant"``.
        outputs: The output channels of a layer.
        eps: What a normalisation adds to the variance, and its input's log-scale.
        node: Its name in the graph.
        kind: The class of the module.
        called: Whether it is an operation, not an input or output of the graph.
    """

    place: str
    operation: str
    treatment: str
    node: str
    kind: str = ""
    called: bool = True
    outputs: LogScale | None = None
    eps: tuple[float, LogScale] | None = None

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        return (
            f"{self.operation} in {self.place}{kind}" if self.place else self.operation
        )


@dataclass
class Walk:
    """One pass over a graph that collects the equations of all its operations.

    Attributes:
        program: The exported model.
        layout: The parameters that may be scaled; others are constants.
        equations: The collected equations.
        records: What happened, operation by operation; reasons in the equations refer to these.
        leaves: The log-scale of each entry of the layout, by name.
    """

    program: ExportedProgram
    layout: ParameterLayout
    equations: Equations = field(default_factory=Equations)
    records: list[Record] = field(default_factory=list)
    leaves: dict[str, Leaf] = field(default_factory=dict)

    def __post_init__(self):
        self._values: dict[Node, object] = {}
        self._base: dict[Node, Node] = {}
        self._replay: dict[Node, Callable] = {}
        self._uncertain: set[Node] = set()
        self._fake = {
            node.name: node.meta.get("val") for node in self.program.graph.nodes
        }
        signature = self.program.graph_signature.input_specs
        inputs = [self._input(spec) for spec in signature]
        self._run(self.program.graph_module, inputs)

    def _run(self, module: torch.fx.GraphModule, inputs: Sequence):
        """Walk a graph whose inputs have the given log-scales; returns what it returns."""
        given, live = iter(inputs), _live(module.graph)
        for node in module.graph.nodes:
            if node not in live:
                continue
            place, kind = _module(node)
            self.records.append(
                Record(place, _operation(node), "constant", node.name, kind)
            )
            with self.equations.because(len(self.records) - 1):
                if node.op == "placeholder":
                    self.records[-1].called = False
                    self._values[node] = next(given)
                elif node.op == "get_attr":
                    self.records[-1].called = False
                    self._values[node] = operator.attrgetter(node.target)(module)
                elif node.op == "output":
                    self.records[-1].called = False
                    result = self._arguments(node.args[0])
                    if module is self.program.graph_module:
                        self._pin(result)
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
            if isinstance(value, Tensor) and not value.is_floating_point():
                return value
        value = self._fake[spec.arg.name]
        return (
            self.equations.pinned(*value.shape) if isinstance(value, Tensor) else value
        )

    # -- operations ---

    def _called(self, node: Node):
        if node.target is operator.getitem:
            container, index = node.args
            if container in self._base:
                self._base[node] = container
                self._replay[node] = operator.itemgetter(index)
            return self._values[container][index]
        args, kwargs = (self._arguments(a) for a in by_position(node))
        if isinstance(node.target, torch._ops.OpOverload):
            self._values[node] = self._apply(node, args, kwargs)
            self._note_alias(node, args, kwargs)
            return self._values[node]
        record = self.records[-1]
        if str(node.target) in _INLINED:
            record.called = False
            start = next(
                i for i, a in enumerate(args) if isinstance(a, torch.fx.GraphModule)
            )
            result = self._run(args[start], args[start + 1 :])
            return list(result) if isinstance(result, tuple) else result
        if next(scales_among([args, kwargs]), None) is not None:
            return self._unknown(node, [args, kwargs])
        return node.target(*args, **kwargs)

    def _apply(self, node: Node, args, kwargs):
        record, operation = self.records[-1], node.target
        name = operation._schema.name.removeprefix("aten::")
        if name in _SHAPE_ONLY:
            value = node.args[0].meta["val"]
            args = (torch.empty(value.shape, dtype=value.dtype), *args[1:])
        if next(scales_among([args, kwargs]), None) is None:
            return self._constant(node, args, kwargs)
        rule = find_rule(operation)
        if rule is None:
            return self._unknown(node, [args, kwargs])
        call = Call(self.equations, _shape(node))
        result = rule(call, *args, **kwargs)
        record.treatment = "pins" if call.pinned else "rule"
        record.outputs, record.eps = call.outputs, call.eps
        _check(result, node)
        return result

    def _constant(self, node: Node, args, kwargs):
        """The value of an operation on constants, none of which is touched."""
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return self._opaque(node)
        kwargs = dict(kwargs) | ({"device": "cpu"} if "device" in kwargs else {})
        args, kwargs = torch.utils._pytree.tree_map_only(
            Tensor, torch.clone, (args, kwargs)
        )
        return node.target(*args, **kwargs)

    def _unknown(self, node: Node, arguments):
        """Pin all that an operation without a rule touches; nothing, if all is constant anyway."""
        scales = list(scales_among(arguments))
        if any(
            isinstance(x, Unset) or self.equations.simplify(x).terms for x in scales
        ):
            self.records[-1].treatment = "unknown"
        self._pin(arguments)
        return self._opaque(node)

    def _opaque(self, node: Node):
        """The pinned results of an operation about which nothing is known."""

        def pinned(value):
            return (
                self.equations.pinned(*value.shape)
                if isinstance(value, Tensor)
                else value
            )

        values = node.meta.get("val")
        return (
            [pinned(v) for v in values]
            if isinstance(values, (list, tuple))
            else pinned(values)
        )

    def _pin(self, arguments) -> None:
        for scale in scales_among(arguments):
            self.equations.pin(scale)

    def _arguments(self, arguments):
        return torch.fx.node.map_arg(arguments, lambda node: self._values[node])

    # -- views, and operations in place ---

    def _note_alias(self, node: Node, args, kwargs) -> None:
        """Remember views, and carry what is written in place to all views of the same tensor."""
        arguments = node.target._schema.arguments
        if not node.args or not isinstance(node.args[0], Node):
            return
        target, info = node.args[0], arguments[0].alias_info
        name = node.target._schema.name.removeprefix("aten::")
        for argument, operand in zip(arguments[1:], node.args[1:]):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._write(operand, self.equations.pinned(*_shape(operand)))
        if info is not None and info.is_write:
            self._write(target, self._values[node])
            self._base[node], self._replay[node] = target, lambda value: value
        elif info is not None or name.endswith("dropout") and False in args:
            if name in _MAY_COPY and not _contiguous(target):
                self._uncertain.add(self._root(target))
            rest, rule = args[1:], find_rule(node.target)
            call = Call(self.equations, _shape(node))
            if rule is not None:
                self._base[node] = target
                self._replay[node] = lambda value: rule(call, value, *rest, **kwargs)

    def _root(self, node: Node) -> Node:
        while node in self._base:
            node = self._base[node]
        return node

    def _write(self, target: Node, result) -> None:
        """``target`` now holds ``result``: so do the tensor it is a view of and all its views."""
        eq, root = self.equations, self._root(target)
        old = self._values[root]
        family = [node for node in self._base if self._root(node) is root]
        chain = []
        node = target
        while node is not root:
            chain.insert(0, node)
            node = self._base[node]
        moved = [
            node for node in chain if node.target not in (None,) and not _in_place(node)
        ]
        if root.op == "placeholder" and isinstance(old, LogScale):
            eq.equal(
                old, _as_scale(eq, result)
            )  # state keeps its scale from call to call
            return
        if not moved:
            self._values[root] = result
        elif root in self._uncertain or not isinstance(root.meta.get("val"), Tensor):
            self._pin([_as_scale(eq, old), _as_scale(eq, result)])
            self._values[root] = eq.pinned(*_shape(root))
        else:
            index = (
                eq.single(_as_scale(eq, old))
                .terms[0][1]
                .clone(memory_format=torch.contiguous_format)
            )
            view = LogScale([(1, index)], index.shape)
            for node in chain:
                view = self._replay[node](view)
            view.terms[0][1].copy_(eq.single(_as_scale(eq, result)).terms[0][1])
            self._values[root] = LogScale([(1, index)], index.shape)
        for node in family:
            value = self._values[self._base[node]]
            self._values[node] = self._replay[node](
                value if isinstance(value, list) else _as_scale(eq, value)
            )


_SHAPE_ONLY = {
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "randint_like", "sym_size", "size", "zero", "fill",
}  # fmt: skip
"""Operations that need only the shape of their first argument."""

_INLINED = {
    "wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap",
}  # fmt: skip
"""Operations that only run a graph of their own."""

_MAY_COPY = {"reshape", "flatten", "contiguous", "to", "ravel", "type_as"}
"""Operations whose result is a view only where the argument's memory allows it."""


def _live(graph: torch.fx.Graph) -> set[Node]:
    """The nodes that results or state depend on; the others cannot limit a symmetry."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        overload = isinstance(node.target, torch._ops.OpOverload)
        state = overload and (
            node.target._schema.is_mutable or _writes_statistics(node)
        )
        if node.op in ("placeholder", "output") or state or node in live:
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _writes_statistics(node: Node) -> bool:
    """Whether a normalisation updates its running statistics, which its schema does not say."""
    normalises = node.target._schema.name in ("aten::batch_norm", "aten::instance_norm")
    return normalises and by_position(node)[0][5] is True


def by_position(node: Node) -> tuple[tuple, dict]:
    """The arguments of a call, by position as far as its schema allows."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if isinstance(node.target, torch._ops.OpOverload):
        for argument in node.target._schema.arguments[len(args) :]:
            if argument.kwarg_only or not (
                argument.name in kwargs or argument.has_default_value()
            ):
                break
            args.append(kwargs.pop(argument.name, argument.default_value))
    return tuple(args), kwargs


def _as_scale(equations: Equations, value) -> LogScale:
    return value if isinstance(value, LogScale) else equations.constant(value)


def _in_place(node: Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
    )


def _contiguous(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_contiguous()


def _shape(node: Node) -> tuple[int, ...]:
    """The shape of the result, or of the first of several."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = value[0]
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def _check(result, node: Node) -> None:
    first = result[0] if isinstance(result, list) else result
    if isinstance(first, LogScale) and first.shape != _shape(node):
        raise ValueError(
            f"discover: the rule of {_operation(node)} returned a log-scale of shape "
            f"{first.shape}, its result has shape {_shape(node)}"
        )


def _module(node: Node) -> tuple[str, str]:
    """The name of the module that called an operation, and its class."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", ""
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return name.split("@")[0], kind.rpartition(".")[2]


def _operation(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    return {"placeholder": "input", "output": "output"}.get(node.op, str(node.target))
