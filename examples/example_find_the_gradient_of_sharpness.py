"""
Find the gradient of sharpness
==============================

BN-sharpness can be regularised for two more gradients a step: but which combination of them? What
[Yi2019]_ prints, what that leaves out, and what different batches do, beside the true gradient.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_normalised_network, train
from quotientnet.training import SGDS

SEED, P = 0, 2
DELTAS = np.logspace(-4, -1, 10)

# %%
# A network with two batch-normalised convolutions, trained a little on handwritten digits, and
# three batches. It is smooth: at kinks of ReLU a gradient jumps, and none of this is accurate.

network, digits = make_normalised_network(SEED), load_digits(SEED)
network[3], network[6] = nn.SiLU(), nn.SiLU()
train(network, digits, batch_size=128, epochs=2, seed=SEED)
order = torch.randperm(1024, generator=torch.Generator().manual_seed(SEED))
batches = [
    (digits.train_inputs[rows], digits.train_targets[rows])
    for rows in order[:768].split(256)
]
objective = qn.Objective(network, nn.CrossEntropyLoss(), batches[0])
w = objective.layout.flatten(network)
g = objective.at(w).gradient
symmetry = qn.discover(network, batches[0][0], layout=objective.layout)

# %%
# The direction ``v``, along the gradient: as long as the filter in each of the twelve filters, of
# length 1 in all the rest. Where a filter grows, so does its part of ``v``.

manifold = qn.ProductOblique.at(w, symmetry)
blocks, v = manifold.blocks, manifold.steepest(g)
lengths = blocks.dot(w, w).sqrt()


def direction(x):
    """``v`` at other parameters."""
    growth = (blocks.dot(x, x).clamp(min=1e-30).sqrt() / lengths)[: blocks.rest]
    return blocks.expand(torch.cat([growth, growth.new_ones(2)])) * v


# %%
# The truth: ``R``, the integral of Definition 3.1 to the power ``p``, by Gauss and Legendre, and
# its gradient by autograd.


def integral(x, delta):
    """``R`` along ``v``."""
    total, u = 0.0, direction(x)
    for node, weight in zip(*np.polynomial.legendre.leggauss(8)):
        rise = (objective(x + delta * node * u) - objective(x)) / delta
        total = total + weight * rise**P
    return total


def truth(delta):
    """The gradient of ``R``."""
    x = w.clone().requires_grad_()
    return torch.autograd.grad(integral(x, delta), x)[0]


# %%
# What an optimizer makes of it: with a learning rate of 0 nothing moves, and what it adds to the
# gradient can be read from ``grad``.


def closure_of(batch):
    """As torch's optimizers take it."""

    def closure():
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def added(delta, gradient="full", batches=batches[:1]):
    """What SGDS adds."""
    base = torch.optim.SGD(network.parameters(), lr=0.0)
    options = {"p": P, "delta": delta, "regularization": 1.0, "max_norm": None}
    optimizer = SGDS(network, base, symmetry, gradient=gradient, **options)
    optimizer.step(*(closure_of(batch) for batch in batches))
    total = {name: p.grad for name, p in network.named_parameters()}
    passive = {e.name: torch.zeros(e.shape).to(w) for e in w_entries if e.passive}
    return objective.layout.flatten(total | passive) - g


def printed(delta):
    """Eq. (15) as printed: a sum, less the gradient twice."""
    step = P / (P + 1) * delta * v
    plus, minus = (objective.at(w + s * step).gradient for s in (1, -1))
    return (g @ v) ** (P - 1) / delta * (plus + minus - 2 * g)


w_entries = objective.layout.entries
curves = {
    "(15) as printed": printed,
    "a difference, of different batches": lambda d: added(d, "partial", batches),
    "a difference, of one batch": lambda d: added(d, "partial"),
    "with the term for the filters' lengths": added,
}
errors = {label: [] for label in curves}
for delta in DELTAS:
    exact = truth(delta)
    for label, method in curves.items():
        errors[label].append(float((method(delta) - exact).norm() / exact.norm()))
for label, values in errors.items():
    print(f"{label}\n   ", *(f"{value:.0e}" for value in values))

# %%
# One of four is the gradient.

figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
for (label, values), marker in zip(errors.items(), "sv^o"):
    axes.loglog(DELTAS, values, marker + "-", label=label)
axes.axvspan(5e-4, 1e-3, alpha=0.15, color="gray", label="δ in the paper")
axes.set_xlabel("δ, the step along v (no unit)")
axes.set_ylabel("distance to the gradient of R,\nrelative (no unit)")
figure.legend(loc="outside lower center", ncols=2)

# %%
# The printed form keeps none of the gradient at any ``δ``; the paper's form, corrected, lacks a
# part; different batches bring noise that grows as ``δ`` falls, at the paper's many times the
# signal.

bad, noisy, partial, full = (np.array(values) for values in errors.values())
small = DELTAS < 2e-3
assert (abs(bad - 1) < 0.2).all() and (abs(partial[small] - partial[0]) < 1e-3).all()
assert partial[0] > 0.02 and noisy[small].min() > 30 and full[small].max() < 1e-5
slopes = [np.polyfit(np.log(DELTAS[:6]), np.log(e[:6]), 1)[0] for e in (noisy, full)]
assert abs(slopes[0] + 1) < 0.05 and abs(slopes[1] - 2) < 0.1
# The truth is one: differences of values along a random vector agree.
u = torch.randn(len(w), generator=torch.Generator().manual_seed(SEED)).to(w)
u[objective.layout.parameter_size :] = 0
ends = [float(integral(w + s * 1e-5 * u, 1e-2)) for s in (1, -1)]
assert abs((ends[0] - ends[1]) / 2e-5 / float(truth(1e-2) @ u) - 1) < 1e-5
