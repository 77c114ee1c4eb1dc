"""Networks and losses with their Gauss-Newton matrices, for the tests of layer traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quotientnet as qn
from quotientnet.curvature import (
    ggn_diagonal,
    ggn_traces,
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


def tokens(count):
    return torch.randint(0, 6, (count, 7), generator=torch.Generator().manual_seed(3))


def sequence(*layers):
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
        lambda: sequence(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, K)),
        (7, 3), {"body.0.weight": "linear", "body.2.weight": "linear"},
        ("body.0.weight", "body.0.bias"),
    ),
    "sequence-in-place": Net(
        lambda: sequence(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, K)), (7, 3), {},
        ("body.0.weight", "body.0.bias"),
    ),
    "sequence-first": Net(_sequence_first, (7, 3), {"layer.weight": "linear"}),
    "rows-of-samples": Net(lambda: _flattened(True), (7, 3), {"layer.weight": "linear"}),
    "rows-of-steps": Net(lambda: _flattened(False), (7, 3), {"layer.weight": "linear"}),
    "addmm": Net(
        lambda: sequence(Product(3, 5), nn.ReLU(), Product(5, K)), (7, 3),
        {"body.0.weight": "linear", "body.2.bias": "linear"},
    ),
    "embedding": Net(
        lambda: sequence(
            nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)
        ),
        tokens, {"body.0.weight": "embedding"},
    ),
    "positions": Net(_positions, tokens, {"table.weight": "embedding", "place": "scaling"}),
    "norms": Net(
        lambda: sequence(
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
        lambda: sequence(Attention(4), nn.Linear(4, K)), (5, 4), {"body.0.query.weight": "linear"},
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
