"""Integers and masks that a network writes step by step: their values are not what made them."""

import pytest
import torch
from torch import nn

import quotientnet as qn


class Written(nn.Module):
    """Hidden units at places, or where a mask says, that the forward writes by itself."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x).relu()
        if self.kind == "exchanged":
            places = torch.arange(6)
            places[0], places[5] = 5, 0
            return self.b(h + h[:, places])
        if self.kind == "places":
            places = torch.zeros(6, dtype=torch.long)
            places[3:] = torch.arange(3)
            return self.b(h[:, places].cumsum(1))
        mask = torch.zeros(6, dtype=torch.bool)
        mask[2:] = True
        return self.b(h * mask).cos() + self.b(h)


class Shifted(nn.Module):
    """Words times the words before them, as a decoder shifts its inputs."""

    def __init__(self):
        super().__init__()
        self.words, self.before = nn.Embedding(5, 3), nn.Embedding(5, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, ids):
        shifted = torch.zeros_like(ids)
        shifted[:, 1:] = ids[:, :-1]
        return self.out(self.words(ids).relu() * self.before(shifted))


def changes(model, inputs, generator):
    symmetry = qn.discover(model, inputs)
    layout, group = symmetry.group.layout, symmetry.group
    t = torch.randn(group.dimension, generator=generator, dtype=torch.float64)
    before = model(*inputs)
    layout.assign(model, group.act(layout.flatten(model), t))
    return group.dimension, (model(*inputs) - before).abs().max().item()


@pytest.mark.parametrize(
    "kind, dimension", [("exchanged", 5), ("places", None), ("mask", 6)]
)
def test_constants_written_in_place(kind, dimension):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, x = Written(kind).double(), torch.randn(4, 3).double()
    found, change = changes(model, (x,), generator)
    assert change < 1e-10
    assert dimension is None or found <= dimension


def test_shifted_words():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, ids = Shifted().double(), torch.randint(0, 5, (3, 4))
    found, change = changes(model, (ids,), generator)
    assert found == 6  # the channels of each table
    assert change < 1e-10
