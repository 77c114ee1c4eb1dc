"""Fisher–Rao norms and relative flatness against loops over samples and dense Hessians."""

from __future__ import annotations

import chains
import pytest
import torch
from cases import NETWORKS
from equivalents import hessian
from torch import nn

import quotientnet as qn
from quotientnet.curvature import sample_slopes, squared_gradients
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.reparametrisation import share_branches
from quotientnet.sharpness import (
    diagonal_fisher_rao_norm,
    fisher_rao_norm,
    relative_flatness,
)

WEIGHT = torch.tensor([0.5, 1.0, 2.0]).double()
LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weighted": nn.CrossEntropyLoss(weight=WEIGHT),
    "normalised": NormalisedCrossEntropy(),
    "log-probabilities": lambda z, y: nn.functional.nll_loss(z.log_softmax(1), y),
}
NAMES = ["mlp", "conv", "batch-norm", "conv1d"]


def at(name, loss=None, data=None):
    net = NETWORKS[name]
    objective = qn.Objective(
        net.build().eval(), loss or nn.CrossEntropyLoss(), data or net.data()
    )
    return objective.at(objective.layout.flatten(objective.model))


def gradients(point, inputs, targets, loss):
    """Each sample's gradient, one backward pass a sample, ``(samples, parameters)``."""
    model, rows = point.objective.model, []
    total = len(inputs)
    if getattr(loss, "weight", None) is not None:
        total = float(WEIGHT[targets].sum())
    for x, y in zip(inputs, targets):
        value = loss(model(x[None]), y[None])
        if getattr(loss, "weight", None) is not None:
            value = value * WEIGHT[y] * len(inputs) / total
        grads = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_against_a_loop_over_samples(name, loss):
    inputs, targets = NETWORKS[name].data()
    point = at(name, LOSSES[loss])
    rows = gradients(point, inputs, targets, LOSSES[loss])
    count = point.layout.parameter_size
    w = point.w[:count]
    torch.testing.assert_close(
        sample_slopes(point, point.w), rows @ w, rtol=1e-9, atol=1e-12
    )
    squares = squared_gradients(point)
    torch.testing.assert_close(
        squares[:count], rows.square().mean(0), rtol=1e-9, atol=1e-14
    )
    assert not squares[count:].any()
    liang, diagonal = fisher_rao_norm(point), diagonal_fisher_rao_norm(point)
    assert liang.value == pytest.approx(float((rows @ w).square().mean()), rel=1e-10)
    expected = float((rows * w).square().sum(1).mean())
    assert diagonal.value == pytest.approx(expected, rel=1e-10)
    assert sum(part.value for part in diagonal.layers.values()) == diagonal.value


def test_batches_add_up():
    inputs, targets = NETWORKS["mlp"].data()
    parts = [
        (inputs[:5], targets[:5]),
        (inputs[5:7], targets[5:7]),
        (inputs[7:], targets[7:]),
    ]
    for loss in ("mean", "weighted", "normalised", "sum"):
        whole, split = at("mlp", LOSSES[loss]), at("mlp", LOSSES[loss], parts)
        for measure in (fisher_rao_norm, diagonal_fisher_rao_norm):
            assert measure(split).value == pytest.approx(
                measure(whole).value, rel=1e-10
            )


@pytest.mark.parametrize("make", [chains.layer_scale_group, chains.node_wise_group])
@pytest.mark.parametrize("name", NAMES)
def test_the_norms_over_orbits(name, make):
    """With batch normalisation in eval mode: filters and buffers move together."""
    point = at(name)
    group = make(point.layout)
    for seed in range(3):
        t = group.random(generator=torch.Generator().manual_seed(seed))
        there = point.objective.at(group.act(point.w, t))
        for measure in (fisher_rao_norm, diagonal_fisher_rao_norm):
            here, found = measure(point), measure(there)
            assert found.value == pytest.approx(here.value, rel=1e-8)
            for layer, part in here.layers.items():
                assert found.layers[layer].value == pytest.approx(part.value, rel=1e-8)


def test_shifts_and_scales_of_the_outputs():
    point = at("mlp", NormalisedCrossEntropy())
    shifted, stretched = point.w.clone(), point.w.clone()
    shifted[point.layout["4.bias"].slice] += 3.0
    for name in ("4.weight", "4.bias"):
        stretched[point.layout[name].slice] *= 2.0
    for measure, shifts in ((fisher_rao_norm, True), (diagonal_fisher_rao_norm, False)):
        here, shift, stretch = (
            measure(point.objective.at(w)) for w in (point.w, shifted, stretched)
        )
        assert stretch.value == pytest.approx(here.value, rel=1e-8)
        assert ("output shift" in here.invariant_to) == shifts
        change = abs(shift.value / here.value - 1)
        assert change < 1e-8 if shifts else change > 1e-2


