"""
Compare sharpness with the generalisation gap
=============================================

A network that has learnt random labels generalises badly. Do measures of sharpness see it, and do
they still see it when each network is written down with other scales?
"""

import dataclasses

import matplotlib.pyplot as plt
import torch

import quotientnet as qn
from quotientnet.digits import load_digits, make_network, train
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.plot import plot_against_gap
from quotientnet.sharpness import minimum_sharpness, normalised_sharpness, trace

SEED = 0
SHARES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

# %%
# Seven networks learn 400 digits by heart, a growing share of them with random labels.

digits = load_digits(SEED)
generator = torch.Generator().manual_seed(SEED)
networks, gaps = [], []
for share in SHARES:
    targets = digits.train_targets[:400].clone()
    wrong = torch.rand(400, generator=generator) < share
    targets[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=generator)
    noisy = dataclasses.replace(
        digits, train_inputs=digits.train_inputs[:400], train_targets=targets
    )
    network = make_network(SEED)
    train(network, noisy, batch_size=50, epochs=150, seed=SEED)
    networks.append((network, (noisy.train_inputs, targets)))
    with torch.no_grad():
        right = (network(noisy.train_inputs).argmax(1) == targets).double().mean()
        test = network(digits.test_inputs).argmax(1) == digits.test_targets
    gaps.append(float(right - test.double().mean()))
print("gaps:", ", ".join(f"{gap:.0%}" for gap in gaps))


# %%
# Three measures, at each network as it was trained, and at an equivalent one of random scales.
# The loss of normalised sharpness sees neither the scale nor the shift of the logits.


def measure(network, data, rescale: bool) -> dict[str, float]:
    """The measures at a network, or at an equivalent one."""
    objective = qn.Objective(network, torch.nn.CrossEntropyLoss(), data)
    symmetry = qn.discover(network, data[0][:8], layout=objective.layout)
    w = objective.layout.flatten(network)
    if rescale:
        w = symmetry.group.act(
            w, symmetry.group.random(spread=2.0, generator=generator)
        )
    surrogate = qn.Objective(network, NormalisedCrossEntropy(), data)
    point = objective.at(w)
    return {
        "trace of the Hessian": trace(point, samples=50).value,
        "minimum sharpness": minimum_sharpness(point, symmetry).value,
        "normalised sharpness": normalised_sharpness(surrogate.at(w)).value,
    }


as_trained = [measure(*each, rescale=False) for each in networks]
rescaled = [measure(*each, rescale=True) for each in networks]

# %%
# The trace of a rescaled network says nothing. The two others are what they were, to rounding.

for one, other in zip(as_trained, rescaled):
    for name in ("minimum sharpness", "normalised sharpness"):
        assert abs(other[name] / one[name] - 1) < 1e-8
    assert other["trace of the Hessian"] > 2 * one["trace of the Hessian"]

columns = {name: [each[name] for each in as_trained] for name in as_trained[0]}
columns["trace, rescaled"] = [each["trace of the Hessian"] for each in rescaled]
labels = [f"{share:.0%}" for share in SHARES]
figure = plot_against_gap(columns, gaps, labels=labels)
assert min(columns["normalised sharpness"]) == columns["normalised sharpness"][0]

# %%
# Each point is a network, named after its share of random labels; true labels are the least sharp.

plt.figure(figure)  # matplotlib 3.11
plt.show()
