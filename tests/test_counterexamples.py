"""Networks that random drawing found, made small: what was wrong, and what cannot be known."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block, parameter
from torch import nn

import quotientnet as qn
from quotientnet.testing import Architecture, Step, without_effect

LIMITS = {
    "a size that a later normalisation removes": (2, 2, Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=3, bias=True),  # 1
        Step("rms_norm", 1, affine=True),  # 2: x / size(x) · weight
        Step("by_sum", 2),  # 3: another size, of which the first is a factor
        Step("linear", 3, out=2, bias=True),  # 4
    )),
    "an entry that all logits share": (0, 1, Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=2, bias=True),  # 1
        Step("cumsum", 1, dim=-1),  # 2: the first entry is in both
        Step("softmax", 2, dim=-1),  # 3: so it cancels
        Step("linear", 1, out=2, bias=True),  # 4: and is read elsewhere
        outputs=(3, 4),
    )),
    "a term that is taken away again": (3, 3, Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=3, bias=True),  # 1
        Step("linear", 0, out=3, bias=True),  # 2
        Step("add", 1, 2),  # 3
        Step("where_greater", 1, 3),  # 4: |a - (a + b)|
        Step("linear", 1, out=2, bias=True),  # 5
        Step("linear", 4, out=2, bias=True),  # 6
        outputs=(5, 6),
    )),
    "a constant on all keys": (0, 4, Architecture(
        Step("input", shape=(3, 4)),  # 0
        Step("input", shape=(3, 2)),  # 1
        Step("linear", 0, out=4, bias=False),  # 2
        Step("plus_one", 2),  # 3
        Step("linear", 2, out=4, bias=False),  # 4
        Step("attention", 4, 3, 1, causal=False, written=True),  # 5: scores of a query shift alike
    )),
    "squares that are never negative": (0, 1, Architecture(
        Step("input", shape=(3, 4)),  # 0
        Step("embedding", words=3, length=3, width=2),  # 1
        Step("chunk", 1),  # 2, 3
        Step("where_input", 0, 2, 3),  # 4: either half of a word
        Step("einsum", 4, 3),  # 5: of the one half squares, which the next step leaves out
        Step("cat_first", 5, 3),  # 6
        Step("clamp", 6),  # 7
        Step("linear", 7, out=2, bias=False),  # 8
        seed=639,
    )),
    "a branch that is never taken": (6, 3, Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=3, bias=True),  # 1
        Step("linear", 0, out=3, bias=True),  # 2
        Step("linear", 0, out=3, bias=True),  # 3
        Step("relu", 1),  # 4
        Step("where_positive", 4, 2, 3),  # 5: where it is not positive, 0 times the other
        Step("linear", 3, out=2, bias=True),  # 6
        Step("linear", 5, out=2, bias=True),  # 7
        outputs=(6, 7),
    )),
}  # fmt: skip
"""Generators that are derived, those missing, the network. In each, values cancel or have one
sign whatever the parameters are, which log-scales do not know: what has no effect limits a scale
like everything else. The derived group is smaller than it could be, never wrong."""


@pytest.mark.parametrize("name", LIMITS)
def test_what_cancels_by_its_values_limits_a_scale(name):
    derived, missing, network = LIMITS[name]
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    qn.verify_sound(network, symmetry, inputs).require()
    found = qn.verify_complete(network, symmetry, inputs)
    assert (symmetry.group.dimension, found.missing, found.extra) == (
        derived,
        missing,
        0,
    )
    assert found.gap > 1e6 and found.jump < 1e-9
    assert name.startswith("squares") or without_effect(network)


def test_layer_normalisation_of_a_constant_decides_nothing():
    """Where ReLU leaves nothing of a channel, a bias is normalised: rounding, and no violation."""
    network = Architecture(
        Step("input", shape=(2, 4), image=True),  # 0
        Step("relu", 0),  # 1: a position of both channels may be zero
        Step(
            "conv", 1, out=2, size=1, groups=1, same=True, bias=True
        ),  # 2: and then constant
        Step("layer_norm", 2, affine=True),  # 3
        Step("linear", 3, out=2, bias=True),  # 4
    )
    (inputs,) = network.inputs()
    symmetry = qn.discover(network, inputs)
    found = qn.verify_complete(network, symmetry, inputs).require()
    assert found.derived == symmetry.group.dimension == 6
    dead = torch.cat([-inputs[:1].abs(), inputs])
    with pytest.raises(ValueError, match="a channel is constant"):
        qn.verify_sound(network, symmetry, dead)


def test_rows_of_words_after_a_triangular_weight():
    """Each word's row has a scale that the norm of a token forgets, whatever lies between."""
    network = Architecture(
        Step("embedding", words=3, length=3, width=2),  # 0
        Step("triangular", 0),  # 1: sums of different lengths
        Step("linear", 1, out=2, bias=False),  # 2
        Step("by_norm", 2),  # 3
    )
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    qn.verify_sound(network, symmetry, inputs).require()
    found = qn.verify_complete(network, symmetry, inputs).require()
    assert found.found == symmetry.group.dimension == 7


