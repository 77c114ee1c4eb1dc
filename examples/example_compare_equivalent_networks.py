"""
Compare equivalent networks
===========================

Rescale one layer up and the next one down: the network computes the same function. Which measures
of its loss surface notice?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_network, train

SEED = 0

# %%
# A network trained on handwritten digits, and its loss as a function of one flat vector.

digits = load_digits(SEED)
network = make_network(SEED)
train(network, digits, batch_size=64, epochs=30, seed=SEED)
data = (digits.train_inputs, digits.train_targets)
objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
w = objective.layout.flatten(network)
for entry in objective.layout.entries:
    print(entry.name, entry.shape)

# %%
# The layer-scale group has one generator a hidden layer. Along its first one, the first layer grows
# by :math:`e^t` and the second shrinks by as much; the loss does not change.

group = qn.discover(network, data[0]).layer_scales
manifold = qn.LayerScaleQuotient(group)
steps = torch.linspace(-3, 3, 7, dtype=torch.float64)
points = [group.act(w, torch.tensor([t, 0.0])) for t in steps]
losses = [objective.at(y).value.item() for y in points]
print(*(f"t = {t:+.0f}: loss {loss:.15f}" for t, loss in zip(steps, losses)), sep="\n")

# %%
# The largest eigenvalue of the Euclidean Hessian changes by orders of magnitude. On the quotient,
# all seven points are one, and each power iteration finds the same eigenvalue from its own start.

generator = torch.Generator().manual_seed(SEED)
euclidean, riemannian = [], []
for y in points:
    point = objective.at(y)
    options = {"tolerance": 1e-6, "generator": generator}
    euclidean.append(qn.sharpness.spectral_norm(point, **options).value)
    estimate = qn.sharpness.riemannian_spectral_norm(point, manifold, **options)
    riemannian.append(estimate.value)

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.semilogy(steps, euclidean, "o-", label="Euclidean Hessian")
axis.semilogy(steps, riemannian, "s-", label="Riemannian Hessian on the quotient")
axis.set_xlabel("t: the first layer is scaled by exp(t), the second by exp(-t)")
axis.set_ylabel("largest eigenvalue (units of the loss)")
axis.set_ylim(top=5e3)
axis.legend(loc="upper center")

# %%
# On the quotient these networks are one point: their distance is zero.

assert max(abs(value / riemannian[0] - 1) for value in riemannian) < 1e-9
assert max(euclidean) / min(euclidean) > 10
assert all(manifold.dist(w, y) < 1e-9 for y in points)
