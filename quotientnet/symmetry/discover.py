"""Deriving the scaling group of a module from its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.control import CONTROL
from quotientnet.symmetry.epsilon import measure_eps
from quotientnet.symmetry.explanation import Coverage, Pinned, Symmetry
from quotientnet.symmetry.export import export
from quotientnet.symmetry.graph import Walk
from quotientnet.symmetry.links import arrangement, named_group
from quotientnet.symmetry.replica import require_layout
from quotientnet.symmetry.rules import reason_of
from quotientnet.symmetry.scales import PINNED, Leaf, LogScale, compact
from quotientnet.symmetry.solution import Solution
from quotientnet.symmetry.translations import derive_translations
from quotientnet.symmetry.zeros import any_scale
from quotientnet.units import Term

__all__ = ["discover"]


def discover(
    model: nn.Module,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    layout: ParameterLayout | None = None,
) -> Symmetry:
    """Derive the scalings of a module's parameters that leave its outputs unchanged.

    The module is exported to a graph in its present mode. Every operation imposes linear equations
    on the log-scales of what it reads and writes; inputs, outputs and constants have scale 1. The
    group is the null space, with integer exponents. An operation without a rule pins everything
    it touches and is listed; it is never guessed at. The page on deriving a symmetry explains the
    answer and its limits; :func:`quotientnet.symmetry.rule` teaches it an operation.

    Nothing of the module's changes. The answer depends on its mode and on the graph for these
    inputs, not on the values of parameters.

    Args:
        model: Any module that ``torch.export`` can export.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        layout: The parameters that may be scaled; by default all that require a gradient.
            Others are constants.

    Returns:
        The group with a name for every generator, and an account of everything that limits it.

    Raises:
        TypeError: ``model`` is not a module, or ``layout`` no layout.
        ValueError: The module cannot be exported, returns no tensor, or a shape in it depends on
            data (the message names the place); the layout is another model's; an input is empty; a
            rule fails; torch's default device is meta.

    Note:
        Beyond the time of the export, linear in the number of operations and channels. One run of
        the graph measures how good normalisations with an ``eps`` are as symmetries.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> symmetry = qn.discover(model, torch.randn(5, 4))
        >>> symmetry.group.dimension
        3
        >>> symmetry.group.names[1]
        '0 channel 1: rows of 0.weight and bias, columns of 2.weight'
    """
    layout = layout_of(model, layout, "discover")
    args, kwargs = call_arguments(example_inputs, "discover")
    program = export(model, args, kwargs)
    walk = Walk(program, layout)
    solution = walk.equations.solve()
    group, namings = _group(layout, walk.leaves, solution)
    return Symmetry(
        group=group,
        namings=tuple(namings),
        pinned=tuple(_pinned(walk, solution)),
        approximate=tuple(_measured_eps(walk, args, kwargs)),
        coverage=tuple(_coverage(walk)),
        training=model.training,
        order=tuple(walk.used),
        translations=derive_translations(program, layout),
    )


def layout_of(
    model: nn.Module, layout: ParameterLayout | None, caller: str
) -> ParameterLayout:
    """A layout that fits the model, by default that of all that requires a gradient."""
    if torch.get_default_device().type == "meta":
        raise ValueError(
            f"{caller}: torch's default device is meta, where nothing has values; call it outside "
            "of torch.device('meta')"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}"
        )
    if layout is None:
        parameters = list(model.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            remedy = "at all, so there is nothing to scale" if not parameters else (
                "that require a gradient; pass "
                "layout=ParameterLayout.from_module(model, include_frozen=True) to scale frozen "
                "ones"
            )
            raise ValueError(f"{caller}: {type(model).__name__} has no parameters {remedy}")
        layout = ParameterLayout.from_module(model)
    if not isinstance(layout, ParameterLayout):
        raise TypeError(
            f"{caller}: layout must be a ParameterLayout, got {type(layout).__name__}"
        )
    require_layout(model, layout, caller)
    return layout


def _measured_eps(walk: Walk, args: tuple, kwargs: Mapping):
    try:
        return measure_eps(walk, args, kwargs)
    except RuntimeError as error:
        raise ValueError(
            "discover: the model was exported but does not run on the example inputs: "
            f"{str(error).splitlines()[0]}"
        ) from error


def call_arguments(inputs, caller: str) -> tuple[tuple, dict]:
    """Positional and keyword arguments from what a user calls the inputs of a model."""
    empty = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and not x.numel()]
    if empty:
        raise ValueError(
            f"{caller}: an input of shape {tuple(empty[0].shape)} is empty; pass one sample or more"
        )
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    raise TypeError(
        f"{caller}: inputs must be a tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments, got {type(inputs).__name__}"
    )


def _group(layout, leaves: Mapping[str, Leaf], solution: Solution):
    """The group in compact form, generators in the order of what they scale first."""
    incidence, used = _incidence(leaves, solution)
    return named_group(layout, incidence, sparse.csr_array(solution.basis[used]))


def _incidence(leaves: Mapping[str, Leaf], solution: Solution):
    """The terms of each parameter, and the distinct unknowns that their classes are."""
    rows = {
        name: [(c, solution.row[compact(index).numpy()]) for c, index in leaf.terms]
        for name, leaf in leaves.items()
    }
    used = [index.reshape(-1) for terms in rows.values() for _, index in terms]
    used = np.unique(np.concatenate([np.array([PINNED]), *used]))
    incidence = {}
    for name, terms in rows.items():
        terms = [Term(np.searchsorted(used, index), c) for c, index in terms]
        terms = [term for term in terms if term.index.any()]
        if terms:
            incidence[name] = terms
    return incidence, used


def exponents_of_unknowns(walk: Walk, solution: Solution) -> sparse.csr_array:
    """The exponents of all unknowns, distinct unknowns × generators of the derived group."""
    incidence, used = _incidence(walk.leaves, solution)
    classes = sparse.csr_array(solution.basis[used])
    order, sign = arrangement(walk.layout, incidence, classes)
    return sparse.csr_array(
        solution.basis[:, order] @ sparse.diags_array(sign, dtype=np.int64)
    )


def _pinned(walk: Walk, solution: Solution):
    """The output channels that cannot be scaled, by layer and by the operation that pinned them."""
    for record in walk.records:
        if record.outputs is None or not record.outputs.shape:
            continue
        channels = _channels(record.outputs)
        reasons = np.full(channels.shape, -1)
        total = sparse.csr_array(
            (len(reasons), solution.basis.shape[1]), dtype=np.int64
        )
        for c, index in channels.terms:
            total = total + c * solution.basis[solution.row[index.numpy()]]
            own = solution.reasons[index.numpy()]
            reasons = np.where(own >= 0, own, reasons)
        total.eliminate_zeros()
        stuck = (np.diff(total.indptr) == 0) & ~any_scale(channels).numpy()
        for reason in np.unique(reasons[stuck]).tolist():
            why = str(walk.records[reason]) if reason >= 0 else _WHAT_IT_READS
            numbers = np.flatnonzero(stuck & (reasons == reason))
            yield Pinned(record.place or record.node, tuple(numbers.tolist()), why)


def _channels(outputs: LogScale) -> LogScale:
    """The log-scales of channels, along the last axis, at the first place where all have one."""
    places = (~any_scale(outputs)).all(-1).nonzero()
    place = places[0].tolist() if len(places) else [0] * (len(outputs.shape) - 1)
    # An index is 1 long, or expanded, along axes that the mask is 1 long along.
    return outputs.map(lambda t: t[tuple(place)])


_WHAT_IT_READS = (
    "what it reads, none of which can be scaled, or several operations together"
)


def _coverage(walk: Walk):
    counts = Counter(
        (record.operation, record.treatment) for record in walk.records if record.called
    )
    for (operation, treatment), count in sorted(counts.items()):
        places = [
            r.place
            for r in walk.records
            if (r.operation, r.treatment) == (operation, treatment)
        ]
        reason = _reason(operation, treatment)
        yield Coverage(
            operation, treatment, count, tuple(dict.fromkeys(places)), reason
        )


def _reason(operation: str, treatment: str) -> str:
    """What the rule of an operation says of itself."""
    if treatment not in ("rule", "pins"):
        return ""
    if operation in CONTROL:
        return CONTROL[operation].__doc__
    return reason_of(operation)
