"""
Equalise before rounding
========================

Weights are often stored as 8-bit integers with one step size a tensor. Two networks that compute
the same function then become two different ones. How much is lost by rounding, and how little could
it be?
"""

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import quotientnet as qn
from quotientnet.digits import load_digits, train

SEED = 0

# %%
# A depthwise-separable network: each channel has a filter of its own, then a 1×1 convolution mixes
# the channels. It is trained on handwritten digits with batch normalisation.


def separable(channels, outputs):
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    ]  # fmt: skip


torch.manual_seed(SEED)
digits = load_digits(SEED, dtype=torch.float32)
trained = nn.Sequential(
    nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
    nn.ReLU(), *separable(16, 32), nn.MaxPool2d(2), *separable(32, 32),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip
train(trained, digits, batch_size=64, epochs=20, seed=SEED)
trained.eval()

# %%
# For inference the normalisations are folded into the convolutions before them. The biases that
# this makes come without ``requires_grad``; as parameters they take part in the symmetry.

folded, layers = nn.Sequential(), list(trained)
for layer, following in zip(layers, [*layers[1:], None]):
    if isinstance(following, nn.BatchNorm2d):
        folded.append(fuse_conv_bn_eval(layer, following))
    elif not isinstance(layer, nn.BatchNorm2d):
        folded.append(layer)
folded.requires_grad_(True)

# %%
# Its symmetry has one generator a channel. A random element of the group gives another network with
# the same outputs; ``balance`` gives the one whose channels have equal largest weights on both
# sides. The outputs are the same, as asserted in the call by ``inputs``.

inputs, targets = digits.test_inputs, digits.test_targets
symmetry = qn.discover(folded, inputs)
dice = torch.Generator().manual_seed(SEED)
options = {"inputs": inputs, "tolerance": 1e-6}
networks = {
    "as trained": folded,
    "rescaled": qn.transform(
        folded, symmetry, symmetry.group.random(spread=1.0, generator=dice), **options
    ),
}
networks["equalised"] = qn.balance(
    networks["rescaled"], symmetry, norm="max", **options
)
with torch.no_grad():
    outputs = {name: network(inputs) for name, network in networks.items()}
    reference = outputs["as trained"]
for name, found in outputs.items():
    change = ((found - reference).norm() / reference.norm()).item()
    print(f"{name:>10}: outputs change by {change:.0e}")
    assert change < 1e-6

# %%
# Now every weight is rounded, with the step that fits the largest entry of its tensor.


def rounded(network, bits):
    network, error = copy.deepcopy(network), 0.0
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                step = module.weight.abs().max() / (2 ** (bits - 1) - 1)
                integers = (module.weight / step).round()
                error = max(
                    error,
                    (integers * step - module.weight).norm() / module.weight.norm(),
                )
                module.weight.copy_(integers * step)
        accuracy = (network(inputs).argmax(1) == targets).float().mean()
    return float(error), float(accuracy)


bits = list(range(3, 11))
results = {
    name: [rounded(network, b) for b in bits] for name, network in networks.items()
}
for name, found in results.items():
    error, accuracy = found[bits.index(8)]
    print(f"{name:>10}: int8 error of the weights {error:.2%}, accuracy {accuracy:.1%}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for (name, found), marker in zip(results.items(), "os^"):
    errors, accuracies = zip(*found)
    axes[0].semilogy(bits, errors, f"{marker}-", label=name)
    axes[1].plot(bits, accuracies, f"{marker}-", label=name)
axes[0].set_ylabel("largest relative error of a tensor (no unit)")
axes[1].set_ylabel("accuracy on test images (fraction)")
for axis in axes:
    axis.set_xlabel("bits of a weight")
axes[0].legend(loc="lower left", title="the same function")

# %%
# The equalised network is the same one for the whole orbit, so its rounding errors are a property
# of the function; they are smaller than those of the network as it was trained.

from_trained = qn.balance(folded, symmetry, norm="max", **options)
for a, b in zip(from_trained.parameters(), networks["equalised"].parameters()):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
at_eight = {name: found[bits.index(8)][0] for name, found in results.items()}
assert at_eight["equalised"] < at_eight["as trained"] < at_eight["rescaled"]
