"""
Train on the quotient
=====================

The weights into a unit can be multiplied by two, and those out of it divided by two: the network
computes the same. Yet training goes another way from there. Does it have to?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_network
from quotientnet.testing import check_equivariant_training
from quotientnet.training import RiemannianAdam, RiemannianSGD, bind, clip_grad_norm_

SEED, STEPS = 0, 100

# %%
# A ReLU network on handwritten digits, and two others that compute the same function: their units
# are rescaled at random, by about a factor of two.

digits = load_digits(SEED)
network = make_network(SEED)
symmetry = qn.discover(network, digits.train_inputs[:4])
dice = torch.Generator().manual_seed(SEED)
starts = [network] + [
    qn.transform(network, symmetry, symmetry.group.random(spread=0.7, generator=dice))
    for _ in range(2)
]
with torch.no_grad():
    reference = network(digits.test_inputs)
    for start in starts:
        torch.testing.assert_close(start(digits.test_inputs), reference)

# %%
# The optimizers of this package move a point of a manifold. ``bind`` makes a module's parameters
# views of one; everything else is as with torch's optimizers: learning rates and their schedules,
# momentum, weight decay, clipping. Decay and clipping are those of the quotient, too.


def euclidean(method, **options):
    return lambda module: method(module.parameters(), **options)


def riemannian(method, manifold, **options):
    return lambda module: method([bind(module, manifold(symmetry))], **options)


optimizers = {
    "SGD": euclidean(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adam": euclidean(torch.optim.Adam, lr=0.01),
    "SGD, balanced quotient": riemannian(
        RiemannianSGD, qn.BalancedQuotient, lr=0.1, momentum=0.9, weight_decay=1e-4
    ),
    "Adam, node-wise quotient": riemannian(
        RiemannianAdam, qn.NodeWiseQuotient, lr=0.05
    ),
}


def train(start, make):
    """The losses of all steps, and the accuracy on held-out images in percent."""
    module = make_network()
    module.load_state_dict(start.state_dict())
    optimizer = make(module)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    shuffle = torch.Generator().manual_seed(SEED)
    losses = []
    while len(losses) < STEPS:
        rows = torch.randperm(len(digits.train_targets), generator=shuffle)[:128]
        optimizer.zero_grad()
        outputs = module(digits.train_inputs[rows])
        loss = nn.functional.cross_entropy(outputs, digits.train_targets[rows])
        loss.backward()
        if isinstance(optimizer, RiemannianSGD):
            clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = module(digits.test_inputs).argmax(1) == digits.test_targets
    return losses, 100 * float(right.double().mean())


# %%
# From the three networks, which are one function, SGD and Adam train three. On the quotient the
# three curves are one: what differs is the rounding of numbers. It is not quicker for that: how
# many steps each optimizer takes, with its best learning rate, is measured in :doc:`/training`.

figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
for axis, (name, make) in zip(axes, optimizers.items()):
    losses, accuracies = zip(*(train(start, make) for start in starts))
    found = torch.tensor(losses, dtype=torch.float64)
    spread = float(((found - found[0]).abs() / found[0]).max())
    for line, style in zip(found, ("-", "--", ":")):
        axis.semilogy(line, style, lw=1.5)
    axis.set(title=name, xlabel="step", ylabel="loss of a batch")
    axis.label_outer()
    axis.text(0.04, 0.06, f"differ by {spread:.0e}", transform=axis.transAxes)
    held_out = ", ".join(f"{each:.1f}" for each in accuracies)
    print(f"{name}: losses differ by up to {spread:.0e},")
    print(f"    held-out accuracy {held_out} %")
    assert min(accuracies) > 80
    if "quotient" in name:
        assert spread < 1e-8 and len(set(accuracies)) == 1
    else:
        assert spread > 1e-2

# %%
# The same statement is a test that one can put to an optimizer of one's own.

batches = [(digits.train_inputs[:128], digits.train_targets[:128])] * 5
for name, make in optimizers.items():
    verdict = check_equivariant_training(
        make, network, symmetry, batches, nn.functional.cross_entropy
    )
    assert verdict.holds == ("quotient" in name)
