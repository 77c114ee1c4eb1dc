"""Flat vectors of parameters."""

import pickle

import pytest
import torch
from torch import nn

from quotientnet import ParameterLayout


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(3, 5, bias=True)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.embed(x) + self.head(x))


def test_order_ties_frozen_and_running_statistics():
    layout = ParameterLayout.from_module(Tied())
    assert layout.names == (
        *("embed.weight", "head.bias", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var"),
    )
    assert layout.aliases == {"head.weight": "embed.weight"}
    assert layout["head.weight"] is layout["embed.weight"]
    assert (layout.size, layout.parameter_size) == (15 + 5 + 5 + 5 + 5 + 5, 30)
    assert [e.passive for e in layout.entries] == [False] * 4 + [True] * 2
    assert "frozen" in ParameterLayout.from_module(Tied(), include_frozen=True)


def test_layouts_compare_by_value_in_either_mode():
    a, b = ParameterLayout.from_module(Tied()), ParameterLayout.from_module(
        Tied().eval()
    )
    assert a == b and hash(a) == hash(b) and pickle.loads(pickle.dumps(a)) == a
    assert a != ParameterLayout.from_module(Tied(), include_frozen=True)


def test_flatten_copies_and_unflatten_views():
    model = Tied()
    layout = ParameterLayout.from_module(model)
    w = layout.flatten(model)
    views = layout.unflatten(w)
    assert all(
        torch.equal(views[n], t) for n, t in model.named_parameters() if n in layout
    )
    w[0] = 42.0
    assert views["embed.weight"][0, 0] == 42.0 and model.embed.weight[0, 0] != 42.0
    batch = torch.stack([w, 2 * w]).reshape(2, 1, -1)
    assert torch.equal(layout.flatten(layout.unflatten(batch)), batch)


def test_assign_writes_all_or_nothing():
    model = Tied()
    layout = ParameterLayout.from_module(model)
    w = torch.arange(float(layout.size))
    layout.assign(model, w)
    assert (
        torch.equal(layout.flatten(model), w)
        and model.head.weight is model.embed.weight
    )
    with pytest.raises(ValueError, match="does not fit"):
        ParameterLayout({"embed.weight": (5, 3), "other": (1,)}).assign(
            model, torch.zeros(16)
        )
    assert torch.equal(layout.flatten(model), w)


def test_batches_of_points_through_vmap():
    model = nn.Linear(2, 3)
    layout = ParameterLayout.from_module(model)
    x, points = torch.randn(4, 2), torch.randn(5, layout.size)

    def outputs(w):
        return torch.func.functional_call(model, layout.unflatten(w), x)

    expected = torch.stack([outputs(w) for w in points])
    torch.testing.assert_close(torch.func.vmap(outputs)(points), expected)


class Mixed(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.first = nn.Parameter(torch.ones(2))
        self.second = nn.Parameter(
            second, requires_grad=second.is_floating_point() or second.is_complex()
        )


@pytest.mark.parametrize(
    "second, message",
    [
        (
            torch.ones(2, dtype=torch.float64),
            "'second' is torch.float64 on cpu, but 'first'",
        ),
        (torch.ones(2, device="meta"), "'second' is torch.float32 on meta"),
        (torch.ones(2, dtype=torch.complex64), "'second' is torch.complex64"),
        (torch.ones(2, dtype=torch.int64), "'second' is torch.int64"),
        (torch.ones(2, dtype=torch.bfloat16), "'second' is torch.bfloat16"),
    ],
)
def test_mixed_or_unsupported_parameters_are_refused_by_name(second, message):
    with pytest.raises(ValueError, match=message):
        ParameterLayout.from_module(Mixed(second), include_frozen=True)


def test_other_refusals():
    with pytest.raises(ValueError, match="no parameters that require a gradient; pass include_"):
        ParameterLayout.from_module(nn.Linear(2, 2).requires_grad_(False))
    for frozen in (False, True):
        with pytest.raises(ValueError, match="no parameters at all"):
            ParameterLayout.from_module(nn.ReLU(), include_frozen=frozen)
    with pytest.raises(ValueError, match="uninitialised; run the module once"):
        ParameterLayout.from_module(nn.LazyLinear(3))
    layout = ParameterLayout({"a": (2, 3)})
    with pytest.raises(ValueError, match=r"last dimension of 6.*layout.flatten"):
        layout.unflatten(torch.ones(5))
    with pytest.raises(ValueError, match="'a' is missing"):
        layout.flatten({"b": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"'a' has shape \(3, 2\)"):
        layout.flatten({"a": torch.ones(3, 2)})
    with pytest.raises(KeyError, match="'b' is not in the layout; it has a"):
        layout["b"]
    with pytest.raises(ValueError, match="both parameter and passive"):
        ParameterLayout({"a": (1,)}, {"a": (1,)})
