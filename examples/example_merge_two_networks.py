"""
Merge two networks
==================

Two networks that were trained apart compute much the same, with their hidden units in another
order and at other scales. Their average computes much worse than either. What does it compute once
both are written down alike?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, train

SEED = 0

# %%
# Two networks of two hidden layers, trained on handwritten digits from different random starts.

digits = load_digits(SEED, dtype=torch.float32)


def trained(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
    train(network, digits, batch_size=64, epochs=12, learning_rate=3e-3, seed=seed)
    return network


first, second = trained(SEED), trained(SEED + 1)

# %%
# What can be exchanged is derived from the graph and tried. So are the scales.

classes = qn.permutation_classes(first, digits.test_inputs)
symmetry = qn.discover(first, digits.test_inputs)
print(classes)
layout = classes.layout
a, b = (layout.flatten(network) for network in (first, second))

# %%
# The second network is aligned with the first by its weights: as it is, and after both are in their
# canonical form, where the norms into and out of every unit are equal.

canonical = qn.canonical(torch.stack([a, b]), symmetry)
pairs = {
    "as trained": (a, b),
    "permuted": (a, qn.symmetry.match_channels(b, a, classes).w),
    "canonical": tuple(canonical),
    "canonical, permuted": (
        canonical[0], qn.symmetry.match_channels(canonical[1], canonical[0], classes).w
    ),
}  # fmt: skip


@torch.no_grad()
def loss(w):
    logits = torch.func.functional_call(
        first, layout.unflatten(w), (digits.test_inputs,)
    )
    accuracy = (logits.argmax(1) == digits.test_targets).float().mean()
    return float(nn.functional.cross_entropy(logits, digits.test_targets)), float(
        accuracy
    )


ways = torch.linspace(0, 1, 21)
curves = {
    name: [loss(torch.lerp(x, y, t)) for t in ways] for name, (x, y) in pairs.items()
}


def barrier(curve):
    losses = torch.tensor([value for value, _ in curve])
    return float((losses - torch.lerp(losses[0], losses[-1], ways)).max())


barriers = {name: barrier(curve) for name, curve in curves.items()}
for name, curve in curves.items():
    print(
        f"{name:>20}: barrier {barriers[name]:.3f}, accuracy half way {curve[10][1]:.1%}"
    )

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for (name, curve), style in zip(curves.items(), ("C0-", "C1-", "C2--", "C3--")):
    losses, accuracies = zip(*curve)
    axes[0].plot(ways, losses, style, label=name)
    axes[1].plot(ways, accuracies, style)
axes[0].set_ylabel("loss on test images (nats)")
axes[1].set_ylabel("accuracy on test images (fraction)")
for axis in axes:
    axis.set_xlabel("part of the way to the second network")
figure.legend(loc="outside lower center", ncols=4)

# %%
# All ends compute what the two networks compute; the barrier between them is a property of how they
# are written down. (Ways that do not depend on how: :doc:`Average networks on the quotient
# </gallery/example_average_networks_on_the_quotient>`.)

for name, curve in curves.items():
    for end in (0, -1):
        assert abs(curve[end][0] - curves["as trained"][end][0]) < 1e-4
assert barriers["canonical, permuted"] < 0.5 * barriers["as trained"]
