"""The Hessian's own diagonal, the normalised cross-entropy, and the approximation (61)."""

from __future__ import annotations

import pytest
import torch
from cases import NETWORKS
from equivalents import hessian
from torch import nn

import quotientnet as qn
from quotientnet.curvature import (
    finite_difference_diagonal,
    ggn_diagonal,
    ggn_traces,
    hessian_diagonal,
    hessian_traces,
    hutchinson_diagonal,
)
from quotientnet.losses import NormalisedCrossEntropy


def at(model, loss, data):
    objective = qn.Objective(model, loss, data)
    return objective.at(objective.layout.flatten(model))


def data(inputs=4, count=12, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (count,), generator=generator)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double()


def tied():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    model[2].weight = model[0].weight
    return model


MODELS = {
    "relu": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
    "gelu": lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    "tied": tied,
    "batch statistics": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ),
}
LOSSES = {"cross-entropy": nn.CrossEntropyLoss, "normalised": NormalisedCrossEntropy}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_against_the_dense_hessian(name, loss):
    point = at(seeded(MODELS[name]), LOSSES[loss](), data())
    count = point.layout.parameter_size
    dense = point.hessian.to_dense().diagonal()
    if name != "batch statistics":  # whose double backward in autograd is no reference
        reference = hessian(point.objective.model, point.objective).diagonal()
        torch.testing.assert_close(dense[:count], reference, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(hessian_diagonal(point), dense, rtol=1e-9, atol=1e-11)
    found = hessian_traces(point)
    assert set(found.kinds.values()) == {"Hessian"}
    for entry in point.layout.entries:
        if not entry.passive:
            expected = float(dense[entry.slice].sum())
            assert found.traces[entry.name].value == pytest.approx(
                expected, rel=1e-9, abs=1e-11
            )
    products = {n for n, way in found.ways.items() if way == "products"}
    # The last layer is linear in all of them but where samples interact.
    assert ("relu" == name) == (not products)
    if name in ("gelu", "tied"):
        assert not any(
            n.startswith(("2.bias", "4")) for n in products if name == "gelu"
        )
        assert abs(found.total.value / ggn_traces(point).total.value - 1) > 1e-3


def test_a_loss_that_is_linear_in_the_outputs():
    model = nn.Sequential(seeded(MODELS["gelu"]), nn.LogSoftmax(1))
    point = at(model, nn.NLLLoss(), data())
    dense = point.hessian.to_dense().diagonal()
    torch.testing.assert_close(hessian_diagonal(point), dense, rtol=1e-9, atol=1e-12)


def test_too_many_products_are_refused():
    point = at(seeded(MODELS["gelu"]), nn.CrossEntropyLoss(), data())
    with pytest.raises(
        ValueError, match="such as '0.weight', .*need 25 products .*limit=24"
    ):
        hessian_diagonal(point, limit=24)
    assert hessian_diagonal(point, limit=25).shape == point.w.shape
    with pytest.raises(TypeError, match="hessian_traces: point must be a Point"):
        hessian_traces(point.w)


def test_nothing_of_the_model_moves():
    model = seeded(MODELS["batch statistics"])
    point = at(model, nn.CrossEntropyLoss(), data())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.random.get_rng_state()
    hessian_diagonal(point)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert model.training and torch.equal(state, torch.random.get_rng_state())


# -- the approximation (61) ---


def test_finite_differences_are_unbiased_and_their_errors_cover():
    point = at(NETWORKS["mlp"].build(), nn.CrossEntropyLoss(), NETWORKS["mlp"].data())
    exact = hessian_diagonal(point)
    found = finite_difference_diagonal(point, samples=2000, relative_step=1e-5)
    deviations = (found.values - exact).abs() / found.errors.clamp(min=1e-12)
    assert (deviations < 5).all() and (deviations < 2).double().mean() > 0.9
    assert found.cost == 4000


def test_signs_have_a_diagonal_hessian_exactly():
    """Normal noise of the same number of draws does not; what is exact needs none."""
    model = nn.Linear(3, 1, bias=False).double()
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()
    point = at(model, nn.MSELoss(), (inputs, torch.zeros(3, 1)))
    exact = hessian_diagonal(point)
    torch.testing.assert_close(exact, torch.tensor([2.0, 8.0, 18.0]).double() / 3)
    paper = finite_difference_diagonal(point, samples=100).values
    signs = hutchinson_diagonal(point.hessian, samples=100).values
    torch.testing.assert_close(signs, exact, rtol=1e-12, atol=0)
    assert (paper - exact).norm() > 0.02 * exact.norm()


def test_a_step_for_each_tensor():
    """At tensors of very different sizes one step for all is far too large for the small one."""
    point = at(NETWORKS["mlp"].build(), nn.CrossEntropyLoss(), NETWORKS["mlp"].data())
    layers = qn.ScalingGroup.from_units(point.layout, [qn.Unit("hidden", 1, (
        qn.Scale("0.weight", None), qn.Scale("0.bias", None), qn.Scale("2.weight", None, -1)))
    ])  # fmt: skip
    t = torch.tensor([8.0]).double()
    there = point.objective.at(layers.act(point.w, t))
    exact = hessian_diagonal(there)
    found = finite_difference_diagonal(there, samples=500)
    deviations = (found.values - exact).abs() / found.errors.clamp(
        min=1e-12 * exact.max()
    )
    assert (deviations < 5).all()


def test_finite_differences_refuse():
    point = at(NETWORKS["mlp"].build(), nn.CrossEntropyLoss(), NETWORKS["mlp"].data())
    with pytest.raises(
        ValueError, match="samples must be an integer of at least 2, got 1"
    ):
        finite_difference_diagonal(point, samples=1)


# -- the normalised cross-entropy ---


def test_the_loss_by_hand_and_its_invariances():
    z = torch.tensor([[1.0, 2.0, 6.0], [0.0, -1.0, 1.0]]).double()
    y = torch.tensor([2, 1])
    loss = NormalisedCrossEntropy()
    scaled = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
    expected = -(scaled.log_softmax(1)[[0, 1], y]).mean()
    assert loss(z, y) == pytest.approx(float(expected), rel=1e-14)
    factors, shifts = torch.tensor([[1e-6], [30.0]]).double(), torch.tensor(
        [[1.0], [-9.0]]
    )
    assert loss(factors * z + shifts * factors, y) == pytest.approx(
        float(expected), rel=1e-9
    )
    assert NormalisedCrossEntropy(reduction="sum")(z, y) == pytest.approx(
        2 * float(expected)
    )


def test_weights_ignored_targets_and_positions():
    """As torch's own cross-entropy of the scaled logits, with its normaliser."""
    z = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([[0, 1], [2, 7], [1, 1], [7, 0], [2, 2]])
    weight = torch.tensor([1.0, 2.0, 0.5]).double()
    loss = NormalisedCrossEntropy(weight, ignore_index=7)
    scaled = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
    torch_loss = nn.CrossEntropyLoss(weight, ignore_index=7)
    assert loss(z, y) == pytest.approx(float(torch_loss(scaled, y)), rel=1e-12)
    assert loss.normaliser(z, y) == weight[y[y != 7]].sum()
    assert NormalisedCrossEntropy(reduction="sum").normaliser(z, y) is None


def test_its_curvature_has_both_signs():
    """And the factor of softmax alone is wrong by a factor."""
    net = NETWORKS["mlp"]
    model, (x, y) = net.build(), net.data()
    point = at(model, NormalisedCrossEntropy(), (x, y))
    eigenvalues = torch.linalg.eigvalsh(point.ggn.to_dense())
    assert eigenvalues[0] < -1e-3 and eigenvalues[-1] > 1e-3
    dense = point.ggn.to_dense().diagonal()
    torch.testing.assert_close(ggn_diagonal(point), dense, rtol=1e-9, atol=1e-12)
    plain = float(ggn_traces(at(model, nn.CrossEntropyLoss(), (x, y))).total.value)
    assert abs(float(dense.sum()) / plain - 1) > 1


@pytest.mark.parametrize("products", ["graph", "record", "recompute"])
def test_products_of_every_kind(products):
    model, (x, y) = NETWORKS["mlp"].build(), NETWORKS["mlp"].data()
    objective = qn.Objective(model, NormalisedCrossEntropy(), (x, y), products=products)
    point = objective.at(objective.layout.flatten(model))
    reference = hessian(model, objective)
    torch.testing.assert_close(
        point.hessian.to_dense(), reference, rtol=1e-9, atol=1e-11
    )


def test_batches_of_the_normalised_loss_add_up():
    model, (x, y) = NETWORKS["mlp"].build(), NETWORKS["mlp"].data()
    whole = at(model, NormalisedCrossEntropy(), (x, y))
    parts = at(model, NormalisedCrossEntropy(), [(x[:5], y[:5]), (x[5:], y[5:])])
    assert float(parts.value) == pytest.approx(float(whole.value), rel=1e-12)
    torch.testing.assert_close(
        ggn_diagonal(parts), ggn_diagonal(whole), rtol=1e-9, atol=1e-12
    )


def test_constant_logits_are_refused():
    loss, y = NormalisedCrossEntropy(), torch.tensor([0, 1])
    z = torch.tensor([[1.0, 2.0, 3.0], [1e6, 1e6, 1e6]]).double()
    with pytest.raises(
        ValueError, match="1 of 2 samples have one logit for all classes"
    ):
        loss(z, y)
    with pytest.raises(ValueError, match="two classes or more"):
        loss(z[:, :1], y)
    with pytest.raises(
        ValueError, match="reduction must be 'mean' or 'sum', got 'none'"
    ):
        NormalisedCrossEntropy(reduction="none")
    model = nn.Linear(4, 3).double()
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="12 of 12 samples have one logit"):
        at(model, loss, data())
