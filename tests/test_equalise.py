"""Cross-layer equalisation of any derived group: attention, gates, experts, ties, powers."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from attention_networks import ATTENTION

import quotientnet as qn
from quotientnet.symmetry import balancing
from quotientnet.symmetry.replica import Replica, relative_change

POWERS = [
    "powers",
    "half powers",
    "product with itself",
    "applied twice",
    "weight normalisation",
]
ALL = {name: ARCHITECTURES[name] for name in POWERS} | ATTENTION


@pytest.mark.parametrize("name", ALL)
def test_largest_entries_of_both_sides_are_equal_and_the_function_is_the_same(name):
    """Both sides by the dense matrix of exponents. One-signed generators have no second side: for
    them the largest entry is 1, where it is theirs alone."""
    model, x = ALL[name].build(), ALL[name].inputs()
    group = qn.discover(model, x).group
    replica = Replica(model, group.layout, "test")
    found = balancing(replica.w, group, norm="max")
    moved = group.act(replica.w, found.t)
    sizes, exponents = moved.abs().numpy()[:, None], group.to_dense()
    sizes = np.where(
        np.arange(len(sizes))[:, None] < group.layout.parameter_size, sizes, 0.0
    )
    up, down = ((sizes * (s * exponents > 0)).max(0) for s in (1, -1))
    both, levels = (up > 0) & (down > 0), found.levels.numpy()
    gap = up[both] ** 2 - down[both] ** 2 - levels[both]
    assert (abs(gap) <= 1e-12 * (up[both] ** 2 + down[both] ** 2)).all()
    if not both.all():
        np.testing.assert_allclose((up - down)[~both], levels[~both], rtol=1e-12)
    before, after = (replica.run(w, (x,), {})[0] for w in (replica.w, moved))
    assert max(relative_change(a, b) for a, b in zip(before, after)) < 1e-11
    assert float(found.t.abs().max()) > 1e-3


def test_one_network_an_orbit_with_shared_heads_and_experts():
    for name in ("llama", "experts in a stream", "gpt, tied"):
        model, x = ATTENTION[name].build(), ATTENTION[name].inputs()
        group = qn.discover(model, x).group
        w = group.layout.flatten(model)
        generator = torch.Generator().manual_seed(2)
        y = group.act(w, group.random(spread=1.0, generator=generator))
        a, b = (qn.canonical(p, group, norm="max") for p in (w, y))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
        assert not torch.allclose(y, w)
