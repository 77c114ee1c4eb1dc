"""SGDS against autograd through a quadrature, and against plain loops over filters."""

import copy
import io

import geoopt
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import quotientnet as qn
from quotientnet.training import SGDS, bind

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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("p", [2, 4, 6])
def test_the_gradient_is_that_of_the_quadrature_to_second_order(case, p):
    model, batch, filters = make(case)
    for kind, following in (("full", True), ("partial", False)):
        errors = []
        for delta in (1e-3, 4e-3, 8e-3):
            h = frozen_step(
                model, batch, symmetry_of(model, batch), p=p, delta=delta, gradient=kind
            )
            errors.append(
                relative(h, exact(model, batch, filters, p, delta, following))
            )
        assert errors[0] < 1e-3
        assert errors[2] / errors[1] == pytest.approx(4, rel=0.1)
        assert errors[1] / errors[0] == pytest.approx(16, rel=0.1)
    partial = exact(model, batch, filters, p, 1e-3, following=False)
    whole = exact(model, batch, filters, p, 1e-3)
    assert relative(partial, whole) > 0.02


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("search_steps", [0, 2])
def test_the_full_gradient_is_orthogonal_to_filters_and_equivariant(case, search_steps):
    model, batch, filters = make(case, seed=1)
    symmetry = symmetry_of(model, batch)
    options = {"delta": 0.05, "search_steps": search_steps}
    h = frozen_step(model, batch, symmetry, **options)
    w = named(model)
    size = flat(h).norm()
    for a, b in zip(pieces(w, filters)[0], pieces(h, filters)[0]):
        assert abs(a @ b) < 1e-11 * a.norm() * size
    other = frozen_step(model, batch, symmetry, gradient="partial", **options)
    blocks = zip(pieces(w, filters)[0], pieces(other, filters)[0])
    assert max(abs(a @ b) / (a.norm() * size) for a, b in blocks) > 1e-2
    blocks, rest = pieces(w, filters)
    scales = torch.logspace(-1, 1, len(blocks)).double() if len(blocks) > 1 else [3.0]
    moved = assembled(w, filters, [s * b for s, b in zip(scales, blocks)], rest)
    model.load_state_dict(moved, strict=False)
    there = frozen_step(model, batch, symmetry, **options)
    blocks, rest = pieces(h, filters)
    expected = assembled(w, filters, [b / s for s, b in zip(scales, blocks)], rest)
    for found, b in zip(*(pieces(each, filters)[0] for each in (there, expected))):
        assert (found - b).norm() < 1e-8 * b.norm() + 1e-10 * size
    assert relative(there, expected) < 1e-8


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_norm", [None, 0.02])
def test_steps_are_those_of_plain_loops_over_filters(case, max_norm):
    model, batch, filters = make(case, seed=2)
    twin = copy.deepcopy(model)
    p, delta, weight, growth = 4, 1e-2, 0.1, 3.0
    optimizer = SGDS(
        model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01),
        symmetry_of(model, batch), p=p, delta=delta, regularization=weight, growth=growth,
        growth_every=2, max_norm=max_norm,
    )  # fmt: skip
    w = named(twin)
    momentum = {n: torch.zeros_like(t) for n, t in w.items()}
    clipped = []
    for step in range(5):
        optimizer.step(closure_of(model, batch))
        g = gradient(twin, batch, w)
        units, rest = unit_directions(g, filters)
        blocks = pieces(w, filters)[0]
        v = assembled(w, filters, [b.norm() * u for b, u in zip(blocks, units)], rest)
        plus, minus = (
            gradient(
                twin,
                batch,
                {n: t + s * p / (p + 1) * delta * v[n] for n, t in w.items()},
            )
            for s in (1, -1)
        )
        slope = float(flat(g) @ flat(v)) ** (p - 1)
        h1 = {n: slope / delta * (plus[n] - minus[n]) for n in w}
        h2 = {n: p / (p + 1) * slope * (plus[n] + minus[n]) for n in w}
        terms, rest = pieces(h1, filters)
        own = zip(terms, pieces(h2, filters)[0], pieces(v, filters)[0], blocks)
        terms = [a + (b @ c) / (d @ d) * d for a, b, c, d in own]
        h = assembled(w, filters, terms, rest)
        length = weight * growth ** (step // 2) * float(flat(h).norm())
        clipped.append(max_norm is not None and length > max_norm)
        factor = max_norm / length if clipped[-1] else 1.0
        for n in w:
            total = g[n] + factor * weight * growth ** (step // 2) * h[n] + 0.01 * w[n]
            momentum[n] = 0.9 * momentum[n] + total
            w[n] = w[n] - 0.05 * momentum[n]
    assert any(clipped) == (max_norm is not None)
    assert optimizer.coefficient == pytest.approx(weight * growth**2)
    for n, p in model.named_parameters():
        assert torch.allclose(p, w[n], rtol=1e-8, atol=1e-10), n


def test_listed_filters_are_those_that_are_found():
    model, batch, _ = make("convolutions", seed=3)
    found = frozen_step(model, batch, symmetry_of(model, batch))
    listed = frozen_step(model, batch, ["0", "3"])
    assert all(torch.equal(found[n], listed[n]) for n in found)
    # With the bias among the rest; in train mode it has no slope, and all that is filters is equal.
    weights = frozen_step(model, batch, ["0.weight", "3.weight"])
    model, batch, filters = make("convolutions", seed=3)
    rows = [("rows", "0.weight"), ("rows", "3.weight")]
    assert relative(weights, exact(model, batch, rows, 2, 1e-3)) < 1e-4
    assert relative(weights, exact(model, batch, filters, 2, 1e-3)) > 1e-3


def gradients_spent(search_steps, delta=0.3, dtype=torch.float64):
    model, batch, _ = make("linear", seed=4, dtype=dtype)
    calls = []
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = SGDS(model, base, ["0"], delta=delta, search_steps=search_steps)
    optimizer.step(closure_of(model, batch, calls))
    return len(calls)


@pytest.mark.parametrize("search_steps", [0, 1, 5])
def test_a_step_costs_what_it_should(search_steps):
    assert gradients_spent(search_steps) == 3 + 2 * search_steps


@pytest.mark.parametrize("delta", [1e-6, 1e-3, 3.0])
def test_a_search_that_fails_costs_no_more(delta):
    assert gradients_spent(7, delta, torch.float32) <= 3 + 2 * 7
