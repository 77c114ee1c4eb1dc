"""Recurrences, parametrisations and other layers, with the dimensions of their groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from architectures import TOKENS, VECTORS, Block, on, parameter
from torch import nn


def recurrent(kind, **options):
    """A layer of three units between two linear ones."""
    return Block(
        lambda m, x: m.o(m.r(m.i(x))[0]), i=nn.Linear(4, 3),
        r=kind(3, 3, batch_first=True, **options), o=nn.LazyLinear(2),
    )  # fmt: skip


def built(model):
    """With the widths of its lazy layers."""
    with torch.no_grad():
        model(torch.randn(TOKENS))
    return model


def cell_by_hand(m, x):
    """A gated recurrent unit written out: gates read the state, which is an average."""
    h = torch.zeros_like(m.i(x[:, 0]))
    for t in range(3):
        y = torch.cat([m.i(x[:, t]), h], 1)
        z = torch.sigmoid(m.z(y))
        h = (1 - z) * h + z * torch.tanh(m.n(y))
    return m.o(h)


def places(m, x):
    """Rows written, and added up, at constant places."""
    h, index = F.relu(m.i(x)), torch.tensor([1, 0, 1])
    z = torch.zeros(3, 2, 3, dtype=h.dtype).index_add(1, index, h[:, :3])
    z = z.index_put((torch.tensor([0]), torch.tensor([1])), h[0, 0])
    return m.o(z)


def linear_between(function, inner=3, **members):
    """``o(function(i(x)))``."""
    return Block(
        lambda m, x: m.o(function(m, m.i(x))),
        i=nn.Linear(4, 3),
        o=nn.Linear(inner, 2),
        **members,
    )


RECURRENT = {
    # inputs can be scaled, what gates read cannot
    "lstm": on(TOKENS, 3, lambda: built(recurrent(nn.LSTM))),
    "lstm, two layers both ways": on(TOKENS, 3, lambda: built(
        recurrent(nn.LSTM, num_layers=2, bidirectional=True))),
    "lstm, projected": on(TOKENS, 3 + 2, lambda: built(recurrent(nn.LSTM, proj_size=2))),
    "gru": on(TOKENS, 3, lambda: built(recurrent(nn.GRU))),
    "recurrent tanh": on(TOKENS, 3, lambda: built(recurrent(nn.RNN))),
    "recurrent relu": on(TOKENS, 6, lambda: built(recurrent(nn.RNN, nonlinearity="relu"))),
    "recurrent relu, two layers": on(TOKENS, 9, lambda: built(
        recurrent(nn.RNN, nonlinearity="relu", num_layers=2, bias=False))),
    "gru written out": on(TOKENS, 3, lambda: Block(
        cell_by_hand, i=nn.Linear(4, 3), z=nn.Linear(6, 3), n=nn.Linear(6, 3),
        o=nn.Linear(3, 2))),
    "gru cell": on(VECTORS, 3, lambda: linear_between(
        lambda m, h: m.c(h), c=nn.GRUCell(3, 3))),
    "lstm cell": on(VECTORS, 3, lambda: linear_between(
        lambda m, h: m.c(h)[0], c=nn.LSTMCell(3, 3))),
    # parametrisations
    "spectral normalisation": on(VECTORS, 1, lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)
        ).eval()),
    "triangular": on(VECTORS, 6, lambda: linear_between(
        lambda m, h: F.linear(h, m.w.tril()), w=parameter(3, 3))),
    "kronecker": on(VECTORS, 1 + 3, lambda: Block(
        lambda m, x: m.o(F.linear(x, torch.kron(m.a, m.b)).relu()), a=parameter(2, 2),
        b=parameter(2, 2), o=nn.Linear(4, 2))),
    # products and distances
    "bilinear": on(VECTORS, 3 + 4, lambda: linear_between(
        lambda m, h: m.b(h, h), 4, b=nn.Bilinear(3, 3, 4))),
    "cosine": on(VECTORS, 2, lambda: Block(
        lambda m, x: F.cosine_similarity(m.a(x), m.b(x)), a=nn.Linear(4, 3), b=nn.Linear(4, 3))),
    "norm 1": on(VECTORS, 1, lambda: linear_between(lambda m, h: F.normalize(h, dim=1))),
    "a chain of matrices": on(VECTORS, 3 + 3 + 3, lambda: Block(
        lambda m, x: m.o(x @ torch.linalg.multi_dot([m.a, m.b, m.c])), a=parameter(4, 3),
        b=parameter(3, 3), c=parameter(3, 3), o=nn.Linear(3, 2))),
    "local response normalisation": on(TOKENS, 0, lambda: linear_between(
        lambda m, h: F.local_response_norm(h.transpose(1, 2), 2).transpose(1, 2))),
    # places
    "sums up to a place": on(TOKENS, 3, lambda: linear_between(
        lambda m, h: h.relu().cumsum(1))),
    "constant places": on(TOKENS, 3, lambda: Block(
        places, i=nn.Linear(4, 3), o=nn.Linear(3, 2))),
    "mean and variance": on(TOKENS, 3, lambda: linear_between(
        lambda m, h: (lambda v, u: v + u * u)(*torch.var_mean(h, 1)))),
    "fourier mixing": on(TOKENS, 1 + 4, lambda: nn.Sequential(
        nn.Linear(4, 4), Block(lambda m, x: torch.fft.fft(x, dim=1).real + x),
        nn.LayerNorm(4, eps=1e-30), nn.Linear(4, 2))),
}  # fmt: skip
