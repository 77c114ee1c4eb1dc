"""A user's own network: model, data, loss and checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from quotientnet.commands.loading import call, load_loss, load_model
from quotientnet.commands.refusal import Refusal
from quotientnet.commands.subject import Subject
from quotientnet.objective import Objective
from quotientnet.symmetry import discover

__all__ = ["own"]


def own(options) -> Iterator[Subject]:
    """The network that ``--model``, ``--data``, ``--loss`` and ``--checkpoint`` describe.

    Raises:
        Refusal: Something is wrong with one of them.
    """
    if options.data is None:
        raise Refusal(
            "--model needs --data package.module:function, a batch or batches"
        )
    model = load_model(options.model, options.checkpoint)
    model = model.to(torch.device(options.device), getattr(torch, options.dtype))
    model.train(options.mode == "train")
    data = call("--data", options.data)
    if isinstance(data, list) and len(data) == 2 and isinstance(data[0], torch.Tensor):
        data = tuple(data)
    objective = Objective(model, load_loss(options.loss), data)
    symmetry = discover(model, _example(objective, model), layout=objective.layout)
    if not symmetry.group.dimension:
        raise Refusal(
            f"--model {options.model}: no scaling leaves this network unchanged:\n{symmetry}"
        )
    yield Subject(options.model, objective, symmetry, points=options.points)


def _example(objective: Objective, model):
    """The inputs of the first batch, as ``discover`` takes them."""
    w = objective.layout.flatten(model)
    args, kwargs, _ = objective._read(next(iter(objective.data)), w)
    return kwargs or args