class Branches(nn.Module):
    """Two parallel layers, added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x).relu() + self.b(x).relu()


def test_the_diagonal_doubles_where_branches_merge():
    """tsuzuku2019 §7.3 says that it becomes half."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Branches().double()
        model.b.load_state_dict(model.a.state_dict())
        inputs, targets = torch.randn(9, 3).double(), torch.randint(0, 2, (9,))
    pairs = {"a.weight": "b.weight", "a.bias": "b.bias"}
    merged = share_branches(model, pairs, 0.0, inputs)
    before, after = (
        [
            measure(objective.at(objective.layout.flatten(m)))
            for measure in (diagonal_fisher_rao_norm, fisher_rao_norm)
        ]
        for m in (model, merged)
        for objective in [qn.Objective(m, nn.CrossEntropyLoss(), (inputs, targets))]
    )
    assert after[0].value == pytest.approx(2 * before[0].value, rel=1e-12)
    assert after[1].value == pytest.approx(before[1].value, rel=1e-12)


def test_what_has_no_samples_is_refused():
    net = NETWORKS["batch-norm"]
    objective = qn.Objective(net.build().train(), nn.CrossEntropyLoss(), net.data())
    point = objective.at(objective.layout.flatten(objective.model))
    with pytest.raises(
        ValueError, match="'1' normalises by the statistics of the batch"
    ):
        fisher_rao_norm(point)

    def coupled(z, y):
        return nn.functional.cross_entropy(z - z.mean(0), y)

    for measure in (fisher_rao_norm, diagonal_fisher_rao_norm):
        with pytest.raises(ValueError, match="couples the samples"):
            measure(at("mlp", coupled))
    model = net.build()
    penalty = NETWORKS["mlp"].build()

    def penalised(z, y):
        return nn.functional.cross_entropy(z, y) + penalty[0].weight.square().sum()

    data = NETWORKS["mlp"].data()
    objective = qn.Objective(penalty, penalised, data)
    with pytest.raises(ValueError, match="reads '0.weight' itself"):
        fisher_rao_norm(objective.at(objective.layout.flatten(penalty)))
    with pytest.raises(TypeError, match="point must be a Point"):
        fisher_rao_norm(model)
    with pytest.raises(ValueError, match="direction must have shape"):
        sample_slopes(at("mlp"), torch.ones(3))


# -- relative flatness ---


def petzka(point, entry):
    """Definition 3 by a loop over pairs of rows of the dense Hessian."""
    h = hessian(point.objective.model, point.objective)[entry.slice, entry.slice]
    weight = point.w[entry.slice].reshape(entry.shape[0], -1)
    rows, columns = weight.shape
    blocks = h.reshape(rows, columns, rows, columns)
    return sum(
        float(weight[s] @ weight[r]) * float(blocks[s, :, r, :].trace())
        for s in range(rows)
        for r in range(rows)
    )


@pytest.mark.parametrize("name", ["mlp", "mlp-without-bias", "conv", "conv1d"])
def test_relative_flatness_against_the_dense_hessian(name):
    point = at(name)
    for entry in point.layout.entries:
        if len(entry.shape) > 1:
            found = relative_flatness(point, entry.name).value
            assert found == pytest.approx(petzka(point, entry), rel=1e-10)
    last = [e.name for e in point.layout.entries if len(e.shape) == 2][-1]
    assert relative_flatness(point).value == relative_flatness(point, last).value


def test_relative_flatness_over_orbits():
    """Layer scales and scales of its own rows keep it; those of its columns do not."""
    point = at("mlp")
    layers = chains.layer_scale_group(point.layout)
    unit = qn.Unit("rows", 5, (qn.Scale("2.weight", 0), qn.Scale("2.bias", 0),
                               qn.Scale("4.weight", 1, -1)))  # fmt: skip
    rows = qn.ScalingGroup.from_units(point.layout, [unit])
    here = {
        layer: relative_flatness(point, layer).value
        for layer in ("2.weight", "4.weight")
    }
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for group, same in ((layers, ("2.weight", "4.weight")), (rows, ("2.weight",))):
            t = group.random(generator=generator)
            there = point.objective.at(group.act(point.w, t))
            for layer, value in here.items():
                change = abs(relative_flatness(there, layer).value / value - 1)
                assert change < 1e-8 if layer in same else change > 1e-2
    assert relative_flatness(point).invariant_to == ("layer scales", "output shift")


def test_relative_flatness_refuses():
    point = at("mlp")
    with pytest.raises(
        ValueError, match="layer='0.bias' is no matrix; choose one of '0.weight'"
    ):
        relative_flatness(point, "0.bias")
    with pytest.raises(ValueError, match="needs 15 products .* limit=3"):
        relative_flatness(point, limit=3)
