"""Layer-wise Gauss-Newton traces and diagonals against dense Jacobians and Hessians."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layer_networks import (
    CLASS_WEIGHT,
    LOSSES,
    NETS,
    Call,
    K,
    N,
    Net,
    assert_matches,
    at,
    build,
    classes,
    dense,
    sequence,
    tokens,
    uniform,
)
from scipy.stats import binom
from scipy.stats import t as student
from torch import nn

from quotientnet.curvature import (
    ggn_cost,
    ggn_diagonal,
    ggn_traces,
    ggn_traces_estimate,
    per_sample,
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETS)
def test_networks_against_dense_jacobians(name):
    net = NETS[name]
    model, data = build(net, classes)
    result = assert_matches(
        at(model, nn.CrossEntropyLoss(), data), dense(model, F.cross_entropy, data)
    )
    for parameter, way in net.ways.items():
        assert result.ways[parameter] == way
    assert {n for n, kind in result.kinds.items() if kind == "Gauss-Newton"} == set(
        net.curved
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("net", ["mlp", "conv2d", "shared"])
def test_losses_against_dense_hessians(name, net):
    loss, targets = LOSSES[name]
    model, data = build(NETS[net], targets)
    assert_matches(at(model, loss, data), dense(model, loss, data))


@pytest.mark.parametrize(
    "name", ["ce-weighted", "ce-probabilities", "ce-normalised", "mse"]
)
def test_outputs_with_positions(name):
    """Classes on axis 1, positions behind them: ``T (K − 1)`` backward passes a sample."""
    loss, targets = LOSSES[name]
    body = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Conv1d(3, K, 1))
    model, data = build(Net(lambda: body, (2, 4), {}), targets)
    assert_matches(at(model, loss, data), dense(model, loss, data))
    if name == "ce-weighted":
        assert ggn_cost(at(model, loss, data)).passes == 3 * (K - 1)


def test_binary_cross_entropy_of_probabilities():
    model, data = build(NETS["mlp"], uniform, transform=nn.Sigmoid())
    loss = nn.BCELoss(CLASS_WEIGHT)
    result = assert_matches(at(model, loss, data), dense(model, loss, data))
    assert set(result.kinds.values()) == {"Gauss-Newton"}


class Dictionary(nn.Module):
    """Outputs by name; the loss reads two of them, one of them with its samples last."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
        self.extra = nn.Linear(3, 2)

    def forward(self, x):
        return {"main": self.body(x), "unused": 2 * x, "extra": self.extra(x).T}


def _two_outputs(outputs, targets):
    z = torch.cat([outputs["main"], outputs["extra"].T], 1)
    return F.cross_entropy(torch.tanh(z), targets)


def test_outputs_in_a_dictionary():
    model, x = Dictionary().double(), torch.randn(6, 3).double()
    y = torch.tensor([0, 5, 2, 1, 4, 3])
    joined = Call(
        lambda m, x: (lambda o: torch.cat([o["main"], o["extra"].T], 1))(m.m(x)),
        m=model,
    )
    expected = dense(joined, lambda z, y: F.cross_entropy(torch.tanh(z), y), [(x, y)])
    expected = {name.removeprefix("m."): value for name, value in expected.items()}
    assert_matches(at(model, _two_outputs, [(x, y)]), expected)


def test_rows_of_outputs_that_belong_to_one_sample():
    """A language model that returns ``(N · T, K)`` for targets that it flattens too."""
    net = Net(
        lambda: nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, K), nn.Flatten(0, 1)),
        tokens,
        {},
    )

    def loss(z, y):
        return F.cross_entropy(z, y.flatten())

    model, data = build(net, lambda z, g: torch.randint(0, K, (N, 7), generator=g))
    assert_matches(at(model, loss, data), dense(model, loss, data))


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("multihead",)])
def test_labels_against_blocks_of_the_hessian(name):
    """Where the label says so, the trace is the Hessian's."""
    model, data = build(NETS[name], classes)
    loss, (x, y) = F.cross_entropy, data[0]
    result = ggn_traces(at(model, loss, data))
    theta = {n: p.detach() for n, p in model.named_parameters()}
    for tensor, kind in result.kinds.items():

        def value(p):
            return loss(
                torch.func.functional_call(model, {**theta, tensor: p}, (x,)), y
            )

        block = torch.func.hessian(value)(theta[tensor])
        trace = block.reshape(theta[tensor].numel(), -1).trace().item()
        if kind == "Hessian":
            scale = 1e-6 * result.total.value
            assert result.traces[tensor].value == pytest.approx(
                trace, rel=1e-9, abs=1e-9 * scale
            )
        elif name in ("gelu", "shared", "tied"):
            assert abs(result.traces[tensor].value - trace) > 1e-3 * abs(trace)


