"""Objectives: exact batch sums, derivatives, and nothing of the user's changed."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import NETWORKS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import quotientnet as qn
from quotientnet.losses import normaliser

GENERATOR = torch.Generator().manual_seed(0)


def classifier():
    return NETWORKS["mlp"].build()


def batches(inputs, targets, size=5):
    return list(zip(inputs.split(size), targets.split(size)))


WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
SOFT = torch.rand(12, 3, generator=GENERATOR, dtype=torch.float64).softmax(1)
CLASSES = torch.tensor([0, 1, 2, -100, 1, 1, 0, 2, 2, -100, 0, 1])
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES),
    "function": (F.cross_entropy, CLASSES),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), CLASSES),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), CLASSES),
    "ignore": (nn.CrossEntropyLoss(ignore_index=1), CLASSES.clamp(min=0)),
    "probabilities": (nn.CrossEntropyLoss(), SOFT),
    "squares": (nn.MSELoss(), SOFT),
    "binary": (nn.BCEWithLogitsLoss(), SOFT),
    "nll": (lambda o, t: F.nll_loss(o.log_softmax(1), t), CLASSES.clamp(min=0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_uneven_batches_add_up_to_the_whole(name):
    loss, targets = LOSSES[name]
    inputs, _ = NETWORKS["mlp"].data()
    model = classifier()
    whole = qn.Objective(model, loss, (inputs, targets))
    parts = qn.Objective(model, loss, batches(inputs, targets))
    w = whole.layout.flatten(model)
    a, b = whole.at(w), parts.at(w)
    v = torch.randn(len(w), 2, generator=GENERATOR, dtype=torch.float64)
    torch.testing.assert_close(a.value, loss(model(inputs), targets).detach())
    torch.testing.assert_close(b.value, a.value)
    torch.testing.assert_close(b.gradient, a.gradient)
    torch.testing.assert_close(b.hessian @ v, a.hessian @ v)


def test_a_loss_can_bring_its_own_normaliser():
    class PerToken:
        def __call__(self, outputs, targets):
            return (outputs.sum(1) * targets).sum() / targets.sum()

        def normaliser(self, outputs, targets):
            return targets.sum()

    inputs, counts = NETWORKS["mlp"].data()[0], torch.arange(1.0, 13).double()
    model = classifier()
    whole = qn.Objective(model, PerToken(), (inputs, counts))
    parts = qn.Objective(model, PerToken(), batches(inputs, counts))
    w = whole.layout.flatten(model)
    torch.testing.assert_close(whole(w), parts(w))


def test_normalisers():
    outputs = torch.zeros(4, 3)
    assert (
        normaliser(nn.CrossEntropyLoss(), outputs, torch.tensor([0, -100, 2, 1])) == 3
    )
    assert (
        normaliser(
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 4])),
            outputs,
            torch.tensor([0, 1, 2, 2]),
        )
        == 11
    )
    assert normaliser(nn.MSELoss(), outputs, outputs) == 12
    assert normaliser(nn.MSELoss(reduction="sum"), outputs, outputs) is None
    assert normaliser(lambda o, t: o.sum(), outputs, outputs) == 4


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "batch-norm"])
def test_gradient_and_hessian_against_dense_functional_derivatives(name):
    objective = NETWORKS[name].objective()
    w = objective.layout.flatten(objective.model)
    p = objective.at(w)
    torch.testing.assert_close(p.gradient, torch.func.grad(objective)(w))
    torch.testing.assert_close(
        p.hessian.to_dense(), torch.func.hessian(objective)(w), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("train", [True, False])
def test_derivatives_leave_running_statistics_alone(train):
    objective = NETWORKS["batch-norm"].objective(train=train)
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    w = objective.layout.flatten(objective.model)
    p = objective.at(w)
    passive = slice(objective.layout.parameter_size, None)
    v = torch.randn(len(w), generator=GENERATOR, dtype=torch.float64)
    assert p.gradient[passive].abs().max() == (p.hessian @ v)[passive].abs().max() == 0
    moved = w.clone()
    moved[passive] *= 2
    assert (objective(moved) == p.value) == train  # they count in eval mode only
    after = objective.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert objective.model.training == train


def test_points_through_vmap():
    objective = NETWORKS["batch-norm"].objective()
    w = objective.layout.flatten(objective.model)
    points = torch.stack([w, 1.1 * w, 0.9 * w])
    torch.testing.assert_close(
        torch.func.vmap(objective)(points), torch.stack([objective(p) for p in points])
    )


def test_loaders_dicts_and_argument_tuples():
    inputs, targets = NETWORKS["mlp"].data()
    model = classifier()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, features, scale=1.0):
            return scale * self.inner(features)

    named, loss = Named(), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5, shuffle=True)
    forms = [
        (inputs, targets),
        loader,
        {"features": inputs, "labels": targets},
        [{"features": x, "labels": y} for x, y in batches(inputs, targets)],
        ((inputs, torch.ones(())), targets),
        ({"features": inputs.float().double()}, targets),
    ]
    values = []
    for data in forms:
        objective = qn.Objective(named, loss, data)
        values.append(objective.at(objective.layout.flatten(named)).value)
    torch.testing.assert_close(torch.stack(values), values[0].expand(len(values)))
    other = qn.Objective(
        named, loss, {"features": inputs, "y": targets}, target_key="y"
    )
    torch.testing.assert_close(other(other.layout.flatten(named)), values[0])


def test_data_follow_the_points_dtype():
    inputs, targets = NETWORKS["mlp"].data()
    model = classifier()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs.float(), targets))
    assert objective.at(objective.layout.flatten(model)).value.dtype == torch.float64


def test_random_states_and_the_model_are_given_back():
    inputs, targets = NETWORKS["mlp"].data()
    model = classifier()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5, shuffle=True)
    objective = qn.Objective(model, nn.CrossEntropyLoss(), loader)
    w = objective.layout.flatten(model)

    def states():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    before, weights = states(), [p.clone() for p in model.parameters()]
    p = objective.at(w)
    p.gradient, p.hessian @ w  # noqa: B018
    after = states()
    assert (
        torch.equal(before[0], after[0])
        and before[1] == after[1]
        and (before[2] == after[2]).all()
    )
    assert all(
        torch.equal(a, b) and a.grad is None
        for a, b in zip(model.parameters(), weights)
    )


def test_dropout_in_train_mode_is_detected():
    inputs, targets = NETWORKS["mlp"].data()
    model = nn.Sequential(classifier(), nn.Dropout(0.5))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    w, state = objective.layout.flatten(model), torch.get_rng_state()
    with pytest.raises(ValueError, match="two evaluations differ by .* is dropout on"):
        objective.at(w)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    model.eval()
    objective.at(w)


def test_random_augmentation_is_detected():
    inputs, targets = NETWORKS["mlp"].data()

    class Noisy:
        def __iter__(self):
            yield inputs + 0.01 * torch.randn(inputs.shape), targets

    objective = qn.Objective(classifier(), nn.CrossEntropyLoss(), Noisy())
    with pytest.raises(ValueError, match="batches augmented"):
        objective.at(objective.layout.flatten(objective.model))


def good():
    return NETWORKS["mlp"].objective()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w[:-1], "last dimension of 83; layout.flatten"),
        (lambda w: w.float(), "w is torch.float32 on cpu, the model is torch.float64"),
        (
            lambda w: w.to("meta"),
            "w is on the meta device, it must be an ordinary",
        ),
        (
            lambda w: torch.where(torch.arange(83) == 3, torch.nan, w),
            "'0.weight' has 1 NaN",
        ),
        (lambda w: torch.stack([w, w]), "needs one point"),
        (lambda w: w * 1e300, "loss is nan|loss is inf"),
    ],
)
def test_bad_points_are_refused(change, message):
    objective = good()
    with pytest.raises(ValueError, match=message):
        objective.at(change(objective.layout.flatten(objective.model)))


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "data has no batches"),
        (iter([(torch.ones(2, 4), torch.zeros(2))]), "can be read only once"),
        (TensorDataset(torch.ones(2, 4), torch.zeros(2)), "wrap a dataset in"),
        (
            torch.utils.data.DataLoader(TensorDataset(torch.ones(0, 4)), batch_size=2),
            "data has no batches",
        ),
        (3, "data is a int, not a batch"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        qn.Objective(classifier(), nn.CrossEntropyLoss(), data)


class Empty:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "loss, data, message",
    [
        (nn.CrossEntropyLoss(), Empty(), "data has no batches"),
        (
            nn.CrossEntropyLoss(reduction="none"),
            None,
            "loss must be a scalar tensor, got",
        ),
        (nn.CrossEntropyLoss(), [torch.ones(2, 4)], "must be a pair"),
        (nn.CrossEntropyLoss(), {"input": torch.ones(2, 4)}, "no 'labels' among input"),
    ],
)
def test_bad_batches_are_refused_when_read(loss, data, message):
    data = NETWORKS["mlp"].data() if data is None else data
    objective = qn.Objective(classifier(), loss, data)
    with pytest.raises(ValueError, match=message):
        objective.at(objective.layout.flatten(objective.model))


def test_modules_and_parameters_used_twice_stay_as_they_are():
    shared, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
    model = nn.Sequential(
        nn.Linear(2, 3), norm, shared, nn.ReLU(), shared, norm
    ).double()
    model.alias = shared
    twin = nn.Linear(3, 3).double()
    twin.weight = shared.weight
    model.append(twin)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(5, 2, generator=GENERATOR, dtype=torch.float64)
    objective = qn.Objective(model, nn.MSELoss(), (x, torch.zeros(5, 3)))
    w = objective.layout.flatten(model)
    expected = (model(x) ** 2).mean()
    for key, value in before.items():
        model.state_dict()[key].copy_(value)
    torch.testing.assert_close(objective(w), expected.detach())
    objective.at(2 * w).gradient  # noqa: B018
    assert isinstance(shared.weight, nn.Parameter) and twin.weight is shared.weight
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    moved = 2 * w
    objective.layout.assign(model, moved)
    torch.testing.assert_close(objective(moved), (model(x) ** 2).mean().detach())


def test_batches_without_a_counted_target_count_for_nothing():
    inputs, targets = NETWORKS["mlp"].data()
    targets[:5] = -100
    model, loss = classifier(), nn.CrossEntropyLoss()
    parts = qn.Objective(model, loss, batches(inputs, targets))
    p = parts.at(parts.layout.flatten(model))
    torch.testing.assert_close(p.value, loss(model(inputs), targets).detach())
    assert torch.isfinite(p.gradient).all()
    nothing = qn.Objective(model, loss, (inputs, torch.full_like(targets, -100)))
    with pytest.raises(ValueError, match="no targets that count"):
        nothing.at(nothing.layout.flatten(model))


def test_an_ignored_index_beyond_the_classes_with_weights():
    outputs, targets = torch.zeros(3, 3), torch.tensor([0, 255, 2])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 4]), ignore_index=255)
    assert normaliser(loss, outputs, targets) == 5
    assert normaliser(nn.KLDivLoss(reduction="sum"), outputs, outputs) is None


def test_every_mode_and_every_value_is_checked():
    inputs, targets = NETWORKS["mlp"].data()
    model = nn.Sequential(classifier(), nn.Dropout(0.5)).eval()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    w = objective.layout.flatten(model)
    objective.at(w)
    with pytest.raises(ValueError, match="the loss is"):
        objective.at(1e200 * w).value
    model.train()
    with pytest.raises(ValueError, match="is dropout on"):
        objective.at(w)


def test_a_loaders_own_generator_is_given_back():
    generator = torch.Generator().manual_seed(5)
    dataset = TensorDataset(*NETWORKS["mlp"].data())
    loader = DataLoader(dataset, batch_size=5, shuffle=True, generator=generator)
    objective = qn.Objective(classifier(), nn.CrossEntropyLoss(), loader)
    state = generator.get_state()
    objective.at(objective.layout.flatten(objective.model)).gradient  # noqa: B018
    assert torch.equal(state, generator.get_state())


def test_a_model_that_writes_to_its_parameters_is_refused_and_w_is_kept():
    model = nn.Sequential(
        nn.Embedding(5, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 3)
    ).double()
    data = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 2])
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    w = objective.layout.flatten(model)
    kept = w.clone()
    with pytest.raises(ValueError, match="writes to its parameter '0.weight'"):
        objective.at(w)
    with torch.no_grad():
        objective(w)
    assert torch.equal(w, kept)


def test_inputs_that_a_model_overwrites_are_kept():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    inputs, targets = NETWORKS["mlp"].data()
    kept = inputs.clone()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    p = objective.at(objective.layout.flatten(model))
    p.gradient, p.hessian @ p.w, p.ggn @ p.w  # noqa: B018
    assert torch.equal(inputs, kept)


def test_inputs_in_a_named_tuple():
    from collections import namedtuple

    Pair = namedtuple("Pair", "left right")

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, left, right):
            return self.layer(left + right)

    inputs, targets = NETWORKS["mlp"].data()
    model, loss = Sum(), nn.CrossEntropyLoss()
    objective = qn.Objective(model, loss, (Pair(inputs.float(), inputs), targets))
    value = objective.at(objective.layout.flatten(model)).value
    expected = loss(model.layer(inputs.float().double() + inputs), targets)
    torch.testing.assert_close(value, expected.detach())


@pytest.mark.parametrize("whole", [True, False], ids=["batch", "loader"])
def test_streamed_values_have_the_first_derivative_of_the_loss(whole):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    inputs, targets = torch.randn(9, 4).double(), torch.randint(0, 3, (9,))
    data = (inputs, targets) if whole else list(zip(inputs.split(6), targets.split(6)))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    w = objective.layout.flatten(model)
    graph, stream = (w.clone().requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(objective(graph).exp(), graph)
    value = objective.streamed(stream)
    (found,) = torch.autograd.grad(value.exp(), stream)
    expected[objective.layout.parameter_size :] = 0
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(value.detach(), objective.at(w).value)
    assert not objective.streamed(w).requires_grad


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, nn.NLLLoss()])
def test_labels_that_are_no_class_are_refused(loss):
    model = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(5, 4).double(), torch.tensor([0, 2, 3, -1, 1])
    objective = qn.Objective(model, loss, (inputs, targets))
    with pytest.raises(
        ValueError, match="2 targets are no class.*such as 3.*3 classes, 0 to 2"
    ):
        objective.at(objective.layout.flatten(model))
    ignoring = nn.CrossEntropyLoss(ignore_index=-1)
    targets = targets.clamp(max=2)
    objective = qn.Objective(model, ignoring, (inputs, targets))
    assert torch.isfinite(objective.at(objective.layout.flatten(model)).value)


@pytest.mark.parametrize(
    "inputs, targets",
    [
        (torch.zeros(5, 4), torch.zeros(5, dtype=torch.long)),  # too many numbers
        (torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, dtype=torch.long)),
        (torch.zeros(5, 3), torch.zeros(4, dtype=torch.long)),
    ],
)
def test_what_the_model_or_the_loss_raises_says_at_which_batch(inputs, targets):
    good = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
    objective = qn.Objective(nn.Linear(3, 2), nn.CrossEntropyLoss(), [good, (inputs, targets)])
    w = objective.layout.flatten(objective.model)
    number = str(inputs.dtype).removeprefix("torch.")
    said = (
        "Objective: in the model or the loss, at batch 1 of data, with inputs "
        f"{tuple(inputs.shape)} {number} and targets {tuple(targets.shape)} int64"
    )
    for call in (objective, objective.at, objective.value_and_gradient):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            call(w)
        assert caught.value.__notes__ == [said]
