"""Networks with and without translations, with their dimensions by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from architectures import Architecture, Block, conv, norm, on, parameter
from attention_networks import (
    Attention,
    LayerNorm,
    RootMeanSquare,
    explicit,
    named,
    rotated,
    whole,
)
from recurrent_networks import built, linear_between, recurrent
from torch import nn

VECTORS, IMAGES, SEQUENCES = (6, 4), (3, 2, 6, 6), (3, 5, 4)


class Tokens(Architecture):
    """A network whose inputs are words out of seven, each of them used."""

    def inputs(self) -> torch.Tensor:
        """Shape ``(3, 5)``."""
        return torch.arange(15).view(3, 5) % 7


def before(normalisation, width=5, activation=nn.GELU, bias=True):
    """A layer, what comes after it, and a nonlinear rest."""
    return lambda: nn.Sequential(
        nn.Linear(4, width, bias=bias),
        normalisation(),
        activation(),
        nn.Linear(width, 2),
    )


def stream(*branches, norm=lambda: nn.LayerNorm(4, elementwise_affine=False)):
    """A residual stream that only normalisations read."""

    def forward(m, x):
        for branch in m.branches:
            x = x + branch(x)
        return torch.tanh(m.last(x) @ torch.ones(4, 2).to(x).cumsum(0))

    return lambda: Block(
        forward, branches=nn.ModuleList(b() for b in branches), last=norm()
    )


def feeding(width=3, bias=True, norm=lambda: nn.LayerNorm(4)):
    """A branch of a residual stream that reads a normalisation of it."""
    return lambda: nn.Sequential(
        norm(), nn.Linear(4, width), nn.GELU(), nn.Linear(width, 4, bias=bias)
    )


def attending(mix=whole, **options):
    """Attention by itself."""
    return lambda: Attention(mix, **options)


def embedded(rows, tied=False, norm=nn.LayerNorm):
    """Words and positions, read by a normalisation."""

    def forward(m, i):
        x = m.words(i) + (m.places(torch.arange(5)) if rows else m.places)
        x = m.norm(torch.tanh(m.mix(m.norm(x))))
        return x @ m.words.weight.T if tied else m.read(x)

    def make():
        read = {} if tied else {"read": nn.Linear(4, 3)}
        return Block(
            forward, words=nn.Embedding(7, 4), mix=nn.Linear(4, 4),
            norm=norm(4),
            places=nn.Embedding(5, 4) if rows else parameter(5, 4), **read,
        )  # fmt: skip

    return make


def two_biases(m, x):
    """Both are added to one value."""
    return torch.tanh(m.a(x) + m.shift) @ m.rest


def across(m, x):
    """A layer over positions, with a bias for each, between two normalisations of channels."""
    return m.second(m.mix(m.first(x).transpose(1, 2)).transpose(1, 2))


def half_rotated(x):
    """The first two of four channels turned by an angle that grows with the position."""
    return torch.cat([rotated(x[..., :2]), x[..., 2:]], -1)


def scores(function):
    """A classifier that ends in scores."""
    return lambda: Block(
        lambda m, x: function(m.net(x)),
        net=nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    )


def cross_entropy(x):
    """Of fixed classes."""
    return F.cross_entropy(x, torch.arange(len(x)) % 3, reduction="none")


def in_place(m, x):
    """A residual added in place."""
    y = m.a(x)
    y += m.b(x)
    return torch.tanh(m.norm(y))


def seen_in_place(m, x):
    """As :func:`in_place`, but with a view of what is written to, read before and after."""
    y = m.a(x)
    part = y[:, :2]
    y += m.b(x)
    return torch.tanh(m.norm(y)).sum(-1) + torch.tanh(part).sum(-1)


def dense_linear(*widths):
    """Linear layers without anything between them."""
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*layers, nn.Tanh())


def images(net, dimension):
    """Short for a network of images."""
    return Architecture(net, IMAGES, dimension)


HAND_MADE = {
    "batch norm": on(VECTORS, 5, before(lambda: nn.BatchNorm1d(5))),
    "batch norm without statistics": on(
        VECTORS, 5, before(lambda: nn.BatchNorm1d(5, track_running_stats=False))
    ),
    "layer norm": on(VECTORS, 4 + 1, before(lambda: nn.LayerNorm(5))),
    "layer norm, no bias": on(VECTORS, 4, before(lambda: nn.LayerNorm(5), bias=False)),
    "layer norm written out": on(VECTORS, 4 + 1, before(lambda: LayerNorm(5))),
    "RMS norm": on(VECTORS, 0, before(lambda: nn.RMSNorm(5))),
    "RMS norm written out": on(VECTORS, 0, before(lambda: RootMeanSquare(5))),
    "nothing between": on(VECTORS, 0, before(nn.Identity)),
    "group norm of vectors": on(VECTORS, 2 * (4 + 1), before(lambda: nn.GroupNorm(2, 6), 6)),
    "conv, batch norm": images(
        lambda: nn.Sequential(conv(2, 4), norm(4), nn.GELU(), conv(4, 2)), 4
    ),
    "conv, instance norm": images(
        lambda: nn.Sequential(conv(2, 4), nn.InstanceNorm2d(4), nn.GELU(), conv(4, 2)), 4
    ),
    "conv, group norm": images(
        lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), nn.GELU(), conv(4, 2)), 2
    ),
    "conv, conv without padding": images(
        lambda: nn.Sequential(conv(2, 4, padding=0), conv(4, 2, padding=0), nn.GELU()), 4
    ),
    "conv, conv with padding": images(
        lambda: nn.Sequential(conv(2, 4), conv(4, 2, padding=1), nn.GELU()), 0
    ),
    "grouped convolutions": images(
        lambda: nn.Sequential(
            conv(2, 4, groups=2, padding=0), conv(4, 6, groups=2, padding=0), nn.GELU()
        ),
        4,
    ),
    "bias, average, linear": images(
        lambda: nn.Sequential(
            conv(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Tanh()
        ),
        4,
    ),
    "bias, average pooling": images(
        lambda: nn.Sequential(
            conv(2, 4), nn.AvgPool2d(2), nn.MaxPool2d(3), norm(4), nn.GELU(), conv(4, 2, 1)
        ),
        4,
    ),
    "three linear layers": on(VECTORS, 3 + 5, lambda: dense_linear(4, 3, 5, 2)),
    "linear, no bias to take it": on(
        VECTORS, 0, lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5, bias=False), nn.Tanh())
    ),
    "two biases": on(
        VECTORS, 5,
        lambda: Block(two_biases, a=nn.Linear(4, 5), shift=parameter(5), rest=parameter(5, 2)),
    ),
    "one bias twice": on(
        VECTORS, 0,
        lambda: Block(lambda m, x: torch.tanh(m.a(torch.tanh(m.a(x)))), a=nn.Linear(4, 4)),
    ),
    "softmax": on(VECTORS, 5 + 1, scores(lambda y: y.softmax(-1))),
    "log-softmax": on(VECTORS, 5 + 1, scores(lambda y: y.log_softmax(-1))),
    "softmax over samples": on(VECTORS, 3, scores(lambda y: y.softmax(0))),
    "cross entropy": on(VECTORS, 5 + 1, scores(cross_entropy)),
    "scores": on(VECTORS, 0, scores(lambda y: y)),
    "stream": on(SEQUENCES, 2 * (4 + 3 + 1), stream(feeding(), feeding())),
    "stream, one without bias": on(
        SEQUENCES, (4 + 3 + 1) + (4 + 3), stream(feeding(), feeding(bias=False))
    ),
    "stream, RMS norm": on(
        SEQUENCES, 0,
        stream(*[feeding(norm=lambda: nn.RMSNorm(4))] * 2, norm=lambda: nn.RMSNorm(4)),
    ),
    "stream, one RMS norm": on(
        SEQUENCES, 4 + 3 + 1, stream(feeding(), feeding(norm=lambda: nn.RMSNorm(4)))
    ),
    "attention": on(SEQUENCES, 4 + 4, attending()),
    "attention, written out": on(SEQUENCES, 4 + 4, attending(explicit)),
    "attention, by named axes": on(SEQUENCES, 4 + 4, attending(named)),
    "attention, no biases": on(SEQUENCES, 0, attending(bias=False)),
    "attention, shared heads": on(SEQUENCES, 2 + 2, attending(
        lambda q, k, v: whole(q, k, v, enable_gqa=True), shared=1)),
    "attention, rotary": on(SEQUENCES, 4, attending(turn=rotated)),
    # of keys the two channels of each head that are not rotated, and all of values
    "attention, rotary in part": on(
        SEQUENCES, 2 * 2 + 8, attending(size=4, turn=half_rotated)),
    # a shift of all channels into the biases of positions; of a position, forgotten
    "layer over positions": on(SEQUENCES, 1 + 3, lambda: Block(
        across, first=nn.LayerNorm(4), mix=nn.Linear(5, 3), second=nn.LayerNorm(4))),
    "attention in a stream": on(
        SEQUENCES, 4 + (4 + 4) + (4 + 1) + (4 + 3 + 1),
        stream(lambda: nn.Sequential(nn.LayerNorm(4), Attention()), feeding()),
    ),
    "shift of a norm into a layer": on(
        VECTORS, 4, lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.Tanh())
    ),
    "words and positions": Tokens(embedded(False), (3, 5), 6 + 4 + 5 + 4),
    "words and rows of positions": Tokens(embedded(True), (3, 5), 6 + 4 + 5 + 4),
    "words and positions, tied": Tokens(embedded(True, True), (3, 5), 5),
    "in place": on(
        VECTORS, 4 + 4 + 1 + 5,
        lambda: Block(in_place, a=nn.Linear(4, 5), b=nn.Linear(4, 5), norm=nn.LayerNorm(5)),
    ),
    # a bias of each gate against the other, and the bias before them; three units
    "LSTM": on(SEQUENCES, 4 * 3 + 3, lambda: built(recurrent(nn.LSTM))),
    "LSTM, two layers both ways": on(
        SEQUENCES, 4 * 3 * 4 + 3,
        lambda: built(recurrent(nn.LSTM, num_layers=2, bidirectional=True)),
    ),
    "LSTM, no biases": on(SEQUENCES, 0, lambda: built(recurrent(nn.LSTM, bias=False))),
    "GRU": on(SEQUENCES, 2 * 3 + 3, lambda: built(recurrent(nn.GRU))),
    "recurrent tanh": on(SEQUENCES, 3 + 3, lambda: built(recurrent(nn.RNN))),
    "recurrent ReLU": on(SEQUENCES, 3 + 3, lambda: built(recurrent(nn.RNN, nonlinearity="relu"))),
    "LSTM cell": on(
        VECTORS, 4 * 3 + 3, lambda: linear_between(lambda m, h: m.c(h)[0], c=nn.LSTMCell(3, 3))
    ),
    "GRU cell": on(
        VECTORS, 2 * 3 + 3, lambda: linear_between(lambda m, h: m.c(h), c=nn.GRUCell(3, 3))
    ),
}  # fmt: skip

LINEAR_CHAINS = (
    "conv, conv without padding", "grouped convolutions", "bias, average, linear",
    "three linear layers", "linear, no bias to take it", "LSTM", "LSTM, two layers both ways",
    "LSTM, no biases", "GRU", "recurrent tanh", "recurrent ReLU", "LSTM cell", "GRU cell",
)  # fmt: skip
"""Networks whose weights have directions of a general linear gauge."""

SEEN_IN_PLACE = on(
    VECTORS,
    0,
    lambda: Block(
        seen_in_place, a=nn.Linear(4, 5), b=nn.Linear(4, 5), norm=nn.LayerNorm(5)
    ),
)
