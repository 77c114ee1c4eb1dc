"""A module's graph, walked once: every operation's rule applied to log-scales."""

from __future__ import annotations

import copy
import logging
import operator
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.replica import first_line
from quotientnet.symmetry.rules import Call, find_rule
from quotientnet.symmetry.scales import Leaf, LogScale, Unset, scales_among

__all__ = ["Record", "Walk", "export", "by_position"]


def export(model: nn.Module, args: tuple, kwargs: Mapping) -> ExportedProgram:
    """The model's graph, with an error that names the place where there is none.

    Raises:
        ValueError: The model does not run on the inputs, or cannot be exported: it branches on
            data, say.
    """
    try:
        with _attributes_kept(model), _quietly():
            return torch.export.export(model, args, dict(kwargs), strict=False)
    except Exception as error:
        raise ValueError(
            f"discover: the model cannot be exported as one graph {_place_of(error, model)}: "
            f"{type(error).__name__}: {first_line(error)}. {_remedy(error, kwargs)}"
        ) from error


def _remedy(error: Exception, kwargs: Mapping) -> str:
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        return (
            "Its operations must not depend on the values of tensors (branches, loops, .item()); "
            "torch.where selects without a branch"
        )
    if kwargs and isinstance(error, TypeError):
        return "A dict is taken as keyword arguments; pass ({...},) to give the model a dict"
    return (
        "Does it run on example_inputs, and does torch.export(strict=False) support it?"
    )


def _place_of(error: BaseException, model: nn.Module) -> str:
    """The innermost module on the way to the error, and the innermost line of a user's own."""
    names = {id(child): name for name, child in model.named_modules()}
    place, line_of = f"in {type(model).__name__}", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        child, code = frame.f_locals.get("self"), frame.f_code
        if (
            isinstance(child, nn.Module)
            and id(child) in names
            and code.co_name != "_call_impl"
        ):
            name = names[id(child)] or "the model"
            place = f"in {name} ({type(child).__name__})"
            if not str(frame.f_globals.get("__name__", "")).startswith("torch."):
                line_of = f", {code.co_filename}:{line}"
    return place + line_of


@contextmanager
def _attributes_kept(model: nn.Module):
    """Give back plain attributes that a forward assigns: an export leaves fake tensors there."""
    kept = [(module, dict(vars(module))) for module in model.modules()]
    held = [
        (value, copy.copy(value))
        for _, attributes in kept
        for value in attributes.values()
        if type(value) in (list, dict)
    ]
    try:
        yield
    finally:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        for value, content in held:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)


