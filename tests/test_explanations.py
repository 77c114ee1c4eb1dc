"""What a derived symmetry says: names, what is pinned and why, tables, the effect of eps."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import Block, conv, derive, head, norm
from torch import nn

import quotientnet as qn


def test_names_say_what_a_generator_scales():
    model = nn.Sequential(conv(2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 2))
    group = qn.discover(model, torch.randn(4, 2, 8, 8)).group
    assert (
        group.names[1] == "0 channel 1: rows of 0.weight and bias, columns of 3.weight"
    )
    normalised = nn.Sequential(conv(2, 3), norm(3), nn.ReLU(), conv(3, 2))
    names = qn.discover(normalised, torch.randn(4, 2, 8, 8)).group.names
    assert names[0] == (
        "0 channel 0: rows of 0.weight and bias, entries of 1.running_mean, entries of "
        "1.running_var (exponent 2)"
    )
    assert names[3] == "1 channel 0: entries of 1.weight and bias, columns of 3.weight"


def test_pinned_channels_name_the_operation():
    *_, symmetry = derive("squeeze-excitation")
    pinned = {(p.place, p.channels): p.operation for p in symmetry.pinned}
    assert pinned == {("excite", (0, 1, 2, 3)): "sigmoid", ("last", (0, 1)): "output"}
    *_, symmetry = derive("offset in a concatenation")
    pinned = {(p.place, p.channels): p.operation for p in symmetry.pinned}
    assert pinned[("b", (0, 1, 2))] == "add"
    *_, symmetry = derive("relu6")
    assert symmetry.pinned[0].operation == "hardtanh in 1 (ReLU6)"


def test_pins_reach_back_to_their_cause():
    model = Block(
        lambda m, x: m.o(F.gelu(m.b(x) + m.a(x))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    pinned = qn.discover(model, torch.randn(6, 4)).pinned
    assert {p.place: p.operation for p in pinned} == {
        "a": "gelu",
        "b": "gelu",
        "o": "output",
    }


def test_unknown_operations_are_listed_and_pin():
    *_, symmetry = derive("unknown operation")
    (unknown,) = symmetry.unknown
    assert unknown.operation == "special_bessel_j0" and unknown.calls == 1
    text = str(symmetry)
    assert "special_bessel_j0 × 1: unknown, pins all it touches" in text
    assert "first: channels 0–4, by special_bessel_j0" in text


def test_operations_on_constants_are_not_unknown():
    model = Block(
        lambda m, x: m.o(F.relu(m.a(torch.special.bessel_j0(x)))),
        a=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    symmetry = qn.discover(model, torch.randn(6, 4))
    assert symmetry.group.dimension == 3 and not symmetry.unknown


def test_statistics_of_a_channel_that_is_always_zero():
    model = Block(
        lambda m, x: m.o(m.n(F.pad(m.a(x), (0, 2)))),
        a=nn.Linear(4, 4), n=norm(6, 1), o=nn.Linear(6, 2),
    ).double().eval()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 12
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_statistics_of_a_result_that_is_never_used_move_along_in_train_mode():
    model = Block(
        lambda m, x: (lambda h: (m.n(h), m.o(F.relu(h)))[1])(m.a(x)),
        a=nn.Linear(4, 5), n=norm(5, 1, affine=False), o=nn.Linear(5, 2),
    ).double().train()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert (
        symmetry.group.dimension == 5 and "n.running_mean" in symmetry.group.incidence
    )
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()


def test_the_table_is_the_group():
    for name in (
        "resnet, normalised",
        "low-rank update",
        "applied twice without bias",
        "a scalar",
    ):
        *_, symmetry = derive(name)
        group = symmetry.group
        total = np.zeros((group.layout.size, group.dimension))
        for link in symmetry.table:
            entry = group.layout[link.parameter]
            shape = [n if a in link.axes else 1 for a, n in enumerate(entry.shape)]
            number = np.broadcast_to(
                link.generators.reshape(shape), entry.shape
            ).reshape(-1)
            hit = number >= 0
            total[
                np.arange(entry.start, entry.start + entry.numel)[hit], number[hit]
            ] += link.exponent
        assert (total == group.to_dense()).all()


def test_json_holds_everything():
    *_, symmetry = derive("densenet", training=True)
    report = json.loads(symmetry.to_json())
    assert report["dimension"] == 22 and report["training"] is True
    assert report["generators"] == list(symmetry.group.names)
    assert set(report["table"][0]) == {"parameter", "axes", "exponent", "generators"}
    assert report["coverage"][0]["treatment"] in ("rule", "constant", "pins")


def test_the_effect_of_eps_is_measured():
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3, eps=1e-3), nn.ReLU(), head(3))
    inputs = torch.randn(4, 2, 8, 8)
    (measured,) = qn.discover(model.train(), inputs).approximate
    x = model[0](inputs).detach()
    variance = x.var((0, 2, 3), correction=0)
    expected = max(1 - ((variance + 1e-3) / (variance + 4e-3)).sqrt())
    assert measured.place == "1" and measured.eps == 1e-3
    assert measured.size == pytest.approx(float(expected), rel=1e-4)
    model.eval()[1].running_var.fill_(2.0)
    (measured,) = qn.discover(model, inputs).approximate
    assert measured.size == pytest.approx(1 - (2.001 / 2.004) ** 0.5, rel=1e-4)
    drift = qn.verify_sound(model, qn.discover(model, inputs), inputs).eps_drift
    assert 1e-6 < drift < 1e-2
    assert derive("vgg, normalised")[2].approximate[0].size < 1e-20
