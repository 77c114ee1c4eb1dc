"""
Average networks on the quotient
================================

Between two trained networks there is a straight line; but which one, when each of them can be
written down in many ways? On the quotient there are geodesics and means that do not depend on it.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_network, train
from quotientnet.optimization import frechet_mean

SEED = 0

# %%
# Four networks on handwritten digits. The second differs from the first in the order of batches,
# the third and the fourth also in the random start.

digits = load_digits(SEED)
test = (digits.test_inputs, digits.test_targets)


def trained(start, order):
    network = make_network(start)
    train(network, digits, batch_size=64, epochs=10, seed=order)
    return network


networks = [trained(0, 0), trained(0, 1), trained(1, 2), trained(2, 3)]
objective = qn.Objective(networks[0], nn.CrossEntropyLoss(), test)
first, same_start, other_start, third = map(objective.layout.flatten, networks)

# %%
# Three quotients. The node-wise one keeps all signs: no two of these networks can be joined on it.

symmetry = qn.discover(networks[0], test[0])
layers, balanced = qn.LayerScaleQuotient(symmetry), qn.BalancedQuotient(symmetry)
nodes = qn.NodeWiseQuotient(symmetry)
distances = {"node-wise": nodes.dist, "layer-scale": layers.dist}
distances["balanced, at least"] = balanced.chordal_distance
for name, w in (("same start", same_start), ("another start", other_start)):
    differ = (first * w < 0).double().mean()
    apart = ", ".join(f"{kind} {d(first, w):.2f}" for kind, d in distances.items())
    print(f"{name}: {differ:.0%} of the signs differ; distances:\n    {apart}")

# %%
# Units can be exchanged, too, which no distance here knows. Channels are matched in the canonical
# form, so that the outcome does not depend on scales (see
# :doc:`/gallery/example_merge_two_networks`).

classes = qn.permutation_classes(networks[0], test[0])


def aligned(w):
    a, b = balanced.canonical(first), balanced.canonical(w)
    for number, order in qn.symmetry.match_channels(b, a, classes).steps:
        w = classes[number].apply(w, order)
    return w


# %%
# Three ways between two networks: the straight line as they are written down; the geodesic of the
# layer-scale metric, on which every tensor turns on its sphere; and the straight line between the
# canonical networks, the chord of the balanced metric.

ways = torch.linspace(0, 1, 21, dtype=torch.float64)


def straight(a, b):
    return [torch.lerp(a, b, t) for t in ways]


def geodesic(a, b):
    direction = layers.logmap(a, b)
    return [layers.expmap(a, t * direction) for t in ways]


def chord(a, b):
    return straight(balanced.canonical(a), balanced.canonical(b))


CURVES = {"straight line": straight, "layer-scale geodesic": geodesic, "chord": chord}

# %%
# Each curve is drawn three times more, with both ends rescaled at random: by layers, and for the
# canonical networks by units. The straight line is another each time.


@torch.no_grad()
def losses(curve):
    return torch.stack([objective(w) for w in curve])


def rescaled(w, group):
    return group.act(w, group.random(spread=1.0, generator=dice))


dice = torch.Generator().manual_seed(SEED)
pairs = {
    "the same start": same_start,
    "another start": other_start,
    "another start, aligned": aligned(other_start),
}
figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True, layout="constrained")
changes = {}
for axis, (pair, end) in zip(axes, pairs.items()):
    for number, (name, curve) in enumerate(CURVES.items()):
        group = balanced.group if curve is chord else layers.group
        found = losses(curve(first, end))
        axis.semilogy(ways, found, ("C0-", "C1-", "C2--")[number], label=name)
        change = 0.0
        for _ in range(3):
            again = losses(curve(rescaled(first, group), rescaled(end, group)))
            axis.semilogy(ways, again, f"C{number}", lw=0.7, alpha=0.6)
            change = max(change, float((again / found - 1).abs().max()))
        barrier = float((found - torch.lerp(found[0], found[-1], ways)).max())
        print(f"{pair:>22}, {name:20}: barrier {barrier:.3f}, changes by {change:.0e}")
        changes[pair, name] = change
    axis.set(title=pair, xlabel="part of the way to the second network")
axes[0].set_ylabel("loss on test images (nats)")
axes[0].legend(loc="upper center")

# %%
# The mean of three networks with different starts: the point of the quotient with the least mean
# squared distance. It computes little unless channels are matched, and then less well than its
# members: so small a network leaves a barrier.

members = torch.stack([first, other_start, third])
matched = torch.stack([first, aligned(other_start), aligned(third)])
print("members: loss", ", ".join(f"{value:.3f}" for value in losses(members)))
for name, points in (("as trained", members), ("aligned", matched)):
    mean = frechet_mean(layers, points)
    moved = torch.stack([rescaled(w, layers.group) for w in points])
    gap = float(layers.dist(mean.point, frechet_mean(layers, moved).point))
    loss = float(losses([mean.point]))
    print(f"mean, {name}: loss {loss:.3f}; that of rescaled members is {gap:.0e} away")
    pull = torch.stack([layers.logmap(mean.point, w) for w in points]).mean(0)
    assert mean.converged and gap < 1e-8 and layers.norm(mean.point, pull) < 1e-9

# %%
# Curves of the quotients belong to functions, straight lines do not.

for (_, name), change in changes.items():
    assert change > 0.01 if name == "straight line" else change < 1e-9
assert nodes.dist(first, same_start) == nodes.dist(first, other_start) == float("inf")
assert loss < 0.5 * torch.log(torch.tensor(10.0))  # not guessing
