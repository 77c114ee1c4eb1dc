"""Every network, group and manifold of the tests, lazily made, seeded, with ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import chains
import torch
from torch import nn

import quotientnet as qn


def _mlp(*widths, bias=True, activation=nn.ReLU):
    layers = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        layers += [nn.Linear(a, b, bias=bias)] + [activation()] * (i < len(widths) - 2)
    return nn.Sequential(*layers)


def _conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def _normalised():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=1e-30), nn.ReLU(),
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-30), nn.LeakyReLU(),
        nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip


def _sequence():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv1d(4, 1, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A chain network with the shape of its inputs; three classes or outputs."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]

    def build(self, dtype=torch.float64) -> nn.Module:
        """The network with seeded parameters, none of them zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = self.make().to(dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
                for buffer in model.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(torch.rand_like(buffer) + 0.5)
        return model

    def data(self, count=12, dtype=torch.float64):
        """Seeded inputs and class targets."""
        generator = torch.Generator().manual_seed(11)
        inputs = torch.randn(count, *self.inputs, generator=generator, dtype=dtype)
        return inputs, torch.randint(0, 3, (count,), generator=generator)

    def objective(self, dtype=torch.float64, train=True) -> qn.Objective:
        """The cross-entropy of the network on its data."""
        return qn.Objective(
            self.build(dtype).train(train),
            nn.CrossEntropyLoss(),
            self.data(dtype=dtype),
        )

    def layout(self) -> qn.ParameterLayout:
        """Its coordinates."""
        return qn.ParameterLayout.from_module(self.build())


NETWORKS = {
    "mlp": Network(lambda: _mlp(4, 6, 5, 3), (4,)),
    "mlp-without-bias": Network(lambda: _mlp(3, 4, 3, bias=False), (3,)),
    "deep": Network(lambda: _mlp(3, 4, 4, 4, 4, 3), (3,)),
    "one-unit": Network(lambda: _mlp(2, 1, 1, 3, activation=nn.LeakyReLU), (2,)),
    "one-layer": Network(lambda: _mlp(2, 3), (2,)),
    "conv": Network(_conv, (2, 8, 8)),
    "batch-norm": Network(_normalised, (2, 8, 8)),
    "conv1d": Network(_sequence, (2, 8)),
}


class FourNormQuotient(qn.QuotientManifold):
    """A user's manifold from a frame alone: each tensor is measured by its 4-norm."""

    def frame(self, x):
        pieces = [
            p.pow(4).sum(-1, keepdim=True).pow(-0.25).expand_as(p)
            for p in self.layout.split(x)
        ]
        d = torch.cat(pieces, -1)
        return self._frozen.fill(d, 1.0)


def _zeros(layout):
    """A point with the whole of one tensor and a few entries of the others zero."""
    w = torch.ones(layout.size, dtype=torch.float64)
    w[layout.entries[1].slice] = 0
    w[::7] = 0
    return w


@dataclass(frozen=True)
class Case:
    """A manifold on a network."""

    network: str
    make: Callable[[qn.ParameterLayout], qn.QuotientManifold]

    def build(self) -> qn.QuotientManifold:
        """The manifold."""
        return self.make(NETWORKS[self.network].layout())


KINDS = {
    "layer-scale": lambda layout: qn.LayerScaleQuotient(
        chains.layer_scale_group(layout)
    ),
    "node-wise": lambda layout: qn.NodeWiseQuotient(chains.node_wise_group(layout)),
    "coarsest": lambda layout: qn.LogPolarQuotient(chains.node_wise_group(layout)),
    "filters": lambda layout: qn.LogPolarQuotient(
        chains.layer_scale_group(layout), "filters"
    ),
    "balanced": lambda layout: qn.BalancedQuotient(chains.node_wise_group(layout)),
}
CASES = {
    f"{kind}-{name}": Case(name, make)
    for name in NETWORKS
    for kind, make in KINDS.items()
}
CASES |= {
    "layer-scale-zeros": Case(
        "mlp",
        lambda g: qn.LayerScaleQuotient(
            chains.layer_scale_group(g), frozen_zeros=_zeros(g)
        ),
    ),
    "node-wise-zeros": Case(
        "mlp",
        lambda g: qn.NodeWiseQuotient(
            chains.node_wise_group(g), frozen_zeros=_zeros(g)
        ),
    ),
    "node-wise-zeros-conv": Case(
        "conv",
        lambda g: qn.NodeWiseQuotient(
            chains.node_wise_group(g), frozen_zeros=_zeros(g)
        ),
    ),
    "balanced-layer-scale": Case(
        "conv", lambda g: qn.BalancedQuotient(chains.layer_scale_group(g))
    ),
    "frame-only": Case("mlp", lambda g: FourNormQuotient(chains.layer_scale_group(g))),
    "frame-only-conv": Case(
        "conv", lambda g: FourNormQuotient(chains.layer_scale_group(g))
    ),
}


def _directions(network, frozen=None, **options):
    """Directions at a network with batch normalisation, or with filter scales by hand."""
    layout = NETWORKS[network].layout()
    w = layout.flatten(NETWORKS[network].build())
    if network == "batch-norm":
        names = ("0.weight", "0.bias"), ("3.weight",)
    else:
        names = tuple((e.name,) for e in layout.entries if len(e.shape) > 1)
    units = [
        qn.Unit(each[0], layout[each[0]].shape[0], tuple(qn.Scale(n, 0) for n in each))
        for each in names
    ]
    group = qn.ScalingGroup.from_units(layout, units)
    mask = None if frozen is None else torch.arange(layout.size) % frozen == 0
    return qn.ProductOblique.at(w, group, frozen=mask, **options)


def _columns():
    """Blocks of columns, of a tensor's middle axis and of whole tensors; nothing is left over."""
    layout = qn.ParameterLayout({"a": (3, 4), "b": (2, 3, 2), "c": (5,), "d": ()})
    b = [[[4], [-1], [0]]]
    blocks = {"a": [[0, 1, 2, 0]], "b": b, "c": [3], "d": 4}
    return qn.ProductOblique(layout, torch.tensor([1.0, 2.0, 0.7, 3.0, 1.5]), blocks)


DIRECTIONS = {
    "filters": lambda: _directions("batch-norm"),
    "filters-frozen": lambda: _directions("batch-norm", frozen=4, rest_radius=2.0),
    "rows": lambda: _directions("mlp"),
    "conv": lambda: _directions("conv"),
    "columns": _columns,
    "one-sphere": lambda: qn.ProductOblique(NETWORKS["mlp"].layout(), [], {}),
}
"""Products of spheres, by name."""
