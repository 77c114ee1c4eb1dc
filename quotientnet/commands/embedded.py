"""The embedded networks on handwritten digits: a small batch, a large batch, normalised filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from quotientnet.commands.refusal import Refusal
from quotientnet.commands.subject import Subject
from quotientnet.digits import (
    Digits,
    load_digits,
    make_network,
    make_normalised_network,
    train,
)
from quotientnet.objective import Objective
from quotientnet.reparametrisation import layer_scales
from quotientnet.symmetry import discover

__all__ = ["NETWORKS", "Recipe", "embedded"]

PAPER_SCALES = (5, 4, 1 / 20)
"""The first layer scales of rangamani2019 Table 2."""


@dataclass(frozen=True)
class Recipe:
    """How a network is made and measured.

    Attributes:
        make: ``make(seed, dtype, device)``.
        batch_size: Of its training.
        epochs: Of its training.
        images: How many training images it is measured on.
    """

    make: object
    batch_size: int
    epochs: int
    images: int = 200


NETWORKS = {
    "dense, small batch (32)": Recipe(make_network, 32, 40),
    "dense, large batch (1437)": Recipe(make_network, 1437, 200),
    "convolutional, batch-normalised": Recipe(make_normalised_network, 64, 20, 100),
}


def embedded(options) -> Iterator[Subject]:
    """The networks, each trained when it is asked for.

    Raises:
        Refusal: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise Refusal("the digits need scikit-learn: pip install quotientnet[examples]")
    dtype = getattr(torch, options.dtype)
    digits = load_digits(options.seed, dtype, torch.device(options.device))
    for name, recipe in NETWORKS.items():
        yield _subject(name, recipe, digits, options, dtype)


def _subject(name: str, recipe: Recipe, digits: Digits, options, dtype) -> Subject:
    network = recipe.make(options.seed, dtype, torch.device(options.device))
    train(
        network,
        digits,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=options.seed,
        progress=True,
    )
    facts = {
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "train_accuracy": _accuracy(network, digits.train_inputs, digits.train_targets),
        "test_accuracy": _accuracy(network, digits.test_inputs, digits.test_targets),
    }
    network.train(options.mode == "train")
    data = digits.train_inputs[: recipe.images], digits.train_targets[: recipe.images]
    objective = Objective(network, nn.CrossEntropyLoss(), data)
    symmetry = discover(network, data[0][:8], layout=objective.layout)
    elements = {}
    if recipe.make is make_network:
        elements["rangamani2019 Table 2"] = layer_scales(symmetry.group, PAPER_SCALES)
    return Subject(name, objective, symmetry, facts, elements, 2 - len(elements))


@torch.no_grad()
def _accuracy(network, inputs, targets) -> float:
    """In eval mode, whatever the mode; the mode is given back."""
    training = network.training
    network.eval()
    correct = (network(inputs).argmax(1) == targets).double().mean()
    network.train(training)
    return float(correct)
