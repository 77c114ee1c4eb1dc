"""Recorded programs: when they are used, and when they are not."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import NETWORKS
from test_products import close, problem
from torch import nn

import quotientnet as qn
from quotientnet.linearise import NotTraceable, linearise


def recorded(point):
    """Whether a point's Hessian is by a program now."""
    return point.hessian._kept is not None and point.hessian._kept.recorded


def early(monkeypatch, cost=1e-3):
    """Recording costs next to nothing: from the second product on it pays."""
    monkeypatch.setattr(qn.programs, "_BYTES_AN_OPERATION", cost)
    monkeypatch.setattr(qn.programs, "_LEAST", 0)


def test_auto_records_once_it_pays_and_says_the_same(monkeypatch):
    early(monkeypatch)
    objective, w = problem("overlapping pools", "auto")
    p, v = objective.at(w), torch.ones(len(w), dtype=torch.float64)
    first = p.hessian @ v
    assert not recorded(p)
    assert close(p.hessian @ v, first, 1e-14) and recorded(p)
    clone = pickle.loads(pickle.dumps(objective))
    assert close(clone.at(w).hessian @ v, first, 1e-14)
    again = objective.at(1.1 * w)  # recorded for every point
    monkeypatch.setattr(qn.programs, "linearise", None)
    other = problem("overlapping pools", "graph")[0].at(1.1 * w)
    assert close(again.hessian @ v, other.hessian @ v, 1e-14) and recorded(again)


def test_auto_leaves_alone_what_cannot_be_recorded(monkeypatch):
    early(monkeypatch, 0.0)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x):
            h = self.layer(x)
            return h.tanh() if float(h.detach().sum()) > -1e9 else h

    model, data = Reads(), NETWORKS["mlp"].data()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    w = objective.layout.flatten(model)
    p, v = objective.at(w), torch.ones(15, dtype=torch.float64)
    assert close(p.hessian @ v, torch.func.hessian(lambda u: by_hand(u, data))(w) @ v)
    assert not recorded(p)
    strict = qn.Objective(model, nn.CrossEntropyLoss(), data, products="record").at(w)
    with pytest.raises(
        ValueError, match="cannot record this model .* products='graph'"
    ):
        strict.hessian @ v


def by_hand(u, data):
    """The loss of the model above."""
    inputs, targets = data
    outputs = torch.tanh(inputs @ u[:12].view(3, 4).T + u[12:])
    return F.cross_entropy(outputs, targets)


def test_a_program_that_disagrees_is_not_used(monkeypatch):
    early(monkeypatch, 0.0)
    apply = qn.linearise.Linearised.apply
    monkeypatch.setattr(
        qn.linearise.Linearised,
        "apply",
        lambda self, kept, v: 1.001 * apply(self, kept, v),
    )
    objective, w = problem("layer norm", "auto")
    p, v = objective.at(w), torch.ones(len(w), dtype=torch.float64)
    expected = problem("layer norm")[0].at(w).hessian @ v
    for _ in range(3):
        assert close(p.hessian @ v, expected, 1e-14) and not recorded(p)


@pytest.mark.parametrize("batches", [1, 2])
def test_python_numbers_computed_from_data_are_not_kept(monkeypatch, batches):
    """The number of targets that count, read in Python, is one batch's own."""
    early(monkeypatch)

    def loss(outputs, targets):
        counted = targets != -1
        squares = ((outputs - 1) ** 2).sum(1) * counted
        return squares.sum() / max(len(counted.nonzero()), 1)

    inputs, targets = NETWORKS["mlp"].data()
    targets[[1, 7, 8, 9]] = -1
    data = list(zip(inputs.chunk(batches), targets.chunk(batches)))
    model = NETWORKS["mlp"].build()
    auto = qn.Objective(model, loss, data).at(
        qn.ParameterLayout.from_module(model).flatten(model)
    )
    plain = qn.Objective(model, loss, data, products="graph").at(auto.w)
    v = torch.linspace(-1, 1, len(auto.w), dtype=torch.float64)
    for _ in range(4):
        assert close(auto.hessian @ v, plain.hessian @ v)
    masked = qn.Objective(
        model, lambda z, y: z[y != -1].pow(2).mean(), data, products="record"
    )
    with pytest.raises(ValueError, match="depends on values"):
        masked.at(auto.w).hessian @ v


@pytest.mark.parametrize("way", ["auto", "record"])
def test_a_loss_that_has_changed_is_noticed_at_the_next_point(monkeypatch, way):
    early(monkeypatch)
    model, data, heat = NETWORKS["mlp"].build(), NETWORKS["mlp"].data(), [1.0]

    def loss(outputs, targets):
        return F.cross_entropy(outputs / heat[0], targets)

    objective = qn.Objective(model, loss, data, products=way)
    w = objective.layout.flatten(model)
    v = torch.linspace(-1, 1, len(w), dtype=torch.float64)
    p = objective.at(w)
    for _ in range(3):
        p.hessian @ v
    assert recorded(p)
    heat[0] = 2.0
    if way == "record":
        with pytest.raises(
            ValueError, match="differs .* from the loss: something beside"
        ):
            objective.at(w).hessian @ v
        return
    expected = qn.Objective(model, loss, data, products="graph").at(w).hessian @ v
    assert close(objective.at(w).hessian @ v, expected)


def test_nothing_is_kept_beyond_the_memory_allowed(monkeypatch):
    objective, w = problem("conv1d", "auto")
    objective = qn.Objective(
        objective.model, nn.MSELoss(), objective.data[0], memory=100
    )
    p = objective.at(w)
    expected = problem("conv1d")[0].at(w).hessian @ w
    assert close(p.hessian @ w, expected, 1e-14) and p.hessian._kept is None
    recorded_here = []
    linearise = qn.programs.linearise
    early(monkeypatch)
    monkeypatch.setattr(
        qn.programs, "linearise", lambda *a: recorded_here.append(1) or linearise(*a)
    )
    for _ in range(4):
        assert close(p.hessian @ w, expected, 1e-14) and p.hessian._kept is None
    assert len(recorded_here) == 1  # tried once, too large, and never again
    with pytest.raises(ValueError, match="memory must not be negative"):
        qn.Objective(objective.model, nn.MSELoss(), objective.data[0], memory=-1)
    with pytest.raises(ValueError, match="products must be one of 'auto', 'graph'"):
        qn.Objective(objective.model, nn.MSELoss(), objective.data[0], products="fast")


def test_programs_refuse_what_is_not_pure():
    v = torch.ones(3)
    with pytest.raises(NotTraceable, match="draws random numbers"):
        linearise(lambda v, x: ((), v * torch.rand_like(x)), v, (v,))
    with pytest.raises(NotTraceable):
        linearise(lambda v, x: ((), v * float(x.sum())), v, (v,))
    constant = linearise(lambda v, x: ((x + 1,), torch.zeros_like(x)), v, (v,))
    outputs, kept = constant.prepare(v)
    assert torch.equal(outputs[0], v + 1)
    assert torch.equal(constant.apply(kept, v), torch.zeros(3))
