"""The graph of a module, with an error that names the place where there is none."""

from __future__ import annotations

import copy
import logging
import traceback
import warnings
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from quotientnet.symmetry.replica import first_line
from quotientnet.wrappers import unwrapped

__all__ = ["export"]


def export(model: nn.Module, args: tuple, kwargs: Mapping) -> ExportedProgram:
    """The model's graph, with an error that names the place where there is none.

    Raises:
        ValueError: The model does not run on the inputs, returns no tensor, or cannot be exported:
            it branches on data, say.
    """
    model = unwrapped(model)
    try:
        with _attributes_kept(model), _quietly():
            program = torch.export.export(model, args, dict(kwargs), strict=False)
    except Exception as error:
        raise ValueError(
            f"discover: the model cannot be exported as one graph {_place_of(error, model)}: "
            f"{type(error).__name__}: {first_line(error)}. {_remedy(error, kwargs)}"
        ) from error
    outputs = program.graph_signature.output_specs
    if not any(isinstance(output.arg, TensorArgument) for output in outputs):
        raise ValueError(
            f"discover: the forward of {type(model).__name__} returns no tensor, so that every "
            "change of its parameters leaves it as it is; return what the loss is made of"
        )
    return program


def _remedy(error: Exception, kwargs: Mapping) -> str:
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        return (
            "Its operations must not depend on the values of tensors (branches, loops, .item()); "
            "torch.where selects without a branch, and symmetry.discover_numerically needs no graph"
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
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(silent)
