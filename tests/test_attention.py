"""Attention, what normalises and gates around it: sound, complete, of the dimension by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import Block, asks_for_mode, parameter
from attention_networks import ATTENTION
from family_networks import FAMILY_BLOCKS
from torch import nn

import quotientnet as qn

NETWORKS = ATTENTION | FAMILY_BLOCKS


def derive(name, training=False):
    """A network, its inputs and its symmetry."""
    architecture = NETWORKS[name]
    model, inputs = architecture.build().train(training), architecture.inputs()
    return model, inputs, qn.discover(model, inputs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_sound_complete_and_of_the_dimension_by_hand(name, training):
    model, inputs, symmetry = derive(name, training)
    assert symmetry.group.dimension == NETWORKS[name].dimension
    assert not symmetry.unknown
    exponents = symmetry.group.exponents(torch.eye(symmetry.group.dimension).double())
    assert np.linalg.matrix_rank(exponents) == symmetry.group.dimension
    qn.verify_sound(model, symmetry, inputs).require()
    if training or asks_for_mode(model, inputs):
        found = qn.verify_complete(model, symmetry, inputs).require()
        assert found.gap > 1e6 and found.found == symmetry.group.dimension


class GroupedExperts(nn.Module):
    """Gated units with biases; tokens sorted by their experts, and multiplied in groups or not."""

    def __init__(self, grouped):
        super().__init__()
        self.grouped, self.router = grouped, nn.Linear(8, 3)
        self.up, self.up_bias = parameter(3, 16, 8), parameter(3, 16)
        self.down, self.down_bias = parameter(3, 8, 8), parameter(3, 8)

    def multiply(self, x, weights, chosen):
        """Each token by the matrix of its expert."""
        if not self.grouped:
            return torch.bmm(weights[chosen], x.unsqueeze(-1)).squeeze(-1)
        counts = torch.histc(chosen.float(), bins=3, min=0, max=2)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        x, weights = x.bfloat16(), weights.transpose(1, 2).bfloat16()
        return torch._grouped_mm(x, weights, offs=ends).to(self.up.dtype)

    def forward(self, x):
        """Shape ``(tokens, 8)``."""
        shares, chosen = self.router(x).softmax(-1).topk(2, -1)
        chosen, order = torch.sort(chosen.reshape(-1))
        h = self.multiply(x[order // 2], self.up, chosen) + self.up_bias[chosen]
        gate, value = h.chunk(2, -1)
        y = (
            self.multiply(F.silu(gate) * value, self.down, chosen)
            + self.down_bias[chosen]
        )
        y = y * shares.reshape(-1)[order, None]
        return torch.zeros_like(x).index_add(0, order // 2, y)


def test_biases_of_experts_in_groups_are_those_of_the_experts():
    torch.manual_seed(0)
    grouped, plain = GroupedExperts(True), GroupedExperts(False).double()
    inputs = torch.randn(6, 8)
    symmetry = qn.discover(grouped, inputs)
    assert symmetry.group.dimension == 3 * 8 and not symmetry.unknown
    outcome = qn.verify_sound(plain, symmetry, inputs, second_inputs=inputs)
    assert outcome.require().violation < 1e-9


# the router, channels of both tables; and one more for each entry that is always met by the same
CHANGED = {
    "told apart from zero": (1 + 2 * 2, lambda n: n.bool().long()),
    "turned round": (1 + 2 * 2, lambda n: n.float().neg().long() + 2),
    "halved": (1 + 2 * 2, lambda n: (n.float() / 2).long()),
    "kept as floats": (1 + 2 * 2 + 4, lambda n: n.float().long()),
}


@pytest.mark.parametrize("name", CHANGED)
def test_integers_that_changed_on_the_way_are_other_choices(name):
    dimension, other = CHANGED[name]

    def forward(m, x):
        chosen = m.router(x).argmax(-1)
        return m.o(m.a[chosen] * m.b[other(chosen)])

    torch.manual_seed(0)
    model = Block(
        forward,
        router=nn.Linear(4, 3),
        a=parameter(3, 2),
        b=parameter(3, 2),
        o=nn.Linear(2, 2),
    )
    inputs = torch.randn(12, 4)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == dimension
    assert qn.verify_sound(model, symmetry, inputs).require().violation < 1e-9
