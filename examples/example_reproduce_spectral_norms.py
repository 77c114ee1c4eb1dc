"""
Reproduce spectral norms
========================

Tables 2 and 3 of [Rangamani2019]_ say to how many digits the spectral norm of the Riemannian Hessian
is the same at equivalent networks. How many are they on real images, and what decides it?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits
from quotientnet.reparametrisation import layer_scales

SEED = 0
PRINTED = {
    "F1": {(5, 4, 1 / 20): 1.7e-7, (100, 30, 1 / 3000): 7.17e-7},
    "C1": {(5, 4, 3, 2, 1 / 120): 1.28e-7, (50, 24, 30, 1 / 6, 1 / 6000): 5.1e-6},
}

# %%
# The paper takes 500 random inputs, networks that are not trained, and random labels. Here the inputs
# are 500 handwritten digits of 8×8 pixels, and the networks those of the paper (Table 1) with first
# layers that fit; labels are random all the same. ``tests/benchmarks/rangamani_tables.py`` is the
# paper's own setting, at its sizes: see :doc:`/benchmarks`.

torch.manual_seed(SEED)
images = load_digits(SEED).train_inputs[:500]
labels = torch.randint(0, 10, (500,))
networks = {
    "F1": nn.Sequential(
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10),
    ),
    "C1": nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 10, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(10, 20, 2), nn.ReLU(), nn.Flatten(), nn.Linear(80, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ),
}  # fmt: skip

# %%
# Algorithm 1 is a power iteration for ``‖w_b‖² H``, without a connection and without a projection,
# "since the gradient lies in the horizontal space". Away from critical points, as here, this is
# another operator than the Riemannian Hessian, and does not annihilate vertical vectors: it is kept
# beside the library's, in coordinates where it is symmetric.


class AsPrinted(qn.Operator):
    """``D⁻¹ H D⁻¹``, ``D`` the frame."""

    def __init__(self, point, manifold):
        super().__init__(point.w.numel(), point.w.dtype, point.w.device)
        self.hessian, self.frame = point.hessian, manifold.frame(point.w)

    def _matvec(self, v):
        return (self.hessian @ (v / self.frame)) / self.frame


def measure(name, scales, dtype, generator):
    """The spectral norms at the equivalent network, each from a random start of its own."""
    network, exact = networks[name].to(dtype), dtype == torch.float64
    objective = qn.Objective(network, nn.CrossEntropyLoss(), (images.to(dtype), labels))
    manifold = qn.LayerScaleQuotient(qn.discover(network, images[:8].to(dtype)))
    w = objective.layout.flatten(network)
    if scales is not None:
        w = manifold.group.act(w, layer_scales(manifold.group, scales))
    point = objective.at(w)
    options = {"generator": generator, "tolerance": 1e-6 if exact else 3e-4}
    norm = qn.sharpness.riemannian_spectral_norm(point, manifold, **options).value
    found = {f"Riemannian, {str(dtype)[6:]}": norm}
    if exact:
        operator = AsPrinted(point, manifold)
        pairs = qn.curvature.lanczos(operator, which="magnitude", **options)
        found["Algorithm 1 as printed"] = pairs.values[0]
        options["tolerance"] = 1e-2  # moves by orders of magnitude: two digits will do
        found["Euclidean"] = qn.sharpness.spectral_norm(point, **options).value
    return {label: float(value) for label, value in found.items()}


dice = torch.Generator().manual_seed(SEED + 1)
values, rows = {}, {}
for name, table in PRINTED.items():
    for dtype in (torch.float32, torch.float64):
        at_w = measure(name, None, dtype, dice)
        values |= {(name, label): value for label, value in at_w.items()}
        for scales, printed in table.items():
            row = rows.setdefault((name, scales), {"the paper's table": printed})
            for label, value in measure(name, scales, dtype, dice).items():
                row[label] = abs(value - at_w[label]) / at_w[label]

# %%
# The values first: the two operators have different spectral norms, and both of them are invariant.

for (name, label), value in values.items():
    print(f"{name} {label:24} {value:.10g}")
for (name, scales), row in rows.items():
    print(f"{name} ({', '.join(f'{scale:.3g}' for scale in scales)})")
    print(*(f"    {label:24} {value:.1e}" for label, value in row.items()), sep="\n")

# %%
# The tables' digits are those of 32-bit numbers. With 64 bits there are twelve.

figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
for number, label in enumerate(next(iter(rows.values()))):
    heights = [max(row[label], 1e-16) for row in rows.values()]
    places = [place + 0.12 * (number - 2) for place in range(len(rows))]
    axis.semilogy(places, heights, "osDv^"[number], label=label)
names = [f"{name}\n({', '.join(f'{s:.2g}' for s in scales)})" for name, scales in rows]
axis.set_xticks(range(len(rows)), names, fontsize="small")
axis.set_xlabel("network, and the scales λ of its layers")
axis.set_ylabel("relative difference of spectral norms (no unit)")
axis.grid(axis="y", alpha=0.3)
figure.legend(loc="outside lower center", ncols=3)

# %%
# What agrees: the order of magnitude of the tables. What does not: that no connection is needed.

for row in rows.values():
    assert row["Riemannian, float64"] < 1e-10 and row["Algorithm 1 as printed"] < 1e-10
    assert row["Riemannian, float32"] < 5.1e-6 and row["Euclidean"] > 10
for name in networks:
    proper, printed = (values[name, x] for x in ("Riemannian, float64", "Algorithm 1 as printed"))  # fmt: skip
    assert abs(printed / proper - 1) > 1e-5
