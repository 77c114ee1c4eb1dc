"""What draws random numbers, on a small network; run with names, it prints a digest of each."""

import json
import sys

import torch
from cases import NETWORKS
from torch import nn

import quotientnet as qn
from quotientnet import curvature, sharpness, symmetry
from quotientnet.testing import fingerprint
from quotientnet.training import SGDS

NAME = "mlp-without-bias"
KEYS = ["Hessian, trace", "ε-sharpness, box, 20 directions", "BN-sharpness", "minimum sharpness"]


def _point():
    objective = NETWORKS[NAME].objective()
    return objective.at(objective.layout.flatten(objective.model))


def _symmetry():
    return qn.discover(NETWORKS[NAME].build(), NETWORKS[NAME].data()[0])


def _report():
    return sharpness.report(_point(), _symmetry(), points=1, measures=KEYS, seed=3)


def _alternative():
    return sharpness.alternative_normalised_sharpness(_point(), samples=2, max_iterations=2)


def _numerically():
    network = NETWORKS["one-unit"]
    found = symmetry.discover_numerically(network.build(), network.data()[0])
    return found.group.to_dense(), found.group.names


def _sgds():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model = model.double()
    x, y = NETWORKS["mlp"].data()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SGDS(model, base, qn.discover(model, x), search_steps=1)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(3)]
    return losses, [p.detach() for p in model.parameters()]


QUICK = ["lanczos", "Hutchinson", "traces by signs", "discover", "SGDS"]
"""What another process repeats in every run of the tests."""

FUNCTIONS = {
    "report": _report,
    "power method": lambda: curvature.power_method(_point().hessian),
    "lanczos": lambda: curvature.lanczos(_point().hessian, 2),
    "spectral density": lambda: curvature.spectral_density(_point().hessian, samples=2),
    "Hutchinson": lambda: curvature.hutchinson_trace(_point().hessian, samples=9),
    "Hutch++": lambda: curvature.hutch_plus_plus_trace(_point().hessian, samples=9),
    "diagonal": lambda: curvature.hutchinson_diagonal(_point().hessian, samples=9),
    "traces by signs": lambda: curvature.ggn_traces_estimate(_point(), draws=3),
    "alternative": _alternative,
    "discover": lambda: (_symmetry().group.to_dense(), _symmetry().group.names),
    "discover_numerically": _numerically,
    "SGDS": _sgds,
}
"""By name; each is called without arguments, with fresh models and generators."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: fingerprint(FUNCTIONS[name]()) for name in sys.argv[1:]}))
