"""
Discover the symmetry of a network
==================================

A residual network with batch normalisation and a squeeze-excitation gate. Which of its channels can
be scaled without changing what it computes, and what stops the others?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn

SEED = 0

# %%
# The gate of the block multiplies channels by a sigmoid of their means.


class Block(nn.Module):
    """A residual block whose branch is gated channel by channel."""

    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.squeeze = nn.Linear(channels, 3)
        self.excite = nn.Linear(3, channels)

    def forward(self, x):
        h = self.branch(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(h.mean((2, 3))))))
        return x + h * gate[:, :, None, None]


torch.manual_seed(SEED)
model = nn.Sequential(
    nn.Conv2d(1, 6, 3), nn.ReLU(), Block(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
)  # fmt: skip
inputs = torch.randn(8, 1, 8, 8)

# %%
# No layer has to be described. The gate pins its own logits; the channels it gates stay free,
# tied to the stream that they are added to.

symmetry = qn.discover(model, inputs)
print(symmetry)

# %%
# Random elements of the group leave the outputs unchanged, and derivatives at random points leave
# no room for a larger group.

sound = qn.verify_sound(model, symmetry, inputs)
complete = qn.verify_complete(model, symmetry, inputs)
print(sound, complete, sep="\n")

# %%
# A group written by hand that forgets the residual connection is caught, with the generator
# that is wrong.

layout = symmetry.group.layout
scales = (
    qn.Scale("0.weight", 0),
    qn.Scale("0.bias", 0),
    qn.Scale("2.branch.0.weight", 1, -1),
)
wrong = qn.ScalingGroup.from_units(layout, [qn.Unit("stem", 6, scales)])
caught = qn.verify_sound(model, wrong, inputs)
print(caught)

# %%
# The exponents, one row a generator and one column a coordinate: what each generator multiplies
# and what it divides.

exponents = symmetry.group.exponents(torch.eye(symmetry.group.dimension))
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.imshow(
    exponents, aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2, interpolation="nearest"
)
starts = [entry.start - 0.5 for entry in layout.entries]
axis.vlines(starts[1:], -0.5, len(exponents) - 0.5, color="0.8", lw=0.5)
weights = [entry for entry in layout.entries if len(entry.shape) > 1]
places = [entry.start + entry.numel / 2 for entry in weights]
axis.set_xticks(
    places, [entry.name for entry in weights], rotation=45, ha="right", fontsize=7
)
axis.set_yticks(range(0, len(exponents), 3))
axis.set_ylabel("generator")
axis.set_title("exponents: multiplied (red), divided (blue)", fontsize=10)

# %%
# Six channels of the stream, six filters before the normalisation, three units of the gate.

assert symmetry.group.dimension == 6 + 6 + 3
assert sound.holds and complete.holds and not caught.holds
