"""A user's own network: model, data, loss and checkpoint."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from quotientnet.commands.loading import call, load_loss, load_model
from quotientnet.commands.refusal import Refusal
from quotientnet.commands.subject import Subject
from quotientnet.objective import Objective
from quotientnet.processes import Processes
from quotientnet.symmetry import discover

__all__ = ["own"]


def own(options, processes: Processes) -> Iterator[Subject]:
    """The network that ``--model``, ``--data``, ``--loss`` and ``--checkpoint`` describe.

    Args:
        options: What was typed.
        processes: Those that share the data, each of which has its part.

    Raises:
        Refusal: Something is wrong with one of them.
    """
    if options.data is None:
        raise Refusal(
            "--model needs --data package.module:function, a batch or batches"
        )
    given = []
    processes.gather("the options", lambda: given.extend(_given(options)))
    model, data, loss = given
    objective = _objective(model, data, loss, options, processes)
    with _quiet_export():
        try:
            symmetry = discover(
                model, _example(objective, model), layout=objective.layout
            )
        except (ValueError, TypeError) as error:
            raise Refusal(f"--model {options.model}: {error}") from error
    if not symmetry.group.dimension:
        raise Refusal(
            f"--model {options.model}: no scaling leaves this network unchanged:\n{symmetry}"
        )
    yield Subject(options.model, objective, symmetry, points=options.points)


def _given(options) -> tuple:
    """The model, ready to run, the data and the loss."""
    model = load_model(options.model, options.checkpoint)
    model = model.to(torch.device(options.device), getattr(torch, options.dtype))
    model.train(options.mode == "train")
    return model, call("--data", options.data), load_loss(options.loss)


def _objective(model, data, loss, options, processes: Processes) -> Objective:
    """The loss on the data, once it has been evaluated."""
    if isinstance(data, list) and len(data) == 2 and isinstance(data[0], torch.Tensor):
        data = tuple(data)
    try:
        objective = Objective(
            model, loss, data, target_key=options.target_key,
            process_group="world" if processes.several else None,
        )  # fmt: skip
        processes.gather("the data", lambda: next(iter(objective.data), None) is None)
    except (ValueError, TypeError) as error:
        raise Refusal(f"--data {options.data}: {error}") from error
    _evaluate_once(objective, model, options)
    return objective


def _evaluate_once(objective: Objective, model, options) -> None:
    """The first value and gradient: what fails here is the data, the loss or their fit."""
    place = f"--data {options.data} --loss {options.loss}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            objective.at(objective.layout.flatten(model)).gradient
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0].replace(
            "pass target_key=...", "pass --target-key"
        )
        if isinstance(error, ValueError):
            raise Refusal(f"{place}: {first}") from error
        raise Refusal(
            f"{place}: the loss of the model on the first batches cannot be evaluated: "
            f"{type(error).__name__}: {first}"
        ) from error
    for each in said:  # where the evaluation fails, its error says it all
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


@contextmanager
def _quiet_export():
    """Without torch's own log of a failing export, of which the refusal has what matters."""
    names = [
        "torch",
        *(n for n in logging.root.manager.loggerDict if n.startswith("torch.")),
    ]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    printed = StringIO()
    try:
        with redirect_stderr(printed):  # torch prints the graph of a failing export
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _example(objective: Objective, model):
    """The inputs of the first batch, as ``discover`` takes them: on all ranks those of the first
    rank that has one."""
    w = objective.layout.flatten(model)

    def own_example():
        batch = next(iter(objective.data), None)
        if batch is None:
            return None
        args, kwargs, _ = objective._read(batch, w)
        return tree_map_only(Tensor, lambda t: t.cpu(), kwargs or args)

    found = objective._processes.gather("the first batch", own_example)
    example = next(each for each in found if each is not None)
    return tree_map_only(Tensor, lambda t: t.to(w.device), example)
