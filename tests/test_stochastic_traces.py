"""Traces and diagonals: unbiased, and their standard errors cover; the progress bar."""

import sys

import pytest
import torch
from scipy.stats import t as student
from test_curvature import Diagonal, NotANumber, symmetric
from test_density import SPREAD, covered
from test_spectrum import negative_quotient, seeded

import quotientnet as qn
from quotientnet.curvature import (
    hutch_plus_plus_trace,
    hutchinson_diagonal,
    hutchinson_trace,
)
from quotientnet.progress import progress

TRACE = sum(SPREAD)
DECAY = (100 * torch.arange(1.0, 61.0) ** -2.0).tolist()


def decaying():
    return symmetric(*DECAY)


@pytest.mark.parametrize(
    "measure, operator, truth, freedom",
    [
        (
            lambda o, g: hutchinson_trace(o, samples=20, generator=g),
            symmetric(*SPREAD),
            TRACE,
            lambda e: e.cost - 1,
        ),
        (
            lambda o, g: hutchinson_trace(
                o, samples=2000, tolerance=0.1, block=3, generator=g
            ),
            symmetric(*SPREAD),
            TRACE,
            lambda e: e.cost - 1,
        ),
        (
            lambda o, g: hutch_plus_plus_trace(o, samples=60, generator=g),
            symmetric(*SPREAD),
            TRACE,
            lambda e: 19,
        ),
        (
            lambda o, g: hutch_plus_plus_trace(
                o, samples=66, tolerance=1e-4, block=2, generator=g
            ),
            decaying(),
            sum(DECAY),
            lambda e: e.cost - 45,
        ),
    ],
    ids=["Hutchinson", "Hutchinson to 10 %", "Hutch++", "Hutch++ to 0.01 %"],
)
def test_the_trace_is_covered_at_the_rate_of_the_standard_error(
    measure, operator, truth, freedom
):
    hits = 0
    for seed in range(200):
        estimate = measure(operator, seeded(seed))
        quantile = student.ppf(0.975, freedom(estimate))
        hits += abs(estimate.value - truth) <= quantile * estimate.error
    assert covered(hits)


def test_the_diagonal_is_covered_at_the_rate_of_its_standard_errors():
    operator, quantile = symmetric(*SPREAD), student.ppf(0.975, 19)
    truth = operator.to_dense().diag()
    hits = torch.zeros(len(truth))
    for seed in range(200):
        found = hutchinson_diagonal(operator, samples=20, generator=seeded(seed))
        hits += (found.values - truth).abs() <= quantile * found.errors
    assert all(covered(h, level=0.95) for h in hits.tolist()), hits


def test_sampling_ends_at_the_tolerance_or_says_that_it_has_not():
    operator = symmetric(*SPREAD)
    for seed in range(10):
        loose, tight = (
            hutchinson_trace(
                operator, samples=5000, tolerance=e, generator=seeded(seed)
            )
            for e in (0.1, 0.05)
        )
        assert loose.converged and loose.error <= 0.1 * abs(loose.value)
        assert tight.converged and tight.error <= 0.05 * abs(tight.value)
        assert 12 <= loose.cost < tight.cost < 5000
    never = hutchinson_trace(operator, samples=20, tolerance=1e-6)
    assert not never.converged and never.cost == 20
    never = hutch_plus_plus_trace(operator, samples=30, tolerance=1e-9)
    assert not never.converged and never.cost == 30


def test_a_sketch_is_worth_it_where_few_eigenvalues_dominate():
    operator, truth = decaying(), sum(DECAY)
    plain, sketched = (
        [measure(operator, samples=60, generator=seeded(s)) for s in range(20)]
        for measure in (hutchinson_trace, hutch_plus_plus_trace)
    )

    def spread(estimates):
        return (sum((e.value - truth) ** 2 for e in estimates) / 20) ** 0.5

    assert spread(sketched) * 10 < spread(plain)
    assert all(e.cost == 60 for e in plain + sketched)


