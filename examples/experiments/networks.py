"""The networks of the experiments, without normalisation, and how they are trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

import quotientnet as qn

PIXELS, CLASSES = 64, 10


def dense(seed: int, width: int = 64, hidden: int = 3) -> nn.Sequential:
    """A ReLU network of the digits with hidden layers of one width, seeded, in float32."""
    sizes = [PIXELS] + [width] * hidden + [CLASSES]
    with _seeded(seed):
        layers = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:])]
    return nn.Sequential(
        *[part for layer in layers for part in (layer, nn.ReLU())][:-1]
    )


def convolutional(seed: int) -> nn.Sequential:
    """Two convolutions, two dense layers, ReLU and max pooling: a small LeNet, in float32."""
    with _seeded(seed):
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(PIXELS, 32),
            nn.ReLU(),
            nn.Linear(32, CLASSES),
        )


@contextmanager
def _seeded(seed: int):
    """Random numbers that depend on the seed alone, and none taken from others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@lru_cache
def symmetry_of(make: Callable[[int], nn.Module]) -> qn.Symmetry:
    """The scales that leave networks of this architecture unchanged, derived once."""
    example = torch.ones(2, PIXELS, dtype=torch.float64)
    return qn.discover(make(0).double(), example)


def shuffled(inputs: Tensor, targets: Tensor, size: int, seed: int):
    """A function of the epoch that gives its batches, in another order each time."""
    generator = torch.Generator().manual_seed(seed)

    def batches(_) -> Sequence[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(targets), generator=generator).split(size)
        return [(inputs[rows], targets[rows]) for rows in order]

    return batches


@torch.no_grad()
def accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """The share of images whose label the network says."""
    return float((network(inputs).argmax(1) == targets).double().mean())
