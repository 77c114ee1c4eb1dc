"""
Discover the group of a small GPT
=================================

What can be scaled in a transformer, what can be shifted, and what stops the rest? Queries against
keys, values against what reads them, and a stream that every normalisation forgets the scale of.
"""

import textwrap

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import quotientnet as qn

SEED, WIDTH, HEADS, WORDS, LENGTH, LAYERS = 0, 4, 2, 7, 5, 2

# %%
# A language model in a few lines: words and places are embedded, each layer adds attention and two
# linear maps to the stream, and reads it through a normalisation.


class Layer(nn.Module):
    """Causal attention and a multilayer perceptron, each normalised before and added."""

    def __init__(self, activation):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.activation = activation

    def forward(self, x):
        texts, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (p.view(texts, length, HEADS, -1).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(texts, length, WIDTH))
        return x + self.down(self.activation(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Logits of the next word."""

    def __init__(self, activation):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(
            LENGTH, WIDTH
        )
        self.layers = nn.ModuleList(Layer(activation) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, text):
        x = self.words(text) + self.places(torch.arange(text.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


torch.manual_seed(SEED)
model = GPT(F.gelu).double()
text = torch.randint(WORDS, (4, LENGTH))

# %%
# The scale of the whole stream is one generator. In each layer, channel by channel: what a
# normalisation multiplies and the next map divides, queries against keys, values against the map of
# the outputs. GELU has no scale, and pins all that it reads; with ReLU these units are free.

symmetry = qn.discover(model, text)
for line in str(symmetry).splitlines():
    print(textwrap.fill(line, 85, subsequent_indent=" " * 10))
relu = qn.discover(GPT(F.relu).double(), text)
print(f"with ReLU: {relu.group.dimension} generators")

# %%
# Both kinds of symmetry, tried: random scales by two verifications, random shifts by hand.

sound = qn.verify_sound(model, symmetry, text)
complete = qn.verify_complete(model, symmetry, text)
layout = symmetry.group.layout
w, generator = layout.flatten(model), torch.Generator().manual_seed(SEED)
y = w
for translation in symmetry.translations:
    s = torch.randn(translation.dimension, generator=generator).double()
    y = translation.act(y, s)
with torch.no_grad():
    outputs = model(text)
    moved = torch.func.functional_call(model, layout.unflatten(y), text)
    change = float((moved - outputs).abs().max() / outputs.abs().max())
print(sound, complete, sep="\n")
print(
    f"shifted by {float((y - w).norm() / w.norm()):.1f} |w|: outputs change by {change:.0e}"
)

# %%
# Where they are, module by module. Hatched is what GELU and the output pin.


def counted(pairs):
    """Sums by module, in the order of use."""
    sums = dict.fromkeys(modules, 0)
    for module, count in pairs:
        sums[module] += count
    return list(sums.values())


modules = list(dict.fromkeys(name.rpartition(".")[0] for name in symmetry.order))
rows, scales, shifts = range(len(modules)), symmetry.namings, symmetry.translations
bars = {
    "rescaled": counted((n.place, not n.normalised) for n in scales),
    "normalised": counted((n.place, n.normalised) for n in scales),
    "pinned": counted((p.place, len(p.channels)) for p in symmetry.pinned),
}
homes = [(t.parameter.rpartition(".")[0], t.dimension, t.absorbed_by) for t in shifts]
dimensions = {
    "forgotten by a normalisation or attention": counted(
        (m, d) for m, d, a in homes if a
    ),
    "made up for by another parameter": counted((m, d) for m, d, a in homes if not a),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 5.5), sharey=True, layout="constrained")
palettes = ("C0", "C1", "w"), ("C2", "C3")
for axis, parts, palette in zip(axes, (bars, dimensions), palettes):
    left = torch.zeros(len(modules))
    for (label, counts), colour in zip(parts.items(), palette):
        style = {"color": colour, "hatch": "///" * (label == "pinned"), "ec": "0.3"}
        axis.barh(rows, counts, left=left, label=label, **style)
        left += torch.tensor(counts)
    axis.legend(fontsize=9)
for pin in symmetry.pinned:
    place = modules.index(pin.place)
    axes[0].text(
        0.2, place, f"by {pin.operation}", va="center", size=9, backgroundcolor="w"
    )
axes[0].set_yticks(rows, modules)
axes[0].invert_yaxis()
axes[0].set(xlabel="generators, or channels that are pinned", ylabel="module")
axes[1].set(xlabel="dimensions of translations of its parameters", ylabel="module")

# %%
# Counted by hand: the stream, the last normalisation, and in each layer two normalisations, the
# queries and the values. ReLU adds the units of the perceptrons.

assert symmetry.group.dimension == 1 + WIDTH + LAYERS * 4 * WIDTH
assert relu.group.dimension == symmetry.group.dimension + LAYERS * 2 * WIDTH
assert sum(len(pin.channels) for pin in symmetry.pinned) == LAYERS * 2 * WIDTH + WORDS
assert sound.holds and complete.holds and not symmetry.unknown and change < 1e-12
