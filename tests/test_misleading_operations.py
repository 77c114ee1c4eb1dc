"""Operations that look homogeneous and are not, or not always."""

import pytest
import torch
from architectures import Block
from torch import nn

import quotientnet as qn

VECTORS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
PLACES = torch.tensor([[1, 0, 0, 2, 1]]).expand(6, 5)


def between(forward, width=5):
    """``forward(relu(a x), relu(c x))`` before a linear layer."""
    layers = {"a": nn.Linear(4, 5), "c": nn.Linear(4, 5), "o": nn.Linear(width, 2)}
    both = lambda m, x: (m.a(x).relu(), m.c(x).relu())  # noqa: E731
    return Block(lambda m, x: m.o(forward(*both(m, x))), **layers).double()


def multiplied(a, c):
    return a.scatter(1, PLACES, c, reduce="multiply")


NETWORKS = {
    "scatter that multiplies": (between(multiplied), 0),
    "scatter that adds": (
        between(lambda a, c: a.scatter(1, PLACES, c, reduce="add")),
        1,
    ),
    "counted differences": (between(lambda a, c: torch.cdist(a, c, p=0.0), 6), 0),
    "distances": (between(lambda a, c: torch.cdist(a, c), 6), 1),
    "one counted difference": (between(lambda a, c: a * torch.dist(a, c, 0)), 0),
    # only what leaves the fractions as they are
    "fixed numbers for none": (between(lambda a, c: (a / (c + a)).nan_to_num(1.0)), 5),
    "zeros for infinite": (
        between(lambda a, c: (a / (c * c)).nan_to_num(posinf=0.0)),
        5,
    ),
    "no fixed numbers": (between(lambda a, c: (a * c).nan_to_num()), 10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sound_and_of_the_dimension_by_hand(name):
    model, dimension = NETWORKS[name]
    symmetry = qn.discover(model, VECTORS)
    qn.verify_sound(model, symmetry, VECTORS).require()
    assert symmetry.group.dimension == dimension


def test_words_that_the_forward_overwrites():
    """A table read by an input before and after it was changed: two different choices."""

    def forward(m, words):
        first = m.e(words)
        words[:, 0].fill_(2)
        return m.o((first * m.s(words)).sum(1))

    layers = {"e": nn.Embedding(7, 3), "s": nn.Embedding(7, 3), "o": nn.Linear(3, 2)}
    model, words = Block(forward, **layers).double(), torch.arange(15).view(3, 5) % 7
    symmetry = qn.discover(model, words.clone())
    layout, group = symmetry.group.layout, symmetry.group
    t = group.random(spread=1.0, generator=torch.Generator().manual_seed(1))
    w = layout.flatten(model)
    other = qn.transform(model, symmetry, t)
    assert not torch.equal(layout.flatten(other), w)
    torch.testing.assert_close(other(words.clone()), model(words.clone()))
