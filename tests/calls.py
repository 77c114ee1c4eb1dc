"""Public calls that are made any number of times, and what a process keeps of them."""

import copy
import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import quotientnet as qn

ONES = (
    "group: act", "group: adjoint", "value", "gradient", "gradient by autograd", "Hessian",
    "Hessian at a new point", "Gauss-Newton", "traces of layers", "trace by signs",
    "canonical form", "transform", "training", "discover", "verify_sound", "report",
)  # fmt: skip
"""Calls of which there is one each."""
CLOSED = "inner", "proju", "proju elsewhere", "egrad2rgrad", "retr", "transp"
"""Operations that all quotients have."""


def calls():
    """Functions by name, all on one network, its data and its group."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    ).double()
    data = torch.randn(16, 8).double(), torch.arange(16) % 3
    function = qn.Objective(model, nn.CrossEntropyLoss(), data, products="graph")
    symmetry = qn.discover(model, data[0])
    group, w = symmetry.group, function.layout.flatten(model)
    v, t, point = torch.randn_like(w), group.random().double(), function.at(w)
    trained = copy.deepcopy(model)
    parameter = qn.training.bind(trained, qn.NodeWiseQuotient(group))
    optimizer = qn.training.RiemannianSGD([parameter], lr=1e-3)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(data[0]), data[1]).backward()
        optimizer.step()

    found = {
        "group: act": lambda: group.act(w, t),
        "group: adjoint": lambda: group.adjoint(v),
        "value": lambda: function.at(w).value,
        "gradient": lambda: function.at(w).gradient,
        "gradient by autograd": lambda: function(w.clone().requires_grad_()).backward(),
        "Hessian": lambda: point.hessian @ v,
        "Hessian at a new point": lambda: function.at(w).hessian @ v,
        "Gauss-Newton": lambda: point.ggn @ v,
        "traces of layers": lambda: qn.curvature.ggn_traces(function.at(w)),
        "trace by signs": lambda: qn.curvature.hutchinson_trace(point.hessian, samples=2),
        "canonical form": lambda: qn.canonical(w, group),
        "transform": lambda: qn.transform(model, group, t),
        "training": step,
        "discover": lambda: qn.discover(model, data[0]),
        "verify_sound": lambda: qn.verify_sound(model, group, data[0], samples=1),
        "report": lambda: qn.sharpness.report(
            point, symmetry, points=1, measures=["Fisher–Rao norm", "node-wise trace"]
        ),
    }
    assert tuple(found) == ONES
    for quotient in (qn.NodeWiseQuotient, qn.LayerScaleQuotient, qn.BalancedQuotient):
        found |= geometry(quotient(group), function.layout.flatten(model), v)
    return found


def operations(quotient):
    """The names of those that a quotient has."""
    geodesics = quotient is not qn.BalancedQuotient
    return [*CLOSED, *(("expmap", "logmap", "dist") if geodesics else ())]


def geometry(manifold, x, v):
    """The operations of a manifold, by its name and theirs."""
    u = 0.01 * manifold.proju(x, x * v)
    y = manifold.retr(x, u)
    found = {
        "inner": lambda: manifold.inner(x, u, u),
        "proju": lambda: manifold.proju(x, v),
        "proju elsewhere": lambda: manifold.proju(x * 1.001, v),
        "egrad2rgrad": lambda: manifold.egrad2rgrad(x, v),
        "retr": lambda: manifold.retr(x, u),
        "transp": lambda: manifold.transp(x, y, u),
        "expmap": lambda: manifold.expmap(x, u),
        "logmap": lambda: manifold.logmap(x, y),
        "dist": lambda: manifold.dist(x, y),
    }
    return {f"{manifold.name}: {name}": found[name] for name in operations(type(manifold))}


@dataclass(frozen=True)
class Growth:
    """What is there more than before.

    Attributes:
        objects: That Python's garbage collector knows, reachable ones only.
        tensors: Among them.
        blocks: Of Python's own allocator: of small objects of any kind.
        mebibytes: Of memory in use, after what is free has been given back.
    """

    objects: int
    tensors: int
    blocks: int
    mebibytes: float


def growth(call, count):
    """By how much a process grows in so many calls, once a few others have filled all caches."""
    for _ in range(2):
        call()
    gc.collect()
    gc.freeze()  # what is there already need not be looked at
    try:
        call()  # what each call replaces is not more
        before, start, blocks = _known(), resident(), sys.getallocatedblocks()
        for _ in range(count):
            call()
        gc.collect()
        blocks = sys.getallocatedblocks() - blocks
        more = resident() - start
        objects, tensors = (b - a for a, b in zip(before, _known()))
        return Growth(objects, tensors, blocks, more)
    finally:
        gc.unfreeze()


def _known():
    """The numbers of reachable objects, and of tensors among them, since the freeze."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return len(kinds), sum(issubclass(kind, torch.Tensor) for kind in kinds)


def resident():
    """MiB of memory in use by this process."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
