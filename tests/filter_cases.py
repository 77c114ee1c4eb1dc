"""Networks with normalised filters, their gradients by autograd, and plain loops over filters."""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

import quotientnet as qn
from quotientnet.training import SGDS

# Networks, their inputs, and their filters: tensors of which each row is one, or all are.
CASES = {
    "linear": (
        lambda: [nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, eps=1e-30), nn.Tanh(),
                 nn.Linear(5, 3)],
        (4,), [("rows", "0.weight")],
    ),
    "biases": (
        lambda: [nn.Linear(4, 5), nn.BatchNorm1d(5, eps=1e-30), nn.Tanh(), nn.Linear(5, 3)],
        (4,), [("rows", "0.weight", "0.bias")],
    ),
    "convolutions": (
        lambda: [nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3, eps=1e-30), nn.Tanh(),
                 nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, eps=1e-30), nn.Tanh(), nn.Flatten(),
                 nn.Linear(16, 3)],
        (2, 4, 4), [("rows", "0.weight"), ("rows", "3.weight", "3.bias")],
    ),
    "layer norm": (
        lambda: [nn.Linear(4, 5), nn.LayerNorm(5, eps=1e-30), nn.Tanh(), nn.Linear(5, 3)],
        (4,), [("all", "0.weight", "0.bias")],
    ),
}  # fmt: skip


def make(case, seed=0, dtype=torch.float64):
    """A network in train mode with parameters that are not small, a batch, and its filters."""
    layers, shape, filters = CASES[case]
    torch.manual_seed(seed)
    model = nn.Sequential(*layers()).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, y = torch.randn(12, *shape, dtype=dtype), torch.randint(0, 3, (12,))
    return model, (x, y), filters


def closure_of(model, batch, calls=None):
    def closure():
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if calls is not None:
            calls.append(loss.detach())
        return loss

    return closure


def loss_at(model, batch, tensors):
    out = functional_call(model, tensors, (batch[0],))
    return nn.functional.cross_entropy(out, batch[1])


def pieces(tensors, filters):
    """Each filter as one vector, and all the rest as one: plain loops."""
    found, used = [], set()
    for how, *names in filters:
        used.update(names)
        count = len(tensors[names[0]]) if how == "rows" else 1
        for row in range(count):
            parts = [tensors[n][row] if how == "rows" else tensors[n] for n in names]
            found.append(torch.cat([p.reshape(-1) for p in parts]))
    rest = [t.reshape(-1) for n, t in tensors.items() if n not in used]
    return found, torch.cat(rest)


def assembled(tensors, filters, blocks, rest):
    """The inverse of :func:`pieces`."""
    made, blocks, used = {}, list(blocks), set()
    for how, *names in filters:
        used.update(names)
        count = len(tensors[names[0]]) if how == "rows" else 1
        rows = {n: [] for n in names}
        for _ in range(count):
            block = blocks.pop(0)
            for n in names:
                shape = tensors[n].shape[1:] if how == "rows" else tensors[n].shape
                size = shape.numel()
                rows[n].append(block[:size].reshape(shape))
                block = block[size:]
        for n in names:
            made[n] = torch.stack(rows[n]) if how == "rows" else rows[n][0]
    for n, t in tensors.items():
        if n not in used:
            made[n], rest = rest[: t.numel()].reshape(t.shape), rest[t.numel() :]
    return {n: made[n] for n in tensors}


def named(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def gradient(model, batch, tensors):
    tensors = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    found = torch.autograd.grad(
        loss_at(model, batch, tensors), list(tensors.values()), allow_unused=True
    )
    return {
        n: torch.zeros_like(t) if g is None else g
        for (n, t), g in zip(tensors.items(), found)
    }


def unit_directions(tensors, filters):
    blocks, rest = pieces(tensors, filters)
    return [b / b.norm() for b in blocks], rest / rest.norm()


def exact(model, batch, filters, p, delta, following=True):
    """The gradient of ``R``, Def. 3.1 of yi2019 to the power p, by autograd through a quadrature,
    along the gradient's direction, which follows the filters or does not."""
    w = named(model)
    units, rest = unit_directions(gradient(model, batch, w), filters)
    w = {n: t.requires_grad_() for n, t in w.items()}
    norms = [
        b.norm() if following else b.norm().detach() for b in pieces(w, filters)[0]
    ]
    v = assembled(w, filters, [r * u for r, u in zip(norms, units)], rest)
    f, total = loss_at(model, batch, w), 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(12)):
        moved = {n: t + delta * node * v[n] for n, t in w.items()}
        total = total + weight * ((loss_at(model, batch, moved) - f) / delta) ** p
    found = torch.autograd.grad(total, list(w.values()), allow_unused=True)
    return {
        n: torch.zeros_like(t) if g is None else g
        for (n, t), g in zip(w.items(), found)
    }


def frozen_step(model, batch, filters, closures=(), **options):
    """``h`` of a step that moves nothing."""
    g = gradient(model, batch, named(model))
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"regularization": 1.0, "max_norm": None} | options
    SGDS(model, base, filters, **options).step(closure_of(model, batch), *closures)
    return {n: p.grad - g[n] for n, p in model.named_parameters()}


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def relative(found, expected):
    found, expected = flat(found), flat(expected)
    return float((found - expected).norm() / expected.norm())


def symmetry_of(model, batch):
    return qn.discover(model, batch[0])
