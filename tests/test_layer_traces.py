"""Layer-wise Gauss-Newton traces and diagonals against dense Jacobians and Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from scipy.stats import t as student
from torch import nn

import quotientnet as qn
from quotientnet.curvature import (
    ggn_cost,
    ggn_diagonal,
    ggn_traces,
    ggn_traces_estimate,
    per_sample,
)

N, K = 5, 4


class Call(nn.Module):
    """Children by name, and a function of them and the inputs."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


class Attention(nn.Module):
    """One head, written by hand."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return scores.softmax(-1) @ self.value(x)


class Product(nn.Module):
    """``bias + x W`` by addmm, as in GPT-2."""

    def __init__(self, a, b):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(a, b))
        self.bias = nn.Parameter(torch.randn(b))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Net:
    """A network, its inputs, and how its tensors are computed.

    Attributes:
        make: Builds it.
        inputs: The shape of a sample, or a function that makes a batch.
        ways: For some parameters, the way that is expected.
        curved: Parameters that must be labelled "Gauss-Newton"; all others "Hessian".
    """

    make: Callable[[], nn.Module]
    inputs: object
    ways: dict
    curved: tuple = ()


def _tokens(count):
    return torch.randint(0, 6, (count, 7), generator=torch.Generator().manual_seed(3))


def _sequence(*layers):
    """Layers on ``(N, T, C)``, then a mean over ``T``."""
    return Call(lambda m, x: m.body(x).mean(1), body=nn.Sequential(*layers))


def _tied():
    model = Call(
        lambda m, x: m.head(torch.relu(m.second(torch.relu(m.first(x))))),
        first=nn.Linear(4, 4), second=nn.Linear(4, 4), head=nn.Linear(4, K),
    )  # fmt: skip
    model.second.weight = model.first.weight
    return model


def _shared():
    return Call(
        lambda m, x: m.head(m.layer(torch.relu(m.layer(x)))),
        layer=nn.Linear(4, 4), head=nn.Linear(4, K),
    )  # fmt: skip


def _multihead():
    return Call(
        lambda m, x: m.head(m.attention(x, x, x, need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, K),
    )  # fmt: skip


def _sequence_first():
    return Call(
        lambda m, x: m.head(torch.relu(m.layer(x.transpose(0, 1)))).mean(0),
        layer=nn.Linear(3, 5), head=nn.Linear(5, K),
    )  # fmt: skip


def _flattened(major: bool):
    def forward(m, x):
        t = x.shape[1]
        rows = (x if major else x.transpose(0, 1)).reshape(-1, x.shape[-1])
        out = m.head(torch.relu(m.layer(rows)))
        shape = (-1, t, K) if major else (t, -1, K)
        return out.reshape(shape).mean(1 if major else 0)

    return Call(forward, layer=nn.Linear(3, 5), head=nn.Linear(5, K))


def _affine():
    return Call(
        lambda m, x: m.head(torch.relu(m.a(x)) * m.scale + m.shift),
        a=nn.Linear(3, 4), head=nn.Linear(4, K),
        scale=nn.Parameter(torch.rand(4)), shift=nn.Parameter(torch.rand(4)),
    )  # fmt: skip


def _positions():
    return Call(
        lambda m, x: m.head(torch.relu(m.table(x) + m.place)).mean(1),
        table=nn.Embedding(6, 4), head=nn.Linear(4, K),
        place=nn.Parameter(torch.rand(1, 7, 4)),
    )  # fmt: skip


def _convolutional(*layers, flat):
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(flat, K))


NETS = {
    "mlp": Net(
        lambda: nn.Sequential(
            nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, K)
        ),
        (3,), {"0.weight": "linear", "4.bias": "linear"},
    ),
    "gelu": Net(
        lambda: nn.Sequential(
            nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, K)
        ),
        (3,), {"0.weight": "linear"}, ("0.weight", "0.bias"),
    ),
    "in-place": Net(
        lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, K)),
        (3,), {"0.weight": "linear"},
    ),
    "conv2d": Net(
        lambda: _convolutional(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 2, stride=2, bias=False), flat=16,
        ),
        (2, 8, 8), {"0.weight": "convolution", "3.weight": "convolution"},
    ),
    "dilated-grouped": Net(
        lambda: _convolutional(
            nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=(2, 1), stride=(1, 2), groups=2),
            flat=6 * 6 * 4,
        ),
        (4, 6, 6), {"0.weight": "convolution"},
    ),
    "depthwise, one position": Net(
        lambda: _convolutional(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), flat=4),
        (4, 3, 3), {"0.weight": "convolution"},
    ),
    "grouped transposed, one position": Net(
        lambda: _convolutional(nn.ConvTranspose2d(4, 6, 1, groups=2), flat=6),
        (4, 1, 1), {"0.weight": "transposed convolution"},
    ),
    "depthwise-reflect": Net(
        lambda: _convolutional(
            nn.Conv2d(3, 6, 3, padding=1, groups=3, padding_mode="reflect"), nn.AvgPool2d(2),
            flat=24,
        ),
        (3, 4, 4), {"0.weight": "convolution"},
    ),
    "same-padding": Net(
        lambda: _convolutional(nn.Conv1d(2, 3, 4, padding="same"), flat=18),
        (2, 6), {"0.weight": "convolution"},
    ),
    "conv3d": Net(
        lambda: _convolutional(nn.Conv3d(2, 2, 2), flat=2 * 8), (2, 3, 3, 3),
        {"0.weight": "convolution"},
    ),
    "long-conv1d": Net(
        lambda: _convolutional(nn.Conv1d(8, 9, 3, stride=2), flat=18), (8, 5),
        {"0.weight": "convolution"},
    ),
    "transposed": Net(
        lambda: _convolutional(
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            flat=6 * 36,
        ),
        (4, 3, 3), {"0.weight": "transposed convolution"},
    ),
    "transposed-dilated": Net(
        lambda: _convolutional(
            nn.ConvTranspose1d(2, 3, 3, dilation=3, output_padding=2, stride=2), flat=3 * 15
        ),
        (2, 4), {"0.weight": "per sample"},
    ),
    "sequence": Net(
        lambda: _sequence(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, K)),
        (7, 3), {"body.0.weight": "linear", "body.2.weight": "linear"},
        ("body.0.weight", "body.0.bias"),
    ),
    "sequence-in-place": Net(
        lambda: _sequence(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, K)), (7, 3), {},
        ("body.0.weight", "body.0.bias"),
    ),
    "sequence-first": Net(_sequence_first, (7, 3), {"layer.weight": "linear"}),
    "rows-of-samples": Net(lambda: _flattened(True), (7, 3), {"layer.weight": "linear"}),
    "rows-of-steps": Net(lambda: _flattened(False), (7, 3), {"layer.weight": "linear"}),
    "addmm": Net(
        lambda: _sequence(Product(3, 5), nn.ReLU(), Product(5, K)), (7, 3),
        {"body.0.weight": "linear", "body.2.bias": "linear"},
    ),
    "embedding": Net(
        lambda: _sequence(
            nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)
        ),
        _tokens, {"body.0.weight": "embedding"},
    ),
    "positions": Net(_positions, _tokens, {"table.weight": "embedding", "place": "scaling"}),
    "norms": Net(
        lambda: _sequence(
            nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 6), nn.RMSNorm(6),
            nn.PReLU(), nn.Linear(6, K),
        ),
        (7, 3), {f"body.{i}.weight": "scaling" for i in (1, 4, 5)},
        tuple(f"body.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")),
    ),
    "image-norms": Net(
        lambda: _convolutional(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Conv2d(4, 4, 2),
            nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), flat=36,
        ),
        (2, 6, 6), {f"{i}.weight": "scaling" for i in (1, 4, 6, 7)},
        tuple(f"{i}.{kind}" for i in (0, 1, 3, 4) for kind in ("weight", "bias")),
    ),
    "affine": Net(_affine, (3,), {"scale": "scaling", "shift": "scaling"}),
    "attention": Net(
        lambda: _sequence(Attention(4), nn.Linear(4, K)), (5, 4), {"body.0.query.weight": "linear"},
        ("body.0.query.weight", "body.0.query.bias", "body.0.key.weight", "body.0.key.bias"),
    ),
    "multihead": Net(
        _multihead, (5, 4), {"attention.in_proj_weight": "per sample", "head.weight": "linear"},
        ("attention.in_proj_weight", "attention.in_proj_bias"),
    ),
    "tied": Net(
        _tied, (4,), {"first.weight": "per sample", "second.bias": "linear"}, ("first.weight",)
    ),
    "shared": Net(
        _shared, (4,), {"layer.weight": "per sample", "head.weight": "linear"},
        ("layer.weight",),
    ),
}  # fmt: skip


def classes(outputs, generator):
    return torch.randint(0, outputs.shape[1], outputs[:, 0].shape, generator=generator)


def uniform(outputs, generator):
    return torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype)


def probabilities(outputs, generator):
    return uniform(outputs, generator).softmax(1)


def normalised(outputs, targets):
    """A cross-entropy that does not depend on the norm of the outputs."""
    return F.cross_entropy(3 * outputs / outputs.norm(dim=1, keepdim=True), targets)


def huber(outputs, targets):
    return F.huber_loss(outputs, targets, reduction="sum") / len(targets)


CLASS_WEIGHT = torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64)
LOSSES = {
    "ce": (nn.CrossEntropyLoss(), classes),
    "ce-function": (F.cross_entropy, classes),
    "ce-sum": (nn.CrossEntropyLoss(reduction="sum"), classes),
    "ce-weighted": (nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.2), classes),
    "ce-ignored": (nn.CrossEntropyLoss(CLASS_WEIGHT, ignore_index=2), classes),
    "ce-probabilities": (
        nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1),
        probabilities,
    ),
    "ce-custom": (lambda z, y: F.cross_entropy(z, y, weight=CLASS_WEIGHT), classes),
    "ce-normalised": (normalised, classes),
    "mse": (nn.MSELoss(), uniform),
    "mse-sum": (nn.MSELoss(reduction="sum"), uniform),
    "logits": (
        nn.BCEWithLogitsLoss(CLASS_WEIGHT, pos_weight=CLASS_WEIGHT + 1),
        uniform,
    ),
    "huber": (huber, uniform),
}


def build(net: Net, targets, batches=(N,), transform=None):
    """A seeded model in float64 and eval mode, with its batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net.make().double().eval()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(0.2 * torch.rand_like(tensor))
        if transform is not None:
            model = nn.Sequential(model, transform)
        data = []
        for count in batches:
            x = (
                net.inputs(count)
                if callable(net.inputs)
                else torch.randn(count, *net.inputs).double()
            )
            generator = torch.Generator().manual_seed(count)
            with torch.no_grad():
                data.append((x, targets(model(x), generator)))
    return model, data