@pytest.mark.parametrize(
    "name", ["ce", "ce-sum", "ce-weighted", "ce-probabilities", "mse", "huber"]
)
def test_uneven_batches_add_up(name):
    loss, targets = LOSSES[name]
    model, data = build(NETS["conv2d"], targets, batches=(4, 1, 3))
    normalisers = [float(len(x)) for x, _ in data]
    if name == "ce-weighted":
        normalisers = [CLASS_WEIGHT[y].sum().item() for _, y in data]
    expected = dense(model, loss, data, normalisers)
    if name == "ce-sum":
        terms = [dense(model, loss, [batch]) for batch in data]
        expected = {key: sum(term[key] for term in terms) for key in expected}
    assert_matches(at(model, loss, data), expected)
    joined = tuple(torch.cat(each) for each in zip(*data))
    whole = ggn_traces(at(model, loss, [joined])).total.value
    assert ggn_traces(at(model, loss, data)).total.value == pytest.approx(
        whole, rel=1e-10
    )


def test_a_batch_without_counting_targets():
    loss = nn.CrossEntropyLoss(ignore_index=0)
    model, data = build(NETS["mlp"], classes, batches=(4, 3))
    empty = (data[0][0], torch.zeros(4, dtype=torch.long))
    for other in (loss, lambda z, y: loss(z, y)):
        expected = ggn_traces(at(model, loss, [data[1]])).total.value
        if other is loss:
            result = ggn_traces(at(model, other, [empty, data[1]]))
            assert result.total.value == pytest.approx(expected, rel=1e-10)