def test_low_rank_is_exact():
    operator = symmetric(5, -3, 2, *[0] * 40)
    for seed in range(5):
        estimate = hutch_plus_plus_trace(operator, samples=12, generator=seeded(seed))
        assert estimate.value == pytest.approx(4, rel=1e-12)
        assert estimate.error < 1e-12
    zero = hutch_plus_plus_trace(qn.DenseOperator(torch.zeros(5, 5)), samples=6)
    assert (zero.value, zero.error) == (0, 0)
    small = hutch_plus_plus_trace(symmetric(1, 2), samples=60)
    assert small.value == pytest.approx(3)


def test_diagonals_of_diagonal_operators_are_exact():
    operator = Diagonal(3.0, -4.0, rest=0.5)
    found = hutchinson_diagonal(operator, samples=2)
    assert (found.values - operator.entries).abs().max() < 1e-14
    assert found.errors.max() < 1e-14 and found.cost == 2


def test_running_moments_are_those_of_the_draws():
    operator = symmetric(*SPREAD)
    found = hutchinson_diagonal(operator, samples=7, generator=seeded(3))
    generator = seeded(3)
    signs = torch.stack(
        [torch.randint(0, 2, (40,), generator=generator) * 2 - 1 for _ in range(7)]
    ).double()
    draws = signs * (operator @ signs.T).T
    assert torch.allclose(found.values, draws.mean(0), atol=1e-12)
    assert torch.allclose(found.errors, draws.std(0) / 7**0.5, atol=1e-12)


def test_blocks_do_not_change_the_estimates():
    operator = symmetric(*SPREAD)
    for block in (3, 8, 100):
        a, b = (hutchinson_trace(operator, samples=20, block=k) for k in (1, block))
        assert a.value == pytest.approx(b.value) and a.error == pytest.approx(b.error)
        a, b = (
            hutch_plus_plus_trace(operator, samples=20, block=k) for k in (1, block)
        )
        assert a.value == pytest.approx(b.value) and a.cost == b.cost == 20
        a, b = (hutchinson_diagonal(operator, samples=20, block=k) for k in (1, block))
        assert torch.allclose(a.values, b.values)


def test_a_trace_with_null_directions():
    operator, values = negative_quotient()
    inside = qn.DenseOperator(operator.matrix)
    estimate = hutch_plus_plus_trace(inside, samples=90)
    assert abs(estimate.value - values.sum().item()) <= 4 * estimate.error


def test_refusals():
    operator, broken = symmetric(1, 2), NotANumber(2, torch.float64, "cpu")
    for measure, least in (
        (hutchinson_trace, 2),
        (hutch_plus_plus_trace, 6),
        (hutchinson_diagonal, 2),
    ):
        with pytest.raises(ValueError, match=f"samples must be an integer of at least {least}"):
            measure(operator, samples=least - 1)
        with pytest.raises(ValueError, match="block must be an integer of at least 1"):
            measure(operator, block=0)
        with pytest.raises(ValueError, match=f"{measure.__name__}: a product is NaN"):
            measure(broken)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        hutchinson_trace(operator, tolerance=0)


class Terminal:
    """A stderr that is a terminal and keeps what is written."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_no_bar_without_a_terminal():
    items = [1, 2]
    assert progress(items, "nothing") is items
    assert list(progress(3, "nothing")) == [0, 1, 2]


def test_a_bar_on_a_terminal_after_a_delay(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(3, "quick")) == [0, 1, 2] and not sys.stderr.text
    assert list(progress(3, "slow work", delay=0)) == [0, 1, 2]
    assert "slow work" in sys.stderr.text
    with pytest.raises(KeyError):
        for _ in progress(3, "failing", delay=0):
            raise KeyError("through the bar")


def test_no_bar_without_tqdm_or_stderr(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    items = [1, 2]
    assert progress(items, "nothing") is items
    monkeypatch.setattr(sys, "stderr", None)
    assert progress(items, "nothing") is items