def test_a_choice_of_whole_rows_before_a_norm():
    """Of each sample one row or the other; the norm forgets the scale of either."""
    network = Architecture(
        Step("input", shape=(2, 4)),  # 0
        Step("input", shape=(3, 4)),  # 1
        Step("linear", 1, out=4, bias=False),  # 2
        Step("where_input", 0, 2, 1),  # 3
        Step("by_sum", 3),  # 4
    )
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    assert symmetry.group.dimension == 1
    qn.verify_sound(network, symmetry, inputs).require()
    qn.verify_complete(network, symmetry, inputs).require()


@pytest.mark.parametrize("rows, dimension", [(True, 2), (False, 1)])
def test_what_is_chosen_row_by_row_has_scales_of_its_own(rows, dimension):
    """Entry by entry, one sum holds entries of both, which must then have one scale."""

    def choice(m, x):
        condition = (x[:, :1] if rows else x[:, 1:]) > 0
        h = torch.where(condition, m.a(x), m.b(x))
        return m.o(h / h.abs().sum(-1, keepdim=True))

    torch.manual_seed(0)
    model = Block(
        choice, a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2)
    ).double()
    x = torch.randn(9, 4).double()
    symmetry = qn.discover(model, x)
    assert symmetry.group.dimension == dimension
    qn.verify_sound(model, symmetry, x).require()
    qn.verify_complete(model, symmetry, x).require()


def test_words_that_inputs_do_not_hold_are_free():
    """Logits of all words by a table that also embeds them: a row that is no input is only a
    row of logits. The derivation is that of any word."""
    network = Architecture(
        Step("embedding", words=3, length=3, width=2),  # 0
        Step("again", 0, of=0, transposed=True),  # 1: logits
        Step("linear", 1, out=2, bias=True),  # 2
    )
    (words,) = network.inputs()
    symmetry = qn.discover(network, words)
    assert qn.verify_complete(network, symmetry, words).require().derived == 1
    assert qn.verify_complete(network, symmetry, words.clamp(max=1)).missing == 1


POOLS = {
    "tiles": (6, lambda h: F.max_pool1d(h, 2)),
    "tiles, averaged": (6, lambda h: F.avg_pool1d(h, 2)),
    "overlapping": (5, lambda h: F.max_pool1d(h, 3, 1)),
    "padded": (8, lambda h: F.max_pool1d(h, 2, 2, 1)),
    "padded, averaged": (8, lambda h: F.avg_pool1d(h, 2, 2, 1)),
    "a last window beyond the end": (4, lambda h: F.max_pool1d(h, 4, 4, ceil_mode=True)),
    "dilated": (3, lambda h: F.max_pool1d(h, 2, 2, 0, 2)),
    "of images": (6, lambda h: F.max_pool2d(h.view(-1, 3, 2, 3), (2, 1)).flatten(2)),
    "of images, padded": (
        5, lambda h: F.avg_pool2d(h.view(-1, 3, 2, 3), 2, (2, 1), (0, 1)).flatten(2)),
}  # fmt: skip
"""Windows over six positions, or two rows of three, each with a scale of its own for each of three
channels; windows that share no position have scales of their own."""


@pytest.mark.parametrize("name", POOLS)
def test_windows_of_pooling_have_scales_of_their_own(name):
    dimension, pool = POOLS[name]
    torch.manual_seed(0)
    count = pool(torch.zeros(1, 3, 6)).shape[-1]
    model = Block(
        lambda m, x: m.o(pool(F.relu(x * m.p)).mean(1) * m.q),
        p=parameter(3, 6), q=parameter(count), o=nn.Linear(count, 2),
    ).double()  # fmt: skip
    inputs = torch.randn(5, 3, 6).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == dimension
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_the_slope_of_values_of_one_sign_is_a_factor():
    """Negative values times a slope: two factors, of which the derivation pins one."""
    network = Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=3, bias=True),  # 1
        Step("clamp", 1),  # 2
        Step("prelu", 2),  # 3
        Step("linear", 3, out=2, bias=True),  # 4
    )
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    found = qn.verify_complete(network, symmetry, inputs)
    assert (symmetry.group.dimension, found.found) == (3, 6)
    assert found.where == (
        "linear1.weight", "linear1.bias", "prelu3.weight", "linear4.weight"
    )  # fmt: skip


def test_a_jump_at_which_values_change_sign():
    """``x / size(x) - x``, normalised: all that is left of ``1 / size(x) - 1`` is its sign."""
    network = Architecture(
        Step("input", shape=(4,)),  # 0
        Step("linear", 0, out=3, bias=True),  # 1
        Step("by_mean_square", 1),  # 2
        Step("sub", 2, 1),  # 3
        Step("by_mean_square", 3),  # 4
        Step("gelu", 4),  # 5
    )
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    found = qn.verify_complete(network, symmetry, inputs)
    assert (symmetry.group.dimension, found.missing) == (0, 1)
    assert found.jump > 0.1 and "crosses a jump" in str(found)