def at(model, loss, data):
    """The model's own point."""
    objective = qn.Objective(model, loss, data)
    return objective.at(objective.layout.flatten(model))


def dense(model, loss, data, normalisers=None):
    """The blocks' diagonals, ``Σ_b n_b J_bᵀ ∇²ℓ_b J_b / Σ_b n_b``, by Jacobians of all outputs."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    normalisers = normalisers or [1.0] * len(data)
    found = {name: 0.0 for name in theta}
    for (x, y), n in zip(data, normalisers):

        def outputs(parameters):
            return torch.func.functional_call(
                model,
                {**parameters, **{k: b.clone() for k, b in model.named_buffers()}},
                (x,),
            )

        z = outputs(theta).detach()
        hessian = torch.func.hessian(lambda z: loss(z, y))(z).reshape(z.numel(), -1)
        jacobian = torch.func.jacrev(outputs, chunk_size=1)(theta)
        for name, j in jacobian.items():
            j = j.reshape(z.numel(), -1)
            found[name] += n * ((hessian @ j) * j).sum(0)
    return {name: f / sum(normalisers) for name, f in found.items()}


def assert_matches(point, expected):
    """Traces and diagonals agree with dense ones to 1e-10 of the largest."""
    result, diagonal = ggn_traces(point, chunk=2), point.layout.unflatten(
        ggn_diagonal(point)
    )
    assert list(result.traces) == list(expected)
    largest = max(reference.abs().sum().item() for reference in expected.values())
    for name, reference in expected.items():
        scale = max(reference.abs().sum().item(), 1e-6 * largest)
        assert result.traces[name].value == pytest.approx(
            reference.sum().item(), abs=1e-10 * scale
        )
        assert (diagonal[name].flatten() - reference).abs().max() <= 1e-10 * scale
    total = sum(r.sum().item() for r in expected.values())
    assert result.total.value == pytest.approx(total, rel=1e-9)
    return result


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
        _tokens,
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
        net = Net(lambda: _sequence(*layers), (length, width), {})
        model, data = build(net, classes, batches=(3,))
        assert_matches(
            at(model, F.cross_entropy, data), dense(model, F.cross_entropy, data)
        )


def test_the_cost_of_a_loss_without_closed_form():
    model, data = build(NETS["mlp"], classes)
    cost = ggn_cost(at(model, lambda z, y: F.cross_entropy(z, y), data))
    assert cost.passes == ggn_cost(at(model, nn.CrossEntropyLoss(), data)).passes
