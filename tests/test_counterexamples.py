"""Networks that random drawing found, made small: what was wrong, and what cannot be known."""

import pytest

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
    assert without_effect(network)


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
