"""
Make a minimum sharp
====================

Flat minima are said to generalise better. How sharp can a trained network be made without changing
what it computes, and which measures survive the attack?
"""

import dataclasses

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet import sharpness
from quotientnet.digits import load_digits, train
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.reparametrisation import (
    exceed_eigenvalues,
    exceed_sharpness,
    exceed_spectral_norm,
)

SEED = 0

# %%
# A network with one hidden layer, as in the theorems of [Dinh2017]_, trained on 500 handwritten
# digits; its loss, and its symmetry.

torch.manual_seed(SEED)
digits = load_digits(SEED)
digits = dataclasses.replace(
    digits,
    train_inputs=digits.train_inputs[:500],
    train_targets=digits.train_targets[:500],
)
network = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)).double()
train(network, digits, batch_size=50, epochs=60, seed=SEED)
data = (digits.train_inputs, digits.train_targets)
objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
surrogate = qn.Objective(network, NormalisedCrossEntropy(), data)
symmetry = qn.discover(network, data[0])
manifold = qn.NodeWiseQuotient(symmetry)


def accuracy(model):
    """The part of the test images that a network gets right."""
    found = model(digits.test_inputs).argmax(1)
    return (found == digits.test_targets).double().mean().item()


# %%
# Theorem 4: for every bound ``M`` there is an equivalent network whose Hessian has a larger
# spectral norm. The construction returns it, as a model.

bounds = [1e2, 1e4, 1e6, 1e8]
sharper = [exceed_spectral_norm(objective, symmetry, bound) for bound in bounds]
for bound, sharp in zip(bounds, sharper):
    change = (sharp.model(data[0]) - network(data[0])).abs().max().item()
    print(
        f"M = {bound:.0e}: spectral norm {sharp.after.value:.2e}, outputs changed by {change:.0e}, "
        f"test accuracy {accuracy(sharp.model):.3f}"
    )

# %%
# Measures of two kinds, at the network as trained and at each of the four. The first three are
# Euclidean; the others claim to be the same for all equivalent networks. Each Riemannian spectral
# norm is found from a random start of its own.

dice = torch.Generator().manual_seed(SEED)
points = [objective.at(objective.layout.flatten(network))]
points += [sharp.point for sharp in sharper]
EUCLIDEAN = {
    "spectral norm": lambda p: sharpness.spectral_norm(p).value,
    "trace of the Hessian": lambda p: float(qn.curvature.ggn_traces(p).total.value),
    "worst loss within 0.01 (Def. 2)": lambda p: sharpness.ball_sharpness(p, 1e-2).value,
}  # fmt: skip
INVARIANT = {
    "Riemannian spectral norm": lambda p: sharpness.riemannian_spectral_norm(
        p, manifold, tolerance=1e-7, generator=dice
    ).value,
    "Riemannian trace": lambda p: sharpness.riemannian_trace(p, manifold).value,
    "minimum sharpness": lambda p: sharpness.minimum_sharpness(p, symmetry).value,
    "normalised sharpness": lambda p: sharpness.normalised_sharpness(surrogate.at(p.w)).value,
    "Fisher–Rao norm": lambda p: sharpness.fisher_rao_norm(p).value,
}  # fmt: skip
values = {
    name: [float(measure(point)) for point in points]
    for name, measure in (EUCLIDEAN | INVARIANT).items()
}
moved = {}
for name, found in values.items():
    moved[name] = max(abs(value / found[0] - 1) for value in found)
    print(f"{name:>31}: {found[0]:9.4g} as trained, moves by {moved[name]:.0e}")

# %%
# Theorem 5: not only one eigenvalue can be made large. All positive ones exceed the bound but, at
# most, as many as there are parameters that do not shrink: the second layer's.

many = exceed_eigenvalues(objective, symmetry, 1e4)
print(
    f"above 1e4: {many.before} of {many.positive} positive eigenvalues as trained, "
    f"now {many.count}; promised {many.positive - many.fixed}"
)
spectra = [
    torch.linalg.eigvalsh(p.hessian.to_dense()).flip(0) for p in (points[0], many.point)
]

# %%
# Sharpness in a ball fares no better (their §4.3): an equivalent network lies within 0.001 of one
# that has lost a whole layer.

near = exceed_sharpness(objective, symmetry, 1e-3)
print(
    f"loss {near.loss:.4f}, but {near.neighbour_loss:.2f} at distance 0.001, "
    f"without {', '.join(near.tensors)}"
)

# %%
# Attacked, the Euclidean measures say what the attacker likes.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for name, marker in zip(values, "osD^v<>P"):
    style = {"ls": "-"} if name in EUCLIDEAN else {"ls": "--", "alpha": 0.7}
    ratios = [value / values[name][0] for value in values[name]]
    left.semilogy(range(5), ratios, marker, **style, ms=5, label=name)
left.set_xticks(range(5), ["as\ntrained", *(f"{bound:.0e}" for bound in bounds)])
left.set_xlabel("bound M on the spectral norm, to be exceeded (units of the loss)")
left.set_ylabel("measure, relative to the network as trained")
left.legend(fontsize="small")
for spectrum, label in zip(spectra, ("as trained", "by Theorem 5")):
    right.semilogy(spectrum.clamp(min=1e-7), label=label)
right.axhline(1e4, color="0.4", ls=":", label="bound asked for")
right.set_ylim(1e-6, None)
right.set_xlabel("number of the eigenvalue, by size")
right.set_ylabel("eigenvalue of the Hessian (units of the loss)")
right.legend()

# %%
# Every bound is exceeded; what claims to be invariant does not notice; nor does the accuracy.

assert all(value >= bound for value, bound in zip(values["spectral norm"][1:], bounds))
assert all(moved[name] < 1e-6 for name in INVARIANT)
assert all(moved[name] > 1e2 for name in EUCLIDEAN)
assert all(accuracy(sharp.model) == accuracy(network) for sharp in sharper)
assert many.count >= many.positive - many.fixed > 100 * max(many.before, 1)
assert int((spectra[1] > 1e4).sum()) >= many.positive - many.fixed
assert (near.neighbour - near.point.w).norm() <= 1e-3 and near.sharpness > 1
