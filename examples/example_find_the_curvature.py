"""
Find the curvature
==================

Where is a loss curved: along how many directions, and in which layers? Eigenvalues, their density
and the exact traces of all layers, on a network trained on handwritten digits.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.curvature import (
    ggn_cost,
    ggn_traces,
    hutch_plus_plus_trace,
    lanczos,
    spectral_density,
)
from quotientnet.digits import load_digits, train

SEED = 0

# %%
# A network with ten outputs, trained for a few epochs.

torch.manual_seed(SEED)
network = nn.Sequential(
    nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
).double()
digits = load_digits(SEED)
train(network, digits, batch_size=128, epochs=8, seed=SEED)
data = (digits.train_inputs, digits.train_targets)
objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
point = objective.at(objective.layout.flatten(network))
print(f"loss {point.value:.4f}, {objective.layout.size} parameters")

# %%
# The twelve largest eigenvalues of the Hessian, each with its residual: some eigenvalue lies within
# it. A product takes a known time, so the cost of a run is known before it begins.

print(f"{point.hessian.seconds() * 1e3:.1f} ms a product")
top = lanczos(point.hessian, 12, tolerance=1e-6)
for value, residual in zip(top.values, top.residuals):
    print(f"{value:8.4f} ± {residual:.0e}")
print(f"{top.products} products")

# %%
# With ten classes, nine eigenvalues stand apart. The density tells where nearly all others are:
# within a tenth of zero. (On finer scales, sixty Lanczos steps do not tell eigenvalues apart.)

density = spectral_density(point.hessian, samples=8, steps=60)
below, error = density.cumulative(torch.tensor([-0.1, 0.1]).double())
flat, error = float(below.diff()), float(error.sum())
print(f"within 0.1 of zero: {flat:.1%} ± {error:.1%} of all eigenvalues")

# %%
# The trace of every layer's block, exactly. Nothing but ReLU follows a layer, so that these are
# blocks of the Hessian, not only of the Gauss-Newton matrix. An estimate from random vectors
# agrees.

cost = ggn_cost(point)
print(f"{cost.passes} backward passes, {cost.gradients:.1f} gradients of multiply-adds")
layers = ggn_traces(point)
for name, estimate in layers.traces.items():
    print(f"{name:10} {estimate.value:8.4f}  {layers.kinds[name]}")
estimate = hutch_plus_plus_trace(point.hessian, samples=120)
print(
    f"total {layers.total.value:.4f}, sampled {estimate.value:.3f} ± {estimate.error:.3f}"
)

# %%
# Both at once.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
width = 0.01 * float(top.values[0])
grid = torch.linspace(-5 * width, 1.05 * float(top.values[0]), 600).double()
height, spread = density.density(grid, width)
left.semilogy(grid, height, label="density of eigenvalues")
left.fill_between(grid, (height - spread).clamp(min=1e-8), height + spread, alpha=0.3)
left.plot(top.values, [1e-5] * 12, "|", markersize=14, label="the twelve largest")
left.set_ylim(1e-6, None)
left.set_xlabel("eigenvalue (units of the loss)")
left.set_ylabel("density (per unit of the loss)")
left.legend()
names = list(layers.traces)
right.barh(names, [layers.traces[name].value for name in names])
right.invert_yaxis()
right.set(
    xlabel="exact trace of the tensor's block (units of the loss)", ylabel="tensor"
)

# %%
# All of it against the matrix itself.

matrix = point.hessian.to_dense()
exact = torch.linalg.eigvalsh(matrix)
assert torch.allclose(top.values, exact[-12:].flip(0), rtol=1e-8)
assert abs(flat - float((exact.abs() < 0.1).double().mean())) < 4 * error
assert set(layers.kinds.values()) == {"Hessian"}
assert abs(layers.total.value / float(matrix.trace()) - 1) < 1e-10
assert abs(estimate.value - layers.total.value) < 4 * estimate.error
