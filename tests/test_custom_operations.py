"""Operations of users' own: unknown ones pin what they touch, rules teach them; in place, too."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block
from torch import nn

import quotientnet as qn
from quotientnet.symmetry import RULES, rule


@torch.library.custom_op("quotientnet_tests::double_", mutates_args={"x"})
def double_(x: torch.Tensor) -> None:
    x.mul_(2)


@torch.library.custom_op("quotientnet_tests::write", mutates_args={"out"})
def write(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(3 * x)


@torch.library.custom_op("quotientnet_tests::halve", mutates_args={"x"})
def halve(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Halves the first in place; returns a product of the second."""
    x.div_(2)
    return y * y


@torch.library.custom_op("quotientnet_tests::kernel", mutates_args=())
def kernel(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tanh(x), y * 2


halve.register_fake(lambda x, y: torch.empty_like(y))
kernel.register_fake(lambda x, y: (torch.empty_like(x), torch.empty_like(y)))


def doubled(m, h):
    h = h * 1.0
    double_(h)
    return h


def doubled_in_part(m, h):
    h = h * 1.0
    double_(h[:, :2])
    return h


def written(m, h):
    out = torch.zeros_like(h)
    write(h, out)
    return out


def written_and_added(m, h):
    out = torch.zeros_like(h)
    write(h, out)
    return out + F.relu(m.b(h))


def halved(m, h):
    h = h * 1.0
    other = halve(h, m.b(h))
    return torch.cat([h, other], 1)


def both(m, h):
    a, b = kernel(h, F.relu(m.b(h)))
    return torch.cat([a, b], 1)


TAUGHT = {
    "quotientnet_tests::double_": lambda call, x: x,
    "quotientnet_tests::write": lambda call, x, out: x,
    "quotientnet_tests::halve": lambda call, x, y: [2 * y, x],
    "quotientnet_tests::kernel": lambda call, x, y: [call.equations.pin(x), y],
}

CASES = {
    # the dimension with the rule, and without
    "in place": (doubled, 3, 0),
    "in place through a view": (doubled_in_part, 3, 1),
    "written": (written, 3, 0),
    "written, and added": (written_and_added, 3, 0),
    "in place, and a result": (halved, 6, 0),
    "two results": (both, 3, 0),
}


@pytest.fixture
def taught():
    for name, function in TAUGHT.items():
        rule(name)(function)
    yield
    for name in TAUGHT:
        RULES.pop(name, None)


def build(function):
    torch.manual_seed(0)
    model = Block(
        lambda m, x: m.o(function(m, F.relu(m.a(x)))),
        a=nn.Linear(4, 3), b=nn.Linear(3, 3), o=nn.LazyLinear(2),
    )  # fmt: skip
    model(torch.randn(6, 4))
    return model, torch.randn(6, 4)


@pytest.mark.parametrize("name", CASES)
def test_unknown_operations_pin_all_they_touch_and_are_listed(name):
    function, _, dimension = CASES[name]
    model, inputs = build(function)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == dimension
    (unknown,) = symmetry.unknown
    assert unknown.operation.startswith("quotientnet_tests::")
    assert "unknown, pins all it touches; teach it" in str(symmetry)
    qn.verify_sound(model, symmetry, inputs).require()


@pytest.mark.parametrize("name", CASES)
def test_taught_operations(name, taught):
    function, dimension, _ = CASES[name]
    model, inputs = build(function)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == dimension and not symmetry.unknown
    qn.verify_sound(model, symmetry, inputs).require()


def test_constants_that_an_operation_writes_into_are_no_constants():
    def from_constants(m, h):
        ones, out = torch.ones_like(h), torch.zeros_like(h)
        write(ones, out)
        return h + out

    model, inputs = build(from_constants)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 0
    qn.verify_sound(model, symmetry, inputs).require()


def test_what_a_rule_returns_is_checked(taught):
    model, inputs = build(halved)
    RULES["quotientnet_tests::halve"] = lambda call, x, y: 2 * y
    with pytest.raises(
        ValueError,
        match="returned 1 log-scales; .* has 1 results and then writes into 1",
    ):
        qn.discover(model, inputs)
    RULES["quotientnet_tests::halve"] = lambda call, x, y: [
        2 * y,
        call.equations.pinned(2),
    ]
    with pytest.raises(
        ValueError, match=r"shape \(2,\) for an argument of shape \(6, 3\)"
    ):
        qn.discover(model, inputs)


def test_the_reason_is_the_first_line_of_the_rule(taught):
    @rule("quotientnet_tests::double_")
    def twice(call, x):
        """Twice as much has the same scale.

        More is not shown.
        """
        return x

    model, inputs = build(doubled)
    (own,) = (c for c in qn.discover(model, inputs).coverage if "double" in c.operation)
    assert own.reason == "Twice as much has the same scale." and own.treatment == "rule"
