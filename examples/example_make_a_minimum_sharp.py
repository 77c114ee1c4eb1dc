"""
Make a minimum sharp
====================

Flat minima are said to generalise better. How sharp can a trained network be made without changing
what it computes?
"""

import matplotlib.pyplot as plt
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_network, train
from quotientnet.reparametrisation import exceed_sharpness, exceed_spectral_norm

SEED = 0

# %%
# A network trained on handwritten digits, its loss, and its symmetry.

digits = load_digits(SEED)
network = make_network(SEED)
train(network, digits, batch_size=64, epochs=30, seed=SEED)
data = (digits.train_inputs, digits.train_targets)
objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
symmetry = qn.discover(network, data[0])


def accuracy(model):
    """The part of the test images that a network gets right."""
    found = model(digits.test_inputs).argmax(1)
    return (found == digits.test_targets).double().mean().item()


# %%
# Dinh et al. (2017), Theorem 4: for every bound there is an equivalent network whose Hessian has a
# larger spectral norm. The construction returns it, as a model.

bounds = [1e2, 1e4, 1e6, 1e8]
sharper = [exceed_spectral_norm(objective, symmetry, bound) for bound in bounds]
for bound, sharp in zip(bounds, sharper):
    change = (sharp.model(data[0]) - network(data[0])).abs().max().item()
    print(
        f"M = {bound:.0e}: spectral norm {sharp.after.value:.2e}, outputs changed by {change:.0e}, "
        f"test accuracy {accuracy(sharp.model):.3f}"
    )

# %%
# On the quotient by the same symmetry nothing has happened: the Riemannian spectral norm is that of
# the network we started from.

manifold = qn.NodeWiseQuotient(symmetry)
points = [objective.at(objective.layout.flatten(network))]
points += [sharp.point for sharp in sharper]
riemannian = [qn.sharpness.riemannian_spectral_norm(p, manifold).value for p in points]
euclidean = [sharper[0].before.value] + [sharp.after.value for sharp in sharper]
places = range(len(points))

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for place, bound in zip(places[1:], bounds):
    axis.hlines(bound, place - 0.35, place + 0.35, color="0.4", linestyle=":")
axis.semilogy(places, euclidean, "o-", label="Euclidean Hessian")
axis.semilogy(places, riemannian, "s-", label="Riemannian Hessian on the quotient")
axis.plot([], [], ":", color="0.4", label="bound M that was asked for")
axis.set_xticks(places, ["trained\nnetwork", *(f"M = {b:.0e}" for b in bounds)])
axis.set_xlabel("equivalent networks, all with the same outputs")
axis.set_ylabel("largest eigenvalue (units of the loss)")
axis.legend(loc="upper left")

# %%
# Sharpness in a ball fares no better (their §4.3): an equivalent network lies within 0.001 of one
# that has lost a whole layer.

near = exceed_sharpness(objective, symmetry, 1e-3)
print(
    f"loss {near.loss:.4f}, but {near.neighbour_loss:.2f} at distance 0.001, "
    f"without {', '.join(near.tensors)}"
)

# %%
# Every bound is exceeded; the quotient does not notice; nor does the accuracy.

assert all(value >= bound for value, bound in zip(euclidean[1:], bounds))
assert max(abs(value / riemannian[0] - 1) for value in riemannian) < 1e-3
assert all(accuracy(sharp.model) == accuracy(network) for sharp in sharper)
assert (near.neighbour - near.point.w).norm() <= 1e-3 and near.sharpness > 1
