"""Attention, what normalises and gates around it: sound, complete, of the dimension by hand."""

import numpy as np
import pytest
import torch
from attention_networks import ATTENTION
from family_networks import FAMILY_BLOCKS

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
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.gap > 1e6 and found.found == symmetry.group.dimension
