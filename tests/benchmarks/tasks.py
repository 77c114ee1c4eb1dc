"""The networks on which second derivatives are timed, and what the unit of time is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Task:
    """A network with the shape of an input; cross-entropy."""

    make: Callable[[int], nn.Module]
    inputs: tuple[int, ...]
    batch: int = 512
    classes: int = 10

    def build(self) -> nn.Module:
        """The network in eval mode, with seeded parameters and running statistics."""
        torch.manual_seed(0)
        model = self.make(self.classes).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model

    def data(self, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeded inputs and targets."""
        generator = torch.Generator().manual_seed(1)
        count = count or self.batch
        inputs = torch.randn(count, *self.inputs, generator=generator)
        return inputs, torch.randint(0, self.classes, (count,), generator=generator)


def mlp(classes: int) -> nn.Module:
    """784-512×5-classes."""
    widths = [784, *[512] * 5, classes]
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(classes: int) -> nn.Module:
    """Two convolutions with pools, three linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


class Block(nn.Module):
    """The basic block of a residual network."""

    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(b), nn.BatchNorm2d(b)])
        self.shortcut = nn.Sequential()
        if (a, stride) != (b, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


def resnet20(classes: int) -> nn.Module:
    """The residual network with 20 layers for 32×32 images."""
    blocks, width = [], 16
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(3):
            blocks.append(Block(width, out, stride if number == 0 else 1))
            width = out
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


TASKS = {
    "MLP": Task(mlp, (784,)),
    "LeNet": Task(lenet, (1, 28, 28)),
    "ResNet-20, BN in eval": Task(resnet20, (3, 32, 32), 128),
}
