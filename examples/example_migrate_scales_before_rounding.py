"""
Migrate scales before rounding
==============================

A few channels of a transformer's activations are far larger than the others. Rounded to 8-bit
integers with one step size a tensor, the others lose their digits. How much is left when scales are
moved from activations into weights first?
"""

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import quotientnet as qn

SEED, WIDTH, HEADS, SHARED, SIZE, HIDDEN = 0, 64, 4, 2, 16, 128

# %%
# A block as in Llama: root-mean-square normalisation, four heads of queries that share two of keys
# and values, rotary positions, a gated unit. The normalisations' weights have outliers.


def rotated(x):
    speeds = 100.0 ** -(torch.arange(0, SIZE, 2) / SIZE)
    angle = (torch.arange(x.shape[-2])[:, None] * speeds).to(x).repeat(1, 2)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(
            WIDTH, eps=1e-6
        )
        rows = (HEADS * SIZE, SHARED * SIZE, SHARED * SIZE, HIDDEN, HIDDEN)
        for name, size in zip(("q", "k", "v", "gate", "up"), rows):
            setattr(self, name, nn.Linear(WIDTH, size, bias=False))
        self.o = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        y = self.first(x)
        q, k, v = (
            layer(y).unflatten(-1, (-1, SIZE)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = rotated(q), rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


torch.manual_seed(SEED)
model = nn.Sequential(
    Block(), Block(), nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 10)
).double()
with torch.no_grad():
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.mul_(torch.randn(WIDTH).mul(0.3).exp())
            module.weight[torch.randperm(WIDTH)[:3]] *= 40
    for block in model[:2]:
        block.v.weight[5] *= 30
        block.up.weight[7] *= 30
data = torch.randn(24, 16, WIDTH, dtype=torch.float64)
calibration, test = data[:16].split(8), data[16:]

# %%
# The symmetry of the model says which layer's scales can be moved where: one table, derived.

symmetry = qn.discover(model, test)
mappings = qn.scale_mappings(symmetry)
print(mappings)

# %%
# A pass over calibration data measures what meets in products, and the formula of SmoothQuant makes
# a scale of it for each channel. The public tool moves scales of normalisations only.

sizes = qn.symmetry.channel_sizes(model, symmetry, calibration)
norms = [m for m in mappings if m.sources[0].dims == 1]
chosen = {"norms": norms, "all mappings": mappings}


def smoothed(alpha, own):
    t = qn.symmetry.smoothing(sizes, alpha, mappings=own)
    return qn.transform(model, symmetry, t, inputs=test, tolerance=1e-9)


# %%
# Every linear layer rounds its inputs and its weights to integers of 8 bits.


def to_integers(x):
    step = x.abs().max() / 127
    return (x / step).round() * step


def rounded(network):
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = to_integers(module.weight.data)
            module.register_forward_pre_hook(lambda m, args: to_integers(args[0]))
    return network


@torch.no_grad()
def error(network):
    reference = model(test)
    return float((rounded(network)(test) - reference).norm() / reference.norm())


alphas = [0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0]
errors = {
    name: [error(smoothed(a, own)) for a in alphas] for name, own in chosen.items()
}
before = error(model)
print(f"as it is: {before:.2%}")
for name, found in errors.items():
    print(f"{name}: {found[alphas.index(0.5)]:.2%} at 0.5, {min(found):.2%} at best")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
after = qn.symmetry.channel_sizes(smoothed(0.5, mappings), symmetry, calibration)
own = mappings["0.second"].generators
for label, found in (("as it is", sizes), ("smoothed", after)):
    axes[0].semilogy(found.activations[own].sort().values, label=f"inputs, {label}")
    axes[0].semilogy(found.readers[own].sort().values, "--", label=f"weights, {label}")
axes[0].set(xlabel="channels of the second norm, sorted", ylabel="largest magnitude")
axes[1].axhline(before, color="grey", label="as it is")
for name, found in errors.items():
    axes[1].semilogy(alphas, found, "o-", label=name)
axes[1].set_xlabel("α of SmoothQuant (no unit)")
axes[1].set(ylabel="relative error of outputs, int8 (no unit)", ylim=(0.2, 1))
for axis in axes:
    axis.legend()

# %%
# The function was the same all along. From α = 0.3 on, moving scales of all mappings helps more
# than those of the normalisations alone.

assert (
    errors["all mappings"][alphas.index(0.5)]
    < errors["norms"][alphas.index(0.5)]
    < 0.7 * before
)