def test_frozen_parameters_have_no_trace():
    model, data = build(NETS["mlp"], classes)
    expected = dense(model, F.cross_entropy, data)
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    kept = {n: e for n, e in expected.items() if n not in ("0.weight", "4.bias")}
    assert_matches(at(model, F.cross_entropy, data), kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ce", "ce-normalised"])
@pytest.mark.parametrize("train", [False, True])
def test_estimate_is_unbiased_and_its_error_covers(name, train):
    """200 seeds, in batch normalisation's train mode too, where samples interact."""
    loss, targets = LOSSES[name]
    net = Net(
        lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, K)),
        (3,), {},
    )  # fmt: skip
    model, data = build(net, targets, batches=(6, 5))
    reference = dense(model.train(train), loss, data, [6.0, 5.0])
    point = at(model, loss, data)
    seeds, draws = 200, 10
    runs = [
        ggn_traces_estimate(
            point, draws=draws, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(seeds)
    ]
    for tensor, block in reference.items():
        exact = block.sum().item()
        estimates = [run.traces[tensor] for run in runs]
        if abs(exact) < 1e-12:  # a bias before a batch normalisation
            assert all(abs(e.value) < 1e-12 for e in estimates)
            continue
        values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
        spread = values.std().item() / seeds**0.5
        assert (
            abs(values.mean().item() - exact)
            < student.ppf(1 - 1e-4, seeds - 1) * spread
        )
        bound = student.ppf(0.95, draws - 1)
        covered = sum(abs(e.value - exact) <= bound * e.error for e in estimates)
        # 90 % of the intervals hold a Gaussian's mean; these draws are skewed: 80 % at least.
        assert covered >= binom.ppf(1e-4, seeds, 0.80)
        error = sum(e.error**2 for e in estimates) / seeds
        assert error == pytest.approx(values.var().item(), rel=0.6)


def test_one_draw_has_no_error():
    model, data = build(NETS["multihead"], classes)
    result = ggn_traces_estimate(at(model, F.cross_entropy, data), draws=1)
    assert result.total.error == float("inf") and not result.total.converged
    assert result.total.cost == 1


def test_estimate_labels_as_the_exact_traces_do():
    model, data = build(NETS["norms"], classes)
    point = at(model, F.cross_entropy, data)
    assert ggn_traces_estimate(point).kinds == ggn_traces(point).kinds


def _coupled(outputs, targets):
    return F.cross_entropy(outputs - outputs.mean(0), targets)


REFUSED = {
    "train-mode": ("image-norms", True, nn.CrossEntropyLoss(), classes, "'1' normalises.*eval"),
    "linear": ("mlp", False, lambda z, y: F.nll_loss(z, y), classes, "no second derivative"),
    "linear-known": ("mlp", False, nn.NLLLoss(), classes, "CrossEntropyLoss on logits"),
    "absolute": ("mlp", False, nn.L1Loss(), uniform, "no second derivative"),
    "coupled": ("mlp", False, _coupled, classes, "couples the samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    net, train, loss, targets, message = REFUSED[name]
    model, data = build(NETS[net], targets)
    with pytest.raises(ValueError, match=message):
        ggn_traces(at(model.train(train), loss, data))


def test_samples_that_interact_are_refused():
    model, data = build(
        Net(lambda: Call(lambda m, x: m.a(x - x.mean(0)), a=nn.Linear(3, K)), (3,), {}),
        classes,
    )
    with pytest.raises(ValueError, match="do samples interact"):
        ggn_traces(at(model, F.cross_entropy, data))


def test_an_input_that_is_overwritten_is_left_to_autograd_to_refuse():
    def forward(m, x):
        h = 1 * x
        z = m.a(h)
        h.relu_()
        return z

    net = Net(lambda: Call(forward, a=nn.Linear(3, K)), (3,), {})
    model, data = build(net, classes)
    with pytest.raises(RuntimeError, match="inplace operation"):
        ggn_traces(at(model, F.cross_entropy, data))


@pytest.mark.parametrize("name", ["shared", "multihead"])
def test_single_samples_in_several_steps(name, monkeypatch):
    monkeypatch.setattr(per_sample, "_WORKING_SET", 1)
    model, data = build(NETS[name], classes)
    assert_matches(
        at(model, F.cross_entropy, data), dense(model, F.cross_entropy, data)
    )


def test_draws_must_be_positive():
    model, data = build(NETS["mlp"], classes)
    with pytest.raises(ValueError, match="draws"):
        ggn_traces_estimate(at(model, F.cross_entropy, data), draws=0)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_users_changes(fails):
    model, data = build(NETS["image-norms"], classes)
    model[6].train()
    if fails:
        data += [(data[0][0], data[0][1].clone())]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    point, state = at(model, F.cross_entropy, data), torch.get_rng_state()
    if fails:
        data[1][1].fill_(99)
    for function in (ggn_traces, ggn_diagonal, ggn_traces_estimate, ggn_cost):
        if fails and function is not ggn_cost:
            with pytest.raises((RuntimeError, IndexError, ValueError)):
                function(point)
        else:
            function(point)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_chunks_and_the_cost_beforehand():
    model, data = build(NETS["conv2d"], classes, batches=(7,))
    point = at(model, F.cross_entropy, data)
    results = [
        ggn_traces(point, chunk=chunk).total.value for chunk in (1, 3, 100, None)
    ]
    assert results == pytest.approx([results[0]] * 4, rel=1e-12)
    cost = ggn_cost(point)
    assert (cost.passes, cost.columns, cost.chunk) == (K - 1, K - 1, 7)
    assert 1 < cost.gradients < 10 and cost.ways["0.weight"] == "convolution"


def test_a_position_sum_by_gram_matrices_and_explicitly():
    """Few positions of many channels, and many of few: both ways round the trace."""
    for length, width in ((3, 40), (40, 3)):
        layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, K)
        net = Net(lambda: sequence(*layers), (length, width), {})
        model, data = build(net, classes, batches=(3,))
        assert_matches(
            at(model, F.cross_entropy, data), dense(model, F.cross_entropy, data)
        )


def test_the_cost_of_a_loss_without_closed_form():
    model, data = build(NETS["mlp"], classes)
    cost = ggn_cost(at(model, lambda z, y: F.cross_entropy(z, y), data))
    assert cost.passes == ggn_cost(at(model, nn.CrossEntropyLoss(), data)).passes
