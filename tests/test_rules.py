"""Operations with arguments of every kind: the dimension by hand, sound, complete."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block, asks_for_mode, parameter
from torch import nn

import quotientnet as qn

MASK = torch.tensor([True, False, True, True, False, True])


def net(function, **members):
    """``function(m, h, x)`` of six units ``h``; ``m.b`` reads six features, ``m.c`` as well."""
    members = {"b": nn.Linear(6, 3), "c": nn.Linear(6, 3)} | members
    return Block(
        lambda m, x: function(m, F.relu(m.a(x)), x), a=nn.Linear(4, 6), **members
    )


def wide(function):
    """``function`` inside ``no_grad``, which changes what autograd sees and nothing else."""

    def run(m, h, x):
        with torch.no_grad():
            function(m, h)
        return m.b(h)

    return run


def written(change):
    """A module that changes ``h`` in place, and reads it after."""

    def run(m, h, x):
        change(m, h)
        return m.b(h)

    return run


def zero_state(m, h, x):
    state = torch.zeros_like(h)
    for _ in range(3):
        state = F.relu(h + m.hh(state))
    return m.b(state)


def copied(m, h, x):
    y = h.to(h.dtype, copy=True)
    y.mul_(m.p)
    return m.b(h) + m.c(y)


def rounded(m, h, x):
    y = torch.zeros(h.shape, dtype=torch.int64)
    y[:, :3] = h[:, :3]
    return m.b(y.to(h.dtype)) + m.c(h)


def strided(m, h, x):
    z = h.t().clone()
    z.t().view(-1)[:6].mul_(m.p)
    return m.b(z.t())


def out_into_a_view(m, h, x):
    z = torch.zeros(h.shape[0], 12, dtype=h.dtype)
    with torch.no_grad():
        torch.abs(h, out=z[:, :6])
    return m.d(z)


def shifted(m, h, x):
    z = torch.zeros_like(h)
    z[1:] = h[:-1]
    return m.b(z)


CASES = {
    # writes, views and copies
    "a write without gradients": (3, wide(lambda m, h: h[:, :3].sigmoid_())),
    "a write under autocast": (3, written(lambda m, h: _autocast(lambda: h[:, :3].sigmoid_()))),
    "a product without gradients": (9, wide(lambda m, h: h[:, :3].mul_(m.p3))),
    "a copy is no view": (12, copied),
    "a write through hsplit": (9, written(lambda m, h: torch.hsplit(h, 2)[0].mul_(m.p3))),
    "a write through an unknown view": (
        0, written(lambda m, h: h.as_strided((6, 3), (6, 1)).mul_(2.0))),
    "a write through a reshaped view": (
        4, written(lambda m, h: h.view(h.shape[0], 2, 3)[:, :, 1].sigmoid_())),
    "out= into a view": (6, out_into_a_view),
    "unsqueezed in place": (5, lambda m, h, x: m.b(_unsqueezed(h))),
    "a write to an input": (6, lambda m, h, x: m.b(F.relu(m.a(_first_zero(x.clone()))))),
    "a write through a view of a strided copy": (0, strided),
    "a write through dropout of nothing": (
        12, written(lambda m, h: F.dropout(h, 0.0, True).mul_(m.p))),
    "a write through a transposing einsum": (
        0, written(lambda m, h: torch.einsum("ij->ji", h).mul_(m.p[:, None]))),
    "a write to a copy by device": (
        12, written(lambda m, h: h.to("cpu", copy=True).mul_(m.p))),
    "a write through atleast_3d": (
        12, written(lambda m, h: torch.atleast_3d(h).mul_(m.p[:, None]))),
    "a write through unsafe_chunk": (12, written(lambda m, h: h.unsafe_chunk(1, 1)[0].mul_(m.p))),
    "in place after a copy": (
        6, lambda m, h, x: m.b(
            h.view(-1, 2, 3).transpose(1, 2).contiguous().relu_().transpose(1, 2).flatten(1))),
    # constants
    "an expanded constant": (6, lambda m, h, x: m.b(h * x.new_ones(6).expand_as(h))),
    "a normalised constant": (
        6, lambda m, h, x: m.b(F.layer_norm(torch.arange(6.0).double(), (6,), m.p)) + x.sum()),
    # integers
    "rounded on the way": (3, rounded),
    "cast to integers": (0, lambda m, h, x: m.b(h.to(torch.int64).to(h.dtype))),
    "cast by another tensor": (
        0, lambda m, h, x: m.b(h.type_as(torch.ones(3, dtype=torch.int64)).to(h.dtype))),
    # indices that the data choose
    "gathered by argmax": (
        1, lambda m, h, x: m.b(h.gather(1, h.argmax(1, keepdim=True)).expand(-1, 6))),
    "gathered by topk": (1, lambda m, h, x: m.b(h.gather(1, h.topk(6, 1).indices))),
    "one-hot": (1, lambda m, h, x: m.b(h * F.one_hot(h.argmax(1), 6))),
    "a table read at argmax": (
        4, lambda m, h, x: m.e_out(m.e(h.argmax(-1)))),
    "a constant table": (
        1, lambda m, h, x: m.b(h * (1 + torch.arange(6.0)[h.argmax(1)][:, None])) + m.b(h)),
    # zeros, infinities
    "a state that starts at zero": (6, zero_state),
    "a shift by one": (6, lambda m, h, x: m.b(F.pad(h, (0, 0, 1, -1)))),
    "a shift in place": (6, shifted),
    "where with a literal zero": (
        6, lambda m, h, x: m.b(torch.where(h > 0, h, torch.tensor(0.0, dtype=h.dtype)))),
    "maximum with zeros": (6, lambda m, h, x: m.b(torch.max(h, torch.zeros_like(h)))),
    "clamped at a tensor of zeros": (6, lambda m, h, x: m.b(h.clamp(min=torch.zeros_like(h)))),
    "clamped at a parameter": (6, lambda m, h, x: m.b(h.clamp(max=m.p.abs()))),
    "filled with minus infinity": (
        1, lambda m, h, x: h.masked_fill(~MASK, -torch.inf).amax(1, keepdim=True) * m.p[:1]),
    "a constant prelu": (
        0, lambda m, h, x: (F.prelu(x.new_full((6, 4), -4.0), m.slope) + 4.0) * m.p[:4] * x),
    # products
    "a vector as weight": (6, lambda m, h, x: F.linear(h, m.p)),
    "einsum, transposed": (6, lambda m, h, x: m.b(torch.einsum("ij->ji", h).t())),
    "einsum of three": (12, lambda m, h, x: torch.einsum("bi,ij,jk->bk", h, m.w, m.v)),
    "einsum with dots": (6, lambda m, h, x: torch.einsum("...i,ij->...j", h, m.v)),
    "einsum, implicit": (6, lambda m, h, x: torch.einsum("bi,ij", h, m.v)),
    "a power by a tensor": (6, lambda m, h, x: m.b(h ** torch.tensor(2.0))),
    "reversed subtraction": (6, lambda m, h, x: m.b(torch.rsub(h, 0, alpha=2))),
    # normalisations with constants
    "layer normalisation with a constant bias": (
        0, lambda m, h, x: F.relu(F.layer_norm(x, (4,), m.p[:4], x.new_ones(4), 1e-30)) @ m.v[:4]),
    "functional layer normalisation": (
        7, lambda m, h, x: m.b(F.relu(F.layer_norm(m.a(x), (6,), m.p, m.q, 1e-5)))),
    "root mean square normalisation": (
        7, lambda m, h, x: m.b(F.relu(F.rms_norm(m.a(x), (6,), m.p)))),
    # dropout
    "dropout of a constant": (
        6, lambda m, h, x: m.b(h * F.dropout(h.new_ones(6), 0.5, m.training))),
    # views of results whose memory is laid out otherwise
    "view of a transposed result": (
        6, lambda m, h, x: m.b(
            h.view(-1, 2, 3).transpose(1, 2).contiguous().view(-1, 6))),
}  # fmt: skip


WITHOUT_DERIVATIVES = ["a write through unsafe_chunk"]
"""Autograd does not see through it that the chunk is a view."""


def _autocast(function):
    with torch.autocast("cpu", enabled=False):
        function()


def _unsqueezed(h):
    h.unsqueeze_(0)
    h[0, :, 0].sigmoid_()
    return h.squeeze_(0)


def _first_zero(x):
    x[:, 0] = 0.0
    return x


def build(function):
    torch.manual_seed(0)
    model = net(
        function, p=parameter(6), q=parameter(6), p3=parameter(3), w=parameter(6, 6),
        v=parameter(6, 3), slope=nn.Parameter(torch.tensor([0.3])), d=nn.Linear(12, 3),
        e=nn.Embedding(6, 3), e_out=nn.Linear(3, 2), hh=nn.Linear(6, 6),
    )  # fmt: skip
    return model.double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_operation(name, training):
    dimension, function = CASES[name]
    model, inputs = build(function).train(training), torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs).require()
    assert symmetry.group.dimension == dimension
    if name not in WITHOUT_DERIVATIVES and (training or asks_for_mode(model, inputs)):
        assert qn.verify_complete(model, symmetry, inputs).extra == 0
