"""Rules that users register, and what the derivation refuses."""

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, EPS, Block, dense
from torch import nn

import quotientnet as qn
from quotientnet.symmetry import RULES, rule


def test_rules_of_users_see_parameters_as_any_other_tensor():
    @torch.library.custom_op("quotientnet_tests::scaled", mutates_args=())
    def scaled(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return p * x

    scaled.register_fake(lambda p, x: torch.empty_like(x))
    model = Block(
        lambda m, x: m.o(scaled(m.p, F.relu(m.a(x)))),
        a=nn.Linear(4, 3), o=nn.Linear(3, 2), p=nn.Parameter(torch.ones(3)),
    )  # fmt: skip

    @rule("quotientnet_tests::scaled")
    def scaled_rule(call, p, x):
        return p + x

    try:
        symmetry = qn.discover(model, torch.randn(6, 4))
    finally:
        del RULES["quotientnet_tests::scaled"]
    assert symmetry.group.dimension == 6
    qn.verify_sound(model, symmetry, torch.randn(6, 4)).require()


def test_users_teach_operations():
    model, inputs = (
        ARCHITECTURES["unknown operation"].build(),
        torch.randn(6, 4).double(),
    )

    @rule("aten::special_bessel_j0")
    def homogeneous(call, x):
        return x

    try:
        symmetry = qn.discover(model, inputs)
    finally:
        del RULES["aten::special_bessel_j0"]
    assert symmetry.group.dimension == 5 and not symmetry.unknown
    outcome = qn.verify_sound(model, symmetry, inputs)
    assert not outcome.holds and "first channel" in outcome.generator


def test_a_rule_of_a_users_own_operation():
    @torch.library.custom_op("quotientnet_tests::gate", mutates_args=())
    def gate(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(a) * b

    gate.register_fake(lambda a, b: torch.empty_like(b))
    model = Block(
        lambda m, x: m.o(gate(m.a(x), m.b(x))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    inputs = torch.randn(6, 4)
    before = qn.discover(model, inputs)
    assert (
        before.group.dimension == 0
        and before.unknown[0].operation == "quotientnet_tests::gate"
    )

    @rule("quotientnet_tests::gate")
    def gate_rule(call, a, b):
        return call.equations.pin(a) + b

    try:
        after = qn.discover(model, inputs)
        qn.verify_sound(model, after, inputs).require()
        assert after.group.dimension == 3

        @rule("quotientnet_tests::gate")
        def wrong_shape(call, a, b):
            return call.equations.fresh(2)

        with pytest.raises(ValueError, match="returned a log-scale of shape"):
            qn.discover(model, inputs)

        @rule("quotientnet_tests::gate")
        def failing(call, a, b):
            raise KeyError("oops")

        with pytest.raises(
            ValueError, match="rule of .*gate failed with KeyError: 'oops'"
        ):
            qn.discover(model, inputs)

        @rule("quotientnet_tests::gate")
        def other_arguments(call, a):
            return a

        assert (
            qn.discover(model, inputs).unknown[0].operation == "quotientnet_tests::gate"
        )
    finally:
        del RULES["quotientnet_tests::gate"]
    for names in (("gate",), (), (None,)):
        with pytest.raises(ValueError, match="is not the name of an operation"):
            rule(*names)


# -- refusals ---


def test_a_branch_on_data_names_the_place():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            h = self.layer(x)
            if h.sum() > 0:
                h = -h
            return h

    model = nn.Sequential(nn.Linear(4, 4), Branching())
    with pytest.raises(
        ValueError, match=r"in 1 \(Branching\), .*test_user_rules.py:\d+"
    ):
        qn.discover(model, torch.randn(6, 4))


def test_refusals():
    model = dense(4, 3, 2)
    with pytest.raises(
        TypeError, match="model must be a torch.nn.Module, got function"
    ):
        qn.discover(F.relu, torch.randn(6, 4))
    with pytest.raises(TypeError, match="inputs must be a tensor, a tuple .* got int"):
        qn.discover(model, 3)
    with pytest.raises(TypeError, match="layout must be a ParameterLayout, got list"):
        qn.discover(model, torch.randn(6, 4), layout=[])
    with pytest.raises(ValueError, match=r"cannot be exported .* in a.0 \(Linear\)"):
        qn.discover(Block(lambda m, x: m.a(x), a=model), torch.randn(6, 5))
    with pytest.raises(ValueError, match="exported but does not run .* same dtype"):
        qn.discover(
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            torch.randn(6, 4).double(),
        )
    with pytest.raises(ValueError, match="has no parameters"):
        qn.discover(nn.ReLU(), torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"shape \(0, 4\) is empty"):
        qn.discover(model, torch.randn(0, 4))
    other = qn.ParameterLayout.from_module(dense(4, 5, 2))
    with pytest.raises(
        ValueError, match="layout belongs to another model: it has '0.weight'"
    ):
        qn.discover(model, torch.randn(6, 4), layout=other)
    with pytest.raises(ValueError, match="A dict is taken as keyword arguments"):
        qn.discover(
            Block(lambda m, x: m.a(x["x"]), a=model), {"x": torch.randn(6, 4), "y": 1}
        )
    with pytest.raises(ValueError, match="depends on data"):
        selecting = Block(lambda m, x: m.a(x)[m.a(x) > 0].sum(), a=model)
        qn.discover(selecting, torch.randn(6, 4))
    with pytest.raises(
        TypeError, match="layer_scale_group: group must be a ScalingGroup"
    ):
        qn.layer_scale_group("group")
    assert EPS < 1e-20


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda call, x: None, r"returned NoneType .* one LogScale"),
        (lambda call, x: "a", r"returned str a; it must return one LogScale"),
        (lambda call, x: [x, x], r"returned list .* one LogScale"),
        (lambda call, x: x.nothing, r"failed with AttributeError.*call\.pin"),
    ],
)
def test_rules_that_say_nothing_are_refused(wrong, message):
    model, inputs = ARCHITECTURES["unknown operation"].build(), torch.randn(6, 4)
    rule("aten::special_bessel_j0")(wrong)
    try:
        with pytest.raises(ValueError, match=message):
            qn.discover(model, inputs)
    finally:
        del RULES["aten::special_bessel_j0"]
    with pytest.raises(TypeError, match="rule: .* must be a function, got int"):
        rule("mylib::gate")(3)
