"""Small networks on real digits, each with moves under which a measure may be invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.digits import Digits, load_digits, make_normalised_network, train
from quotientnet.group import ScalingGroup
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.objective import Objective
from quotientnet.symmetry import discover

__all__ = ["Trial", "digits_trials"]


@dataclass(frozen=True)
class Trial:
    """A network and a kind of move, one column of the matrix.

    Attributes:
        name: Of the column.
        key: The same in at most eight characters.
        claim: The word for these moves in ``Estimate.invariant_to``.
        objective: The loss.
        group: The network's own group, for measures that want one.
        move: A random equivalent point of ``w``: ``move(w, generator)``.
        approximate: Whether only the size of the change is of interest, not a verdict.
    """

    name: str
    key: str
    claim: str
    objective: Objective
    group: ScalingGroup
    move: Callable[[Tensor, torch.Generator], Tensor]
    approximate: bool = False

    @property
    def w(self) -> Tensor:
        """The point at which measures start."""
        return self.objective.layout.flatten(self.objective.model)


def digits_trials(
    seed: int = 0, images: int = 60, spread: float = 1.0
) -> tuple[Trial, ...]:
    """The columns of the invariance matrix, in float64.

    Args:
        seed: Of networks and training.
        images: How many images the loss is taken over.
        spread: Standard deviation of random log-scales.

    Returns:
        Layer scales without and with biases, unit scales, filter scales under batch normalisation
        in both modes and with an ``eps`` of 1e-5, rows and columns of a network without biases,
        and the scale and shift of the logits: the scale with the normalised loss as well.
    """
    digits = load_digits(seed)
    biased, plain = (_dense(digits, bias, seed) for bias in (True, False))
    return (
        *_scales(plain, digits, images, spread, "without biases"),
        *_scales(biased, digits, images, spread, "with biases"),
        *_filters(digits, images, spread, seed),
        *_outputs(biased, digits, images, spread, nn.CrossEntropyLoss(), ""),
        *_outputs(
            biased,
            digits,
            images,
            spread,
            NormalisedCrossEntropy(),
            ", normalised loss",
        )[:1],
    )


def _dense(digits: Digits, bias: bool, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (64, 10, 8, 10)
        layers = [nn.Linear(a, b, bias=bias) for a, b in zip(widths, widths[1:])]
        network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    network = network.double()
    train(network, digits, batch_size=64, epochs=5, seed=seed)
    return network


def _objective(network, digits: Digits, images: int, loss=None) -> Objective:
    data = digits.train_inputs[:images], digits.train_targets[:images]
    return Objective(network, loss or nn.CrossEntropyLoss(), data)


def _acting(group: ScalingGroup, spread: float):
    """Random elements of a group."""

    def move(w, generator):
        return group.act(w, group.random(spread=spread, generator=generator))

    return move


def _scales(network, digits, images, spread, biases: str) -> tuple[Trial, Trial]:
    """Layer scales and unit scales of a dense network."""
    objective = _objective(network, digits, images)
    symmetry = discover(network, digits.train_inputs[:8], layout=objective.layout)
    with_biases = biases == "with biases"
    layers = Trial(
        f"layer scales, {biases}", "layer+b" if with_biases else "layer", "layer scales",
        objective, symmetry.group, _acting(symmetry.layer_scales, spread),
    )  # fmt: skip
    units = Trial(
        "unit scales" if with_biases else "rows and columns, without biases",
        "unit" if with_biases else "row/col", "unit scales",
        objective, symmetry.group, _acting(symmetry.group, spread),
    )  # fmt: skip
    return layers, units


def _filters(digits: Digits, images: int, spread: float, seed: int) -> list[Trial]:
    """Filter scales under batch normalisation."""
    network, trials = make_normalised_network(seed), []
    train(network, digits, batch_size=64, epochs=5, seed=seed)
    for training, eps in ((True, 0.0), (False, 0.0), (True, 1e-5)):
        model = make_normalised_network(seed)
        model.load_state_dict(network.state_dict())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and eps:
                module.eps = eps
        mode = "train" if training else "eval"
        objective = _objective(model.train(training), digits, images)
        symmetry = discover(model, digits.train_inputs[:8], layout=objective.layout)
        others = np.array([not naming.normalised for naming in symmetry.namings])
        trials.append(Trial(
            f"filter scales, {mode} mode, eps = {eps:g}", f"BN {eps:g}" if eps else f"BN {mode}",
            "filter scales", objective, symmetry.group,
            _acting(symmetry.group.without(others), spread), bool(eps),
        ))  # fmt: skip
    return trials


def _outputs(network, digits, images, spread, loss, what: str) -> list[Trial]:
    """The scale and the shift of the logits, by the parameters of the last layer."""
    objective = _objective(network, digits, images, loss)
    layout = objective.layout
    symmetry = discover(network, digits.train_inputs[:8], layout=layout)
    last = [entry.name for entry in layout.entries][-2:]

    def scale(w, generator):
        factor = (spread * torch.randn((), generator=generator, dtype=w.dtype)).exp()
        return torch.where(layout.mask(*last), factor * w, w)

    def shift(w, generator):
        amount = spread * torch.randn((), generator=generator, dtype=w.dtype)
        return torch.where(layout.mask(last[1]), w + amount, w)

    return [
        Trial(f"output {word}{what}", word + ("*" if what else ""), f"output {word}",
              objective, symmetry.group, move)
        for word, move in (("scale", scale), ("shift", shift))
    ]  # fmt: skip
