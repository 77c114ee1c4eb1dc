"""
Discover the group of a ResNet
==============================

Which channels of a residual network can be scaled without changing what it computes, and which
parameters have to move together? The stream that blocks add to ties layers that are far apart.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import quotientnet as qn

SEED = 0

# %%
# Two stages of 4 and 6 channels. The second one begins with a block that halves the image, and has
# a convolution of its own on the way around it.


class Block(nn.Module):
    """A basic block: two convolutions, each normalised, beside a shortcut."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(h + self.shortcut(x))


torch.manual_seed(SEED)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
    Block(4, 4), Block(4, 6, stride=2), Block(6, 6),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
)  # fmt: skip
inputs = torch.randn(8, 1, 8, 8)

# %%
# No layer has to be described. *Normalised* are filters whose scale batch normalisation forgets;
# *rescaled* are channels that a normalisation multiplies and the layers that read them divide, and
# all that is added to the same stream goes along. Only the outputs are pinned. The first block of
# the second stage adds up two biases, of which one can make up for the other: a translation.

symmetry = qn.discover(model, inputs)
for line in str(symmetry).splitlines():
    print(textwrap.fill(line, 85, subsequent_indent=" " * 10))

# %%
# Random elements of the group leave the outputs unchanged, and derivatives at random points leave
# no room for a larger group. A group written by hand that forgets the residual connection is
# caught, with the generator that is wrong.

sound = qn.verify_sound(model, symmetry, inputs)
complete = qn.verify_complete(model, symmetry, inputs)
scales = (
    qn.Scale("1.weight", 0), qn.Scale("1.bias", 0), qn.Scale("3.conv1.weight", 1, -1),
)  # fmt: skip
layout = symmetry.group.layout
wrong = qn.ScalingGroup.from_units(layout, [qn.Unit("stem", 4, scales)])
caught = qn.verify_sound(model, wrong, inputs)
for verdict in (sound, complete, caught):
    print(textwrap.fill(str(verdict), 85, subsequent_indent=" " * 4))

# %%
# Who moves with whom: a column for each unit of generators, a row for each parameter and running
# statistic. Each column of a stream reaches over several blocks.

units = {}
for number, naming in enumerate(symmetry.namings):
    units.setdefault((naming.place, naming.normalised), []).append(number)
numbers = {g: column for column, unit in enumerate(units.values()) for g in unit}
names = [name for name in symmetry.order if name in layout.names]
exponents = np.zeros((len(names), len(units)))
for link in symmetry.table:
    for generator in np.unique(link.generators[link.generators >= 0]).tolist():
        exponents[names.index(link.parameter), numbers[generator]] = link.exponent

figure, axis = plt.subplots(figsize=(7.5, 9), layout="constrained")
axis.imshow(exponents, aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5)
for row, column in zip(*exponents.nonzero()):
    exponent = exponents[row, column]
    style = {"size": 9, "color": "white" if abs(exponent) > 1 else "black"}
    axis.text(column, row, f"{exponent:+.0f}", ha="center", va="center", **style)
labels = [f"{place}, {len(unit)} generators" for (place, _), unit in units.items()]
axis.set_xticks(range(len(units)), labels, rotation=50, ha="right", fontsize=8)
for tick, (_, normalised) in zip(axis.get_xticklabels(), units):
    tick.set_color("C4" if normalised else "black")
axis.set_yticks(range(len(names)), names, fontsize=8)
axis.set_xlabel("channels of a layer: normalised (purple), rescaled (black)")
axis.set_ylabel("parameter, in the order of use")
axis.set_title("exponents: multiplied (red), divided (blue)", fontsize=10)

# %%
# Counted by hand: all filters are normalised, 4 × 3 of the first stage and its stem, 6 × 5 of the
# second; then the channels inside three blocks, and two streams.

normalised = sum(naming.normalised for naming in symmetry.namings)
assert normalised == 4 * 3 + 6 * 5
assert symmetry.group.dimension - normalised == (4 + 6 + 6) + (4 + 6)
assert [each.dimension for each in symmetry.translations] == [6]
assert sound.holds and complete.holds and not caught.holds