@contextmanager
def _quietly():
    """Without torch's own log of what the error will say, and its warning on attributes."""

    def silent(record) -> bool:
        return False

    handlers = logging.getLogger("torch").handlers
    for handler in handlers:
        handler.addFilter(silent)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*assigned during export.*")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(silent)


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
        self._returned: dict[Node, Sequence] = {}
        self._writes = any(
            _writes_floats(m.graph) for m in _graphs(self.program.graph_module)
        )
        self._fake = {
            node.name: node.meta.get("val") for node in self.program.graph.nodes
        }
        signature = self.program.graph_signature.input_specs
        inputs = [self._input(spec) for spec in signature]
        self._run(self.program.graph_module, inputs)

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
        given, live, names = iter(inputs), _live(module.graph), iter(outer)
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
                    self._same_as(node, next(names, None))
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
        return (
            self.equations.pinned(*value.shape) if isinstance(value, Tensor) else value
        )

    # -- operations ---

    def _called(self, node: Node):
        if node.target is operator.getitem:
            self.records[-1].called = False
            container, index = node.args
            if container in self._returned:
                self._same_as(node, self._returned[container][index])
            elif container in self._base:
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
            result = self._run(
                args[start], args[start + 1 :], node.args[start + 1 :], node
            )
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
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            args = (self.equations.constant(args[0]), *args[1:])
        rule = find_rule(operation)
        call = Call(self.equations, _shape(node), _dtype(node))
        written = any(
            a.kwarg_only and _is_written(a) for a in operation._schema.arguments
        )
        if rule is None or written or not _takes(rule, call, args, kwargs):
            return self._unknown(node, [args, kwargs])
        if not rule.__module__.startswith(_OWN_RULES):
            args, kwargs = tree_map_only(
                LogScale, self.equations.resolve, (args, kwargs)
            )
        try:
            result = rule(call, *args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"discover: the rule of {record} failed with {type(error).__name__}: {error}"
            ) from error
        record.treatment = (
            "unknown" if call.unknown else "pins" if call.pinned else "rule"
        )
        record.outputs, record.eps = call.outputs, call.eps
        return self._completed(result, node)

    def _completed(self, result, node: Node):
        """A rule's result, checked; pinned what it left out, such as the indices of a maximum."""
        opaque = self._opaque(node)
        if isinstance(opaque, list):
            result = [b if a is None else a for a, b in zip(result, opaque)]
        elif result is None:
            result = opaque
        first = result[0] if isinstance(result, list) else result
        if isinstance(first, Tensor):
            first = result = self.equations.pinned(*first.shape)
        if isinstance(first, LogScale) and first.shape != _shape(node):
            raise ValueError(
                f"discover: the rule of {_operation(node)} returned a log-scale of shape "
                f"{first.shape}, its result has shape {_shape(node)}"
            )
        if not (_dtype(node).is_floating_point or _dtype(node).is_complex):
            self._pin(first)  # rounding knows no scale
        return result

    def _constant(self, node: Node, args, kwargs):
        """The value of an operation on constants, none of which is touched."""
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return self._opaque(node)
        kwargs = dict(kwargs) | ({"device": "cpu"} if "device" in kwargs else {})
        args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
        return tree_map_only(Tensor, Tensor.cpu, node.target(*args, **kwargs))

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
            if isinstance(value, Tensor):
                return self.equations.pinned(*value.shape)
            symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
            return self.equations.pinned() if symbolic else value

        values = node.meta.get("val")
        several = isinstance(values, (list, tuple))
        return [pinned(value) for value in values] if several else pinned(values)

    def _pin(self, arguments) -> None:
        for scale in scales_among(arguments):
            self.equations.pin(scale)

    def _arguments(self, arguments):
        return torch.fx.node.map_arg(arguments, lambda node: self._values[node])

    # -- views, and operations in place ---

    def _same_as(self, node: Node, other) -> None:
        """``node`` is the same tensor as ``other``."""
        if isinstance(other, Node):
            self._base[node], self._replay[node] = other, lambda value: value

    def _note_alias(self, node: Node, args, kwargs) -> None:
        """Remember views, and carry what is written in place to all views of the same tensor."""
        written = [
            operand
            for argument, operand in _operands(node)
            if _is_written(argument) and isinstance(operand, Node)
        ]
        target = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        for operand in written:
            if operand is not target:
                self._write(operand, self.equations.pinned(*_shape(operand)))
        shape_only = torch.Tag.inplace_view in node.target.tags
        if target is not None and target in written and not shape_only:
            self._write(target, self._values[node])
            self._same_as(node, target)
        elif target is not None and shape_only:
            self._note_view(node, target, args, kwargs)
        elif self._writes:
            for other in _aliased(node):
                self._note_view(node, other, args, kwargs)

    def _note_view(self, node: Node, target: Node, args, kwargs) -> None:
        rule, rest = find_rule(node.target), args[1:]
        call = Call(self.equations, _shape(node), _dtype(node))
        known = (
            target is node.args[0]
            and rule is not None
            and _takes(rule, call, args, kwargs)
        )
        self._base[node] = target
        if known and self.records[-1].treatment != "unknown":
            self._replay[node] = lambda value: rule(call, value, *rest, **kwargs)
        else:
            self._replay[node] = lambda value: self._opaque(node)
            self._uncertain.add(self._root(target))

    def _root(self, node: Node) -> Node:
        while node in self._base:
            node = self._base[node]
        return node

    def _write(self, target: Node, result) -> None:
        """``target`` now holds ``result``: so do the tensor it is a view of and all its views."""
        eq, root = self.equations, self._root(target)
        family = [node for node in self._base if self._root(node) is root]
        chain, node = [], target
        while node is not root:
            chain.insert(0, node)
            node = self._base[node]
        if root.op == "placeholder" and isinstance(self._values[root], LogScale):
            # State keeps its scale from call to call.
            eq.equal(_as_scale(eq, self._values[target]), _as_scale(eq, result))
            return
        if root in self._uncertain or not isinstance(root.meta.get("val"), Tensor):
            self._pin([_as_scale(eq, self._values[root]), _as_scale(eq, result)])
            self._values[root] = self._opaque(root)
        elif all(_in_place(node) for node in chain):
            self._values[root] = result
        else:
            self._values[root] = self._written(root, chain, result)
        for node in family:
            value = self._values[self._base[node]]
            self._values[node] = self._replay[node](
                value if isinstance(value, list) else _as_scale(eq, value)
            )

    def _written(self, root: Node, chain: Sequence[Node], result) -> LogScale:
        """``root`` after a view of it, at the end of a chain of views, was overwritten."""
        eq, old = self.equations, _as_scale(self.equations, self._values[root])
        result = _as_scale(eq, result)
        index = eq.single(old).terms[0][1].clone(memory_format=torch.contiguous_format)
        view = LogScale([(1, index)], index.shape)
        for node in chain:
            view = self._replay[node](view)
        seen = view.terms[0][1]
        copied = seen.untyped_storage().data_ptr() != index.untyped_storage().data_ptr()
        if copied:
            self._pin([old, result])
            return eq.pinned(*_shape(root))
        seen.copy_(eq.single(result).terms[0][1])
        return LogScale([(1, index)], index.shape)


