"""
Compute exact traces
====================

The minimum sharpness of [Ibayashi2021]_ needs the trace of the Hessian, layer by layer. There are
as many second derivatives in it as parameters: what does it cost to have them all? Figure 1 of
that paper in miniature, on handwritten digits.
"""

from statistics import median
from time import process_time

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces, hutchinson_trace
from quotientnet.digits import load_digits, train

SEED, WIDTHS, SAMPLED, DRAWS = 0, (8, 16, 32, 64, 128), 60, 100

# %%
# ReLU networks of five widths, each trained a little, and the loss on 500 images.

digits = load_digits(SEED)
data = digits.train_inputs[:500], digits.train_targets[:500]


def trained(width):
    """A point of the loss of a network with two hidden layers."""
    torch.manual_seed(SEED)
    network = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    ).double()  # fmt: skip
    train(network, digits, batch_size=128, epochs=2, seed=SEED)
    objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
    return network, objective, objective.layout.flatten(network)


# %%
# The naive way differentiates the gradient once more, one parameter at a time.


def naive(network, places):
    """The second derivatives at some places of the flat vector."""
    tensors = list(network.parameters())
    loss = nn.functional.cross_entropy(network(data[0]), data[1])
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    owners = [(k, i) for k, tensor in enumerate(tensors) for i in range(tensor.numel())]
    found = []
    for k, i in (owners[place] for place in places):
        own = gradients[k].reshape(-1)[i]
        (row,) = torch.autograd.grad(own, tensors[k], retain_graph=True)
        found.append(row.reshape(-1)[i])
    return torch.stack(found)


def timed(function, repeats=1):
    """What a function returns, and the median of its seconds of the processor."""
    times = []
    for _ in range(repeats):
        start = process_time()
        result = function()
        times.append(process_time() - start)
    return result, median(times)


# %%
# Each way at each size, in units of the gradient of the same loss. The naive way computes all of
# the smallest network's second derivatives; of the others it computes 60, drawn at random, and its
# time is scaled up to all. Random signs (Hutchinson) estimate the trace of the whole matrix.

generator = torch.Generator().manual_seed(SEED)
networks = [trained(width) for width in WIDTHS]
labels = ("naive", "exact traces", f"random signs, {DRAWS} draws")
sizes, costs = [], {label: [] for label in labels}
for network, objective, w in networks:
    count = SAMPLED if sizes else len(w)
    places = torch.randperm(len(w), generator=generator)[:count].sort().values
    _, unit = timed(lambda: objective.at(w).gradient, 15)
    entries, slow = timed(lambda: naive(network, places.tolist()))
    found, quick = timed(lambda: ggn_traces(objective.at(w)), 5)
    signs, rough = timed(
        lambda: hutchinson_trace(objective.at(w).hessian, samples=DRAWS, block=DRAWS)
    )
    sizes.append(len(w))
    for cost, seconds in zip(costs.values(), (slow * len(w) / count, quick, rough)):
        cost.append(seconds / unit)
    print(
        f"{len(w):6} parameters: exact {found.total.value:7.4f}, signs {signs.value:6.2f} ± "
        f"{signs.error:.2f}; naive over exact: {slow * len(w) / count / quick:6.0f}"
    )
    # Nothing but ReLU follows a layer, so that these are blocks of the Hessian itself.
    assert set(found.kinds.values()) == {"Hessian"}
    diagonal = ggn_diagonal(objective.at(w))
    assert (diagonal[places] - entries).abs().max() < 1e-10 * diagonal.max()
    assert abs(float(diagonal.sum()) / found.total.value - 1) < 1e-12
    assert abs(signs.value - found.total.value) < 4 * signs.error

# %%
# On the right the smallest network, tensor by tensor: all three ways agree, and one of them has
# error bars.

network, objective, w = networks[0]
whole, matrix = naive(network, range(len(w))), objective.at(w).hessian
layers, parts, estimates = ggn_traces(objective.at(w)).traces, [], []
for name in layers:
    where = objective.layout.mask(name)
    options = {"samples": DRAWS, "block": DRAWS, "generator": generator}
    parts.append(float(whole[where].sum()))
    estimates.append(hutchinson_trace(matrix.restrict(where), **options))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (label, cost), marker in zip(costs.items(), "so^"):
    left.loglog(sizes, cost, marker + "-", label=label)
left.set(xlabel="parameters", ylabel="time (gradients of the same loss)")
left.legend(loc="lower left", bbox_to_anchor=(0.02, 0.12))
rows, exact = range(len(layers)), [each.value for each in layers.values()]
right.barh(rows, exact, color="C1", alpha=0.5, label="exact")
right.plot(parts, rows, "C0s", label="naive")
values, widths = zip(*((each.value, 2 * each.error) for each in estimates))
right.errorbar(values, rows, xerr=widths, fmt="C2^", capsize=4, label="± 2 std. errors")
right.set_yticks(rows, layers)
right.invert_yaxis()
right.set(xlabel="trace of the tensor's block (units of the loss)", ylabel="tensor")
right.legend(loc="lower right")

# %%
# On images of 28 × 28 pixels and the paper's networks, a convolutional one among them
# (``tests/benchmarks/exact_trace.py``, kept; naive times scaled up from 300 entries):
#
# .. include:: /_generated/exact_trace.rst
#
# The naive time grows with the number of parameters beside that of a gradient, the exact one does
# not: nine backward passes for ten classes.

for trace, part, estimate in zip(exact, parts, estimates):
    assert abs(part / trace - 1) < 1e-10
    assert abs(estimate.value - trace) < 4.5 * estimate.error
slow, quick, _ = costs.values()
assert slow[-1] > 10 * slow[0] and quick[-1] < 3 * quick[0]
assert slow[-1] > 100 * quick[-1]
