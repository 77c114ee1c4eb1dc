"""Small constants that guard a division, and what only looks like one."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from architectures import Block
from torch import nn

import quotientnet as qn
from quotientnet.symmetry.exactly import Degenerate, Exact, refuse_constant
from quotientnet.symmetry.guards import Guard, guards_of
from quotientnet.symmetry.nodes import live_nodes


def size(h):
    """The size of each sample."""
    return h.square().sum(1, keepdim=True)


def length(h):
    """The norm of each sample."""
    return h.norm(dim=1, keepdim=True)


def plus(x, other):
    """An addition that ``other`` is the second argument of."""
    return torch.add(x, other)


# What a function of five units guards: eps, whether it clamps, whether a root is divided by.
GUARDS = {
    "a norm": (lambda h: h / (length(h) + 1e-6), (1e-6, False, False)),
    "added to": (lambda h: h / (1e-6 + length(h)), (1e-6, False, False)),
    "added once": (lambda h: h / torch.add(length(h), 1e-6, alpha=1), (1e-6, False, False)),
    "a root after shapes": (
        lambda h: h / (size(h) + 1e-6).expand(-1, 5).sqrt(), (1e-6, False, True)),
    "divide": (lambda h: torch.divide(h, length(h) + 1e-6), (1e-6, False, False)),
    "true divide": (lambda h: torch.true_divide(h, length(h) + 1e-6), (1e-6, False, False)),
    "the reciprocal": (lambda h: h * (length(h) + 1e-6).reciprocal(), (1e-6, False, False)),
    "a power of -1": (lambda h: h * (length(h) + 1e-6) ** -1, (1e-6, False, False)),
    "the root": (lambda h: h / (size(h) + 1e-6).sqrt(), (1e-6, False, True)),
    "the root's reciprocal": (lambda h: h * (size(h) + 1e-6).rsqrt(), (1e-6, False, True)),
    "a power of 0.5": (lambda h: h / (size(h) + 1e-6) ** 0.5, (1e-6, False, True)),
    "a power of -0.5": (lambda h: h * (size(h) + 1e-6) ** -0.5, (1e-6, False, True)),
    "the root of a mean": (
        lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5), (1e-5, False, True)),
    "a variance": (
        lambda h: h / torch.sqrt(h.var(1, keepdim=True) + 1e-5), (1e-5, False, True)),
    "a standard deviation": (
        lambda h: h / (h.std(1, keepdim=True) + 1e-5), (1e-5, False, False)),
    "the largest": (lambda h: h / (h.amax(1, keepdim=True) + 1e-5), (1e-5, False, False)),
    "clamp_min": (lambda h: h / length(h).clamp_min(1e-6), (1e-6, True, False)),
    "clamp": (lambda h: h / length(h).clamp(min=1e-6), (1e-6, True, False)),
    "clamp of a square": (lambda h: h / size(h).clamp(min=1e-6).sqrt(), (1e-6, True, True)),
    "shapes between": (
        lambda h: h / (h.norm(dim=1)[:, None] + 1e-6).expand(-1, 5).contiguous(),
        (1e-6, False, False)),
    "the power of a norm": (lambda h: h * h / (length(h) ** 2 + 1e-6), (1e-6, False, False)),
    "several divisions": (
        lambda h: (lambda s: h / s + 2 * h / s)(length(h) + 1e-6), (1e-6, False, False)),
    "as large as it may be": (lambda h: h / (length(h) + 1e-3), (1e-3, False, False)),
}  # fmt: skip

NEAR_MISSES = {
    "too large": lambda h: h / (length(h) + 2e-3),
    "negative": lambda h: h / (length(h) - 1e-6),
    "an integer": lambda h: h / (length(h) + 1),
    "nothing": lambda h: h / (length(h) + 0.0),
    "a factor": lambda h: h / torch.add(length(h), 1e-6, alpha=2),
    "two bounds": lambda h: h / length(h).clamp(1e-6, 1e3),
    "clamp_max": lambda h: h / length(h).clamp_max(1e-6),
    "only its shape": lambda h: h / h.norm(dim=1, keepdim=True).expand_as(length(h) + 1e-6),
    "an upper bound": lambda h: h / length(h).clamp(max=1e-6),
    "another tensor": lambda h: h / (length(h) + h.new_tensor(1e-6)),
    "no size": lambda h: h / (h + 1e-6),
    "an exponential": lambda h: h / (torch.exp(length(h)) + 1e-6),
    "no division": lambda h: h * (length(h) + 1e-6),
    "what is divided": lambda h: (length(h) + 1e-6) / (1 + h.abs()),
    "divided by itself": lambda h: (lambda s: h * (s / s))(length(h) + 1e-6),
    "another use": lambda h: (lambda s: h / s + s)(length(h) + 1e-6),
    "another use of the root": lambda h: (lambda s: h / s + s)((size(h) + 1e-6).sqrt()),
    "a root and not": lambda h: (lambda s: h / s + h / s.sqrt())(size(h) + 1e-6),
    "a power by data": lambda h: h / (size(h) + 1e-6) ** h,
    "rounded": lambda h: torch.div(h, length(h) + 1e-6, rounding_mode="floor"),
    "a power of a cube": lambda h: h * (size(h) + 1e-6) ** 3,
}  # fmt: skip


def found(function):
    """The guards in a graph of five units, as tuples."""
    model = Block(lambda m, x: function(m.a(x)), a=nn.Linear(4, 5))
    graph = torch.export.export(model, (torch.randn(6, 4),), strict=False).graph
    guards = guards_of(graph, live_nodes(graph)).values()
    return [(guard.eps, guard.clamps, guard.rooted) for guard in guards]


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_found(name):
    function, expected = GUARDS[name]
    assert found(function) == [expected]


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_only_looks_like_a_guard_is_none(name):
    assert found(NEAR_MISSES[name]) == []


BY_VALUES = {
    "rounded", "a power by data", "two bounds", "an upper bound", "clamp_max", "divided by itself",
}  # fmt: skip
"""What derivatives at a random point do not see or do not have, and what cancels by its values."""


@pytest.mark.parametrize("name", sorted(set(NEAR_MISSES) - BY_VALUES))
def test_both_searches_keep_what_is_no_guard(name):
    model = Block(
        lambda m, x: m.b(NEAR_MISSES[name](m.a(x).abs())),
        a=nn.Linear(4, 5, bias=False), b=nn.Linear(5, 2),
    ).double()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()
    assert not symmetry.approximate


def computed(function, h, exactly=False):
    """What a function makes of ``h``, and whether it was seen to normalise."""
    mode = Exact()
    with mode if exactly else nullcontext():
        return function(h), mode.normalises


@pytest.mark.parametrize("name", GUARDS)
def test_exactly_a_guard_has_no_effect(name):
    function, (_, _, rooted) = GUARDS[name]
    h = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double() + 0.5
    exact, normalises = computed(function, 1e-8 * h, exactly=True)
    # Without its guard each of them is homogeneous, and so far up the guard is nothing.
    expected = function(1e12 * h)
    assert normalises and torch.allclose(exact, expected, rtol=1e-12, atol=0)
    assert not torch.allclose(function(1e-8 * h), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "name",
    sorted(
        set(NEAR_MISSES)
        - {
            "another use",
            "another use of the root",
            "a root and not",
            "a power by data",
        }
    ),
)
def test_exactly_what_is_no_guard_stays(name):
    h = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double() + 0.5
    for small in (1.0, 1e-4, 1e-8):
        exact, normalises = computed(NEAR_MISSES[name], small * h, exactly=True)
        assert not normalises and torch.equal(exact, NEAR_MISSES[name](small * h))


def test_exactly_other_uses_of_a_guarded_size_keep_it():
    h = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double() * 1e-8
    exact, _ = computed(NEAR_MISSES["another use"], h, exactly=True)
    assert torch.allclose(exact, h / length(h) + length(h) + 1e-6, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shorten", [
    lambda x: x.float(), lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.to(torch.float32),
    lambda x: x.type(torch.float16), lambda x: torch.zeros(3, dtype=torch.float32) + x,
])  # fmt: skip
def test_exactly_nothing_is_shortened(shorten):
    x = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    with Exact():
        assert torch.equal(shorten(x), x) and shorten(x).dtype == torch.float64
        assert torch.tensor([1, 2]).to(torch.int32).dtype == torch.int32


@pytest.mark.parametrize("normalise", [
    lambda x: F.layer_norm(x, (5,), eps=1.0), lambda x: F.layer_norm(x, (5,), None, None, 1.0),
    lambda x: F.group_norm(x, 1, eps=1.0), lambda x: F.rms_norm(x, (5,), eps=1.0),
    lambda x: F.normalize(x, eps=1.0),
    lambda x: F.batch_norm(x, None, None, training=True, eps=1.0),
    lambda x: F.instance_norm(x[None], eps=1.0),
    lambda x: F.cosine_similarity(x, x + 1e-8, eps=1.0),
])  # fmt: skip
def test_exactly_normalisations_have_no_eps(normalise):
    h = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double()
    small, mode = 1e-8 * h, Exact()
    with mode:
        exact = normalise(small)
        larger = normalise(1e-6 * h)
    reference = normalise(small)
    assert mode.normalises and not torch.allclose(exact, reference, rtol=0.1)
    if normalise(small).ndim == 2:
        assert torch.allclose(exact, larger, rtol=1e-9)


def test_exactly_a_constant_channel_is_refused():
    x = torch.ones(6, 5).double()
    with Exact(), pytest.raises(Degenerate, match="a channel is constant"):
        F.batch_norm(x, None, None, training=True)
    with Exact(), pytest.raises(Degenerate):
        F.instance_norm(x[None])
    with Exact():  # zeros are no channel, and given statistics are taken as they are
        F.batch_norm(0 * x, None, None, training=True)
        F.batch_norm(x, torch.zeros(5).double(), torch.ones(5).double())
    with pytest.raises(Degenerate):
        refuse_constant(0 * x, [0], zeros=True)


def test_a_use_that_nothing_reads_does_not_count():
    def function(h):
        guarded = length(h) + 1e-6
        torch.exp(guarded)
        return h / guarded

    assert found(function) == [(1e-6, False, False)]


@pytest.mark.parametrize("name", GUARDS)
def test_both_searches_leave_a_guard_out(name):
    function, _ = GUARDS[name]
    model = Block(
        lambda m, x: m.b(function(m.a(x).abs())),
        a=nn.Linear(4, 5, bias=False), b=nn.Linear(5, 2),
    ).double()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension >= 1
    assert [a.eps for a in symmetry.approximate] == [GUARDS[name][1][0]]
    outcome = qn.verify_sound(model, symmetry, inputs).require()
    assert outcome.eps_drift is not None
    qn.verify_complete(model, symmetry, inputs).require()


@pytest.mark.parametrize(
    "guard, size, expected",
    [
        # Halving what is divided halves a norm: (1 + eps) / (1 + 2 eps).
        (Guard(0.1, False, False), 1.0, 1 - 1.1 / 1.2),
        # The square of a norm is quartered, and the root of it is divided by.
        (Guard(0.1, False, True), 1.0, 1 - (1.1 / 1.4) ** 0.5),
        (Guard(0.1, True, False), 1.0, 0.0),
        (Guard(0.1, True, False), 0.15, 1 - 0.15 / 0.2),
        (Guard(0.1, True, True), 0.2, 1 - (0.2 / 0.4) ** 0.5),
        (Guard(0.1, False, False), 0.0, 0.0),
    ],
)
def test_how_much_a_guard_matters(guard, size, expected):
    assert guard.change(
        torch.tensor([size, 0.0], dtype=torch.float64)
    ) == pytest.approx(expected, abs=1e-12)
    assert guard.change(torch.tensor([-1.0])) == 0.0


def test_the_worst_size_counts():
    assert Guard(0.1, False, False).change(
        torch.tensor([10.0, 1.0], dtype=torch.float64)
    ) == pytest.approx(1 - 1.1 / 1.2)


def test_a_size_that_is_not_a_number_is_told():
    change = Guard(0.1, False, False).change(torch.tensor([1.0, torch.nan]))
    assert change != change
