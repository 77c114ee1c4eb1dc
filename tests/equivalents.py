"""Networks with losses near a minimum, and what one checks on equivalent ones."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES
from hypothesis import Phase, settings
from torch import nn

import quotientnet as qn

LAW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
DRAWN = settings(LAW, max_examples=25, phases=[Phase.generate])

SOME = [
    "mlp", "linear mlp", "lenet", "conv1d", "abs", "normalised mlp", "layer normalisation",
    "weight normalisation", "residual", "resnet", "resnet, normalised", "gated product", "split",
    "powers", "deep tied autoencoder", "scaled positions", "linear attention", "relu6",
    "checkpointed", "offset in a concatenation",
]  # fmt: skip


def mlp(*widths, bias=True, activation=nn.ReLU, seed=0):
    """A seeded chain in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b, bias=bias), activation()]
        model = nn.Sequential(*layers[:-1]).double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p)
    return model


def problem(model, inputs, noise=0.1, seed=1):
    """The squared distance to the model's own outputs and noise; near a minimum if small."""
    generator = torch.Generator().manual_seed(seed)
    clean = outputs(model, inputs)
    noise = noise * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return qn.Objective(model, nn.MSELoss(), (inputs, clean + noise))


def architecture(name, noise=0.1):
    """A network of every kind in train mode, its inputs, its symmetry and a loss."""
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    return model, inputs, qn.discover(model, inputs), problem(model, inputs, noise)


def chain(*widths, noise=0.0, **options):
    """A chain at an exact minimum."""
    model = mlp(*widths, **options)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(20, widths[0], generator=generator, dtype=torch.float64)
    return (
        model,
        inputs,
        qn.discover(model, inputs).group,
        problem(model, inputs, noise),
    )


def hessian(model, objective):
    """The Hessian by autograd on the model itself: no layout, no operator."""
    model = copy.deepcopy(model)  # a forward in train mode moves running statistics
    names, parameters = zip(*model.named_parameters())
    sizes = [p.numel() for p in parameters]
    ((inputs, targets),) = objective.data

    def loss(w):
        pieces = [v.view_as(p) for v, p in zip(w.split(sizes), parameters)]
        tensors = dict(zip(names, pieces))
        outputs = torch.func.functional_call(model, tensors, (inputs,))
        return objective.loss(outputs, targets)

    w = torch.cat([p.detach().reshape(-1) for p in parameters])
    return torch.autograd.functional.hessian(loss, w)


def outputs(model, inputs):
    """Its outputs, the same at each call; nothing of the model moves."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return copy.deepcopy(model)(inputs)


def same_function(a, b, inputs, tolerance=1e-9):
    """Whether two models have the same outputs."""
    before, after = outputs(a, inputs), outputs(b, inputs)
    return (after - before).abs().max() <= tolerance * before.abs().max()


@pytest.fixture(autouse=True)
def seeded():
    """Modules made here have the same parameters at each run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
