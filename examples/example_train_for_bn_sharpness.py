"""
Train for a small BN-sharpness
==============================

SGDS descends on the loss and on its BN-sharpness together [Yi2019]_, which is said to help large
batches. Does the sharpness go down, and the accuracy up? Tables 1 and 2 of that paper in miniature.
"""

import matplotlib.pyplot as plt
import torch
from scipy.stats import t as student
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_normalised_network
from quotientnet.sharpness import bn_sharpness, bn_sharpness_limit, normalised_sharpness
from quotientnet.training import SGDS

SEED, SEEDS, BATCH = 0, 4, 512
EPOCHS = (3, 6, 9)
METHODS = {
    "SGD": None,
    "SGDS, λ = 1e-4, as published": {"regularization": 1e-4, "max_norm": 0.1},
    "SGDS, λ = 1, not clipped": {"regularization": 1.0, "max_norm": None},
}
MEASURES = (
    "BN-sharpness (loss)",
    "normalised sharpness (√loss)",
    "held-out accuracy (%)",
)

# %%
# A network of two batch-normalised convolutions: the scale of each of their twelve filters has no
# effect, which ``discover`` tells SGDS.

digits = load_digits(SEED)
symmetry = qn.discover(make_normalised_network(SEED), digits.train_inputs[:8])
loss = nn.functional.cross_entropy


def measured(network, digits):
    """The three measures, at the network as it is."""
    data = digits.train_inputs[:256], digits.train_targets[:256]
    objective = qn.Objective(network.train(), loss, data)
    w = objective.layout.flatten(network)
    sharpness = bn_sharpness_limit(objective.at(w), symmetry).value
    network.eval()
    normalised = normalised_sharpness(objective.at(w)).value
    with torch.no_grad():
        right = network(digits.test_inputs).argmax(1) == digits.test_targets
    network.train()
    return sharpness, normalised, 100 * float(right.double().mean())


# %%
# Each seed has its own split, start and batches of 512, the same for all methods. BN-sharpness has
# a limit for small ``δ`` that costs one gradient; at the ``δ = 1e-3`` of the paper it is within a
# percent of it here, which is checked at the end.


def follow(method, seed):
    """The measures over the epochs, and the network in the end."""
    digits = load_digits(seed, torch.float32)
    network = make_normalised_network(seed, torch.float32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    if method is not None:
        options = {"growth": 1.02, "growth_every": 3, **method}
        optimizer = SGDS(network, optimizer, symmetry, **options)
    generator, found = torch.Generator().manual_seed(seed), []

    def batches(epoch):
        order = torch.randperm(len(digits.train_targets), generator=generator)
        rows = order.split(BATCH)
        return [(digits.train_inputs[r], digits.train_targets[r]) for r in rows]

    def look(epoch, losses):
        if epoch + 1 in EPOCHS:
            found.append(measured(network, digits))

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * EPOCHS[-1])
    options = {"epochs": EPOCHS[-1], "scheduler": schedule, "on_epoch": look}
    qn.training.train(network, optimizer, loss, batches, **options)
    return torch.tensor(found).double(), network


runs = {
    name: [follow(method, SEED + seed) for seed in range(SEEDS)]
    for name, method in METHODS.items()
}
curves = {name: torch.stack([f for f, _ in each]) for name, each in runs.items()}

# %%
# Means over the seeds with 95 % intervals after Student, and differences to SGD seed by seed.


def interval(values):
    """Mean and half width over the first axis."""
    width = student.ppf(0.975, SEEDS - 1) / SEEDS**0.5
    return values.mean(0), width * values.std(0)


figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for number, (axis, measure) in enumerate(zip(axes, MEASURES)):
    print(measure)
    for (name, values), marker in zip(curves.items(), "os^"):
        middle, width = interval(values[..., number])
        size = 10 if name == "SGD" else 5
        axis.plot(EPOCHS, middle, marker + "-", markersize=size, label=name)
        axis.fill_between(EPOCHS, middle - width, middle + width, alpha=0.2)
        change, around = interval(values[:, -1, number] - curves["SGD"][:, -1, number])
        end = f"    {name:30} {middle[-1]:7.3f} ± {width[-1]:6.3f}"
        print(end, "" if name == "SGD" else f"  less SGD {change:+8.3f} ± {around:.3f}")
    axis.set(xlabel="epoch", ylabel=measure, xticks=EPOCHS)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

# %%
# At the published λ nothing differs from SGD by more than chance. Ten seeds, other batch sizes and
# searches say the same (:doc:`/training` has the tables), so that the gain in accuracy is not
# reproduced here. With ten thousand times that λ the sharpness does go down: the network is flat
# because it has learnt nothing. A small sharpness alone is no merit.

sgd, published, strong = (values[:, -1].mean(0) for values in curves.values())
assert abs(published[2] - sgd[2]) < 2 and strong[0] < 0.7 * sgd[0]
assert strong[2] < sgd[2] - 20

# %%
# What the measure is good for: it does not depend on how a function is written down. The filters
# are rescaled at random, by about a factor of three. The sharpness stays, to rounding; the trace of
# the Hessian does not. (Scales of other kinds, of one layer against the next, move BN-sharpness.)

network = runs["SGD"][0][1].double()
images, targets = digits.train_inputs[:256], digits.train_targets[:256]
objective = qn.Objective(network, loss, (images, targets))
w = objective.layout.flatten(network)
filters = torch.tensor([naming.normalised for naming in symmetry.namings])
generator = torch.Generator().manual_seed(SEED)
scales = symmetry.group.random(spread=1.1, generator=generator) * filters
points = [objective.at(x) for x in (w, symmetry.group.act(w, scales))]
limits = [bn_sharpness_limit(point, symmetry).value for point in points]
options = {"restarts": 0, "max_iterations": 10}
full = [bn_sharpness(point, symmetry, **options).value for point in points]
traces = [qn.sharpness.trace(point, samples=30).value for point in points]
print(
    "BN-sharpness", *(f"{f:.6f}" for f in full), "trace", *(f"{t:.1f}" for t in traces)
)
assert abs(full[1] / full[0] - 1) < 1e-6 and abs(limits[1] / limits[0] - 1) < 1e-9
assert abs(full[0] / limits[0] - 1) < 0.01 and abs(traces[1] / traces[0] - 1) > 0.5