_OWN_RULES = find_rule.__module__.rpartition(".")[0]
"""Where rules are that look at parameters before their log-scales are determined."""

_SHAPE_ONLY = {
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "randint_like", "sym_size", "size", "zero", "fill",
}  # fmt: skip
"""Operations that need only the shape of their first argument."""

_INLINED = {
    "wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap",
}  # fmt: skip
"""Operations that only run a graph of their own."""


def _graphs(module: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    """A graph and those that it calls."""
    return [m for m in module.modules() if isinstance(m, torch.fx.GraphModule)]


def _writes_floats(graph: torch.fx.Graph) -> bool:
    """Whether an operation writes to a tensor of floating-point numbers."""
    return any(
        isinstance(operand, Node)
        and _is_written(argument)
        and _dtype(operand).is_floating_point
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, operand in _operands(node)
    )


def _name(node: Node) -> str:
    return node.target._schema.name.removeprefix("aten::")


def _operands(node: Node) -> list[tuple]:
    """The arguments of a call, each with what its schema says of it."""
    given = zip(node.target._schema.arguments, node.args)
    named = {argument.name: argument for argument in node.target._schema.arguments}
    return [*given, *((named[name], value) for name, value in node.kwargs.items())]


def _is_written(argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _aliased(node: Node) -> list[Node]:
    """The argument whose memory the result shares, found out on tensors without values."""
    stand_ins = {}

    def stand_in(argument: Node):
        value = argument.meta.get("val")
        if isinstance(value, Tensor):
            strides = {"dtype": value.dtype, "device": "meta"}
            value = torch.empty_strided(value.shape, value.stride(), **strides)
            stand_ins[argument] = value.untyped_storage()._cdata
        return value

    if _name(node) in ("to", "type_as", "_to_copy"):
        return [node.args[0]] if _keeps_memory(node) else []
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), stand_in)
    kwargs = dict(kwargs) | ({"device": "meta"} if "device" in kwargs else {})
    try:
        results = tree_leaves(node.target(*args, **kwargs))
    except (RuntimeError, NotImplementedError):  # it needs values: as if it were a view
        return node.all_input_nodes[:1]
    results = {t.untyped_storage()._cdata for t in results if isinstance(t, Tensor)}
    return [argument for argument, storage in stand_ins.items() if storage in results][
        :1
    ]


def _keeps_memory(node: Node) -> bool:
    """Whether a conversion changes nothing, and so returns its argument."""
    source = node.args[0]
    copied = any(a is True for a in (*node.args[1:], node.kwargs.get("copy")))
    form = node.kwargs.get("memory_format")
    plain = form in (None, torch.preserve_format)
    plain = (
        plain or form is torch.contiguous_format and source.meta["val"].is_contiguous()
    )
    return plain and not copied and _dtype(node) == _dtype(source)


def _live(graph: torch.fx.Graph) -> set[Node]:
    """The nodes that results or state depend on; the others cannot limit a symmetry."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            state = node.target._schema.is_mutable or _writes_statistics(node)
        else:
            state = isinstance(node.target, torch._ops.HigherOrderOperator)
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


def _shape(node: Node) -> tuple[int, ...]:
    """The shape of the result, or of the first of several."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = value[0]
    if not isinstance(value, Tensor):
        return ()
    if not all(isinstance(n, int) for n in value.shape):
        place = " in ".join([_operation(node), *filter(None, _module(node)[:1])])
        raise ValueError(
            f"discover: the shape {tuple(value.shape)} of the result of {place} depends on data; "
            "its channels cannot be told apart"
        )
    return tuple(value.shape)


def _dtype(node: Node) -> torch.dtype:
    """The dtype of the result, or of the first of several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value.dtype if isinstance(value, Tensor) else torch.float32


def _takes(rule: Callable, call: Call, args: tuple, kwargs: Mapping) -> bool:
    """Whether a rule knows the arguments of an overload."""
    try:
        signature(rule).bind(call, *args, **kwargs)
    except TypeError:
        return False
    return True


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
    plain = getattr(node.target, "__name__", str(node.target))
    return {"placeholder": "input", "output": "output"}.get(node.op, plain)
