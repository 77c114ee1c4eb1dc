"""Recurrences, parametrisations, products, places: sound, complete, of the dimension by hand."""

import pytest
import torch
from architectures import Block
from recurrent_networks import RECURRENT
from torch import nn

import quotientnet as qn


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RECURRENT)
def test_sound_complete_and_of_the_dimension_by_hand(name):
    architecture = RECURRENT[name]
    model, inputs = architecture.build().eval(), architecture.inputs()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == architecture.dimension
    assert not symmetry.unknown
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.gap > 1e6 and found.found == symmetry.group.dimension


@pytest.mark.slow
def test_both_branches_count():
    model = Block(
        lambda m, x: m.o(torch.cond(x.sum() > 0, m.a, m.b, (m.i(x).relu(),))),
        i=nn.Linear(4, 3), a=nn.Linear(3, 3), b=nn.Linear(3, 3), o=nn.Linear(3, 2),
    ).double()  # fmt: skip
    symmetry = qn.discover(model, torch.randn(6, 4).double())
    assert symmetry.group.dimension == 6 and not symmetry.unknown
    assert {"a.weight", "b.weight"} <= set(symmetry.group.incidence)
    x = torch.randn(6, 4).double()
    w = symmetry.group.layout.flatten(model)
    t = symmetry.group.random(generator=torch.Generator().manual_seed(0))
    moved = {e.name: symmetry.group.act(w, t)[e.slice].view(e.shape)
             for e in symmetry.group.layout.entries}  # fmt: skip
    h = torch.relu(x @ moved["i.weight"].T + moved["i.bias"])
    own = torch.relu(model.i(x))
    for name, branch in (("a", model.a), ("b", model.b)):
        y = h @ moved[f"{name}.weight"].T + moved[f"{name}.bias"]
        y = y @ moved["o.weight"].T + moved["o.bias"]
        assert torch.allclose(y, model.o(branch(own)), rtol=1e-9, atol=1e-9)


def test_spectral_normalisation_while_it_iterates():
    """Two buffers are overwritten by quotients, whose divisors are guarded in place."""
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), nn.LeakyReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 3)), nn.Flatten(),
        nn.Linear(8, 1),
    ).double()  # fmt: skip
    inputs = torch.randn(3, 2, 6, 6).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 2 and not symmetry.unknown
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_a_result_that_goes_into_another_tensor_is_seen_through_its_views():
    def forward(m, x):
        y = torch.zeros(6, 5, dtype=x.dtype)
        view = y.view(6, 5, 1)
        with torch.no_grad():
            torch.mul(m.a(x), m.b(x), out=y)
        return m.o(view.squeeze(-1)) + m.o(m.a(x))

    model = Block(
        forward, a=nn.Linear(4, 5), b=nn.Linear(4, 5), o=nn.Linear(5, 2)
    ).double()
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    # each unit of a against the last layer; b must keep its scale
    assert symmetry.group.dimension == 5 and not symmetry.unknown
    assert set(symmetry.group.incidence) == {"a.weight", "a.bias", "o.weight"}
    qn.verify_sound(model, symmetry, inputs).require()
