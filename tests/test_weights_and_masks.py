"""Weights of averages that do not add up to one: the values' bias must not move."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block
from torch import nn

import quotientnet as qn
from quotientnet.symmetry import verify_translations

SEQUENCES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()


def attending(forward):
    """A block of queries, keys and values, and what reads their averages."""
    layers = {name: nn.Linear(4, 4) for name in "qkvo"}
    return Block(forward, **layers).double()


def scores(m, x):
    """Of two heads, shape ``(batch, 2, length, length)``."""
    q, k = (layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (m.q, m.k))
    return q @ k.transpose(-1, -2)


def moves_values(model, *inputs):
    """Whether the values' bias is found to move; what is found must be sound."""
    inputs = inputs or (SEQUENCES,)
    symmetry = qn.discover(model, inputs)
    verify_translations(model, symmetry, inputs).require()
    return any("v.bias" in t.moved for t in symmetry.translations)


REDUCTIONS = {
    "maximum": lambda a: a.amax(1),
    "maximum with places": lambda a: a.max(1)[0],
    "median": lambda a: a.median(1)[0],
    "sorted": lambda a: a.sort(1)[0][:, 0],
    "chosen by data": lambda a: a.gather(1, a.argsort(1))[:, 0],
    "soft maximum": lambda a: a.logsumexp(1),
    "rounded": lambda a: (3 * a).mean(1).long().double(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_only_means_of_weights_are_weights(name):
    reduce = REDUCTIONS[name]
    model = attending(lambda m, x: m.o(reduce(scores(m, x).softmax(-1)) @ m.v(x)))
    assert not moves_values(model)
    mean = attending(lambda m, x: m.o(scores(m, x).softmax(-1).mean(1) @ m.v(x)))
    assert moves_values(mean)


def test_one_weight_for_many_is_none():
    def gated(size):
        def forward(m, x):
            weights = m.q(x)[:, 0, :size].softmax(-1)
            return m.o(torch.einsum("bj,bjk->bk", weights, m.v(x)[:, :4]))

        return attending(forward)

    assert moves_values(gated(4))
    assert not moves_values(gated(1))


def masked(m, x, mask=None):
    q, k, v = m.q(x), m.k(x), m.v(x)
    return m.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_queries_whose_keys_are_all_masked():
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert moves_values(attending(lambda m, x: masked(m, x, mask)))
    empty = mask.clone()
    empty[2] = False
    assert not moves_values(attending(lambda m, x: masked(m, x, empty)))
    minus = torch.zeros(5, 5).double().masked_fill(~empty, -torch.inf)
    assert not moves_values(attending(lambda m, x: masked(m, x, minus)))
    by_data = mask.expand(3, 5, 5).clone()
    assert not moves_values(attending(masked), SEQUENCES, by_data)


def test_padding_masks_of_torch():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x, padding):
            options = {"key_padding_mask": padding, "need_weights": False}
            return self.attention(x, x, x, **options)[0]

    model, padding = Padded().double(), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 4] = True
    symmetry = qn.discover(model, (SEQUENCES, padding))
    every = padding.clone()
    every[1] = True
    inputs = SEQUENCES, every
    verify_translations(model, symmetry, inputs).require()
    assert not any("out_proj" in " ".join(t.moved) for t in symmetry.translations)
