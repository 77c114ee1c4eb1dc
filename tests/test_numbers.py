"""Numbers that hold: float32 near float64, any scale, any split, any order, any time."""

import json
import os
import subprocess
import sys
from functools import cache
from math import isfinite, log
from pathlib import Path

import pytest
import torch
from cases import NETWORKS
from repeated import FUNCTIONS, QUICK
from torch import nn

import quotientnet as qn
from quotientnet.curvature import hutchinson_trace
from quotientnet.sharpness import MEASURES, Measure
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.testing import (
    BOUNDS,
    check_batches,
    check_precision,
    check_repeatable,
    conformance,
    fingerprint,
)

ALL = os.environ.get("HOSTILE") == "all"
EXACT = [
    "BN-sharpness, small δ", "matrix-normalised sharpness", "normalised sharpness",
    "Fisher–Rao norm, diagonal", "PAC-Bayes bound", "minimum sharpness", "Fisher–Rao norm",
]  # fmt: skip
INVARIANT = [
    "node-wise trace", "balanced trace", "node-wise spectral norm", "normalised sharpness",
    "minimum sharpness", "Fisher–Rao norm, diagonal", "Fisher–Rao norm",
]  # fmt: skip
KEPT = Path(__file__).parents[1] / "docs/results/precision.json"


def point_of(name, dtype=torch.float64, train=True):
    objective = NETWORKS[name].objective(dtype, train)
    return objective.at(objective.layout.flatten(objective.model))


@cache
def symmetry_of(name, train=True):
    return qn.discover(NETWORKS[name].build().train(train), NETWORKS[name].data()[0])


def value(label, point, group):
    measure = as_measures([label])[0]
    return measure.function(point, group, torch.Generator().manual_seed(0))


# -- single precision ---


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_near_float64(name):
    labels = EXACT if name != "batch-norm" else EXACT[:1]
    check_precision(
        point_of(name), symmetry_of(name), measures=None if ALL else labels
    ).require()


def test_what_is_kept_is_within_the_bounds_that_are_stated():
    kept = json.loads(KEPT.read_text())
    assert kept["bounds"] == {kind: bound.units for kind, bound in BOUNDS.items()}
    assert {row["kind"] for row in kept["rows"]} == set(BOUNDS)
    assert kept["networks"] == list(NETWORKS)
    assert {m.label for m in MEASURES} <= set(kept["quantities"])
    for row in kept["rows"]:
        assert 0 <= row["difference"] <= row["bound"], row


def test_half_precision_is_found_out():
    def coarse(point, group, generator):
        return qn.Estimate(float(point.w.to(torch.bfloat16).square().sum()), 0.0, True, 0)

    def single(point, group, generator):
        w = point.w if point.w.dtype == torch.float64 else point.w.to(torch.bfloat16)
        return qn.Estimate(float(w.double().square().sum()), 0.0, True, 0)

    symmetry = symmetry_of("mlp")
    verdicts = [
        check_precision(point_of("mlp"), symmetry, measures=[Measure("own", "", f)])
        for f in (coarse, single)
    ]
    assert verdicts[0].holds and not verdicts[1].holds
    assert verdicts[1].case == "own" and "is allowed" in verdicts[1].reason


def test_a_measure_that_refuses_single_precision_alone_is_found_out():
    def picky(point, group, generator):
        if point.w.dtype == torch.float32:
            raise ValueError("no")
        return qn.Estimate(1.0, 0.0, True, 0)

    measures = [Measure("picky", "", picky)]
    assert not check_precision(
        point_of("one-unit"), symmetry_of("one-unit"), measures=measures
    ).holds


# -- scales ---


def element(group, power, by_layer, seed):
    """Coordinates of scales between ``10^-power`` and ``10^power``, one a layer or one a unit."""
    generator = torch.Generator().manual_seed(seed)
    layers = [name.split(" of ")[-1] for name in group.names]
    drawn = {name: torch.rand((), generator=generator) for name in dict.fromkeys(layers)}
    t = torch.stack([drawn[name] for name in layers]).double()
    if not by_layer:
        t = torch.rand(len(layers), generator=generator).double()
    t = 2 * t - 1
    return t / t.abs().max() * power * log(10)


@cache
def at_balanced(label, dtype):
    point, group = point_of("deep", dtype), symmetry_of("deep").group
    return value(label, point.objective.at(qn.canonical(point.w, group)), group).value


@pytest.mark.parametrize("by_layer", [True, False], ids=["layers", "units"])
@pytest.mark.parametrize(
    "dtype, power, refused", [
        (torch.float64, 6, 0), (torch.float64, 150, 7), (torch.float32, 9, 0),
        (torch.float32, 15, 7),
    ], ids=str,
)  # fmt: skip
def test_measures_agree_with_the_balanced_point_or_refuse(dtype, power, refused, by_layer):
    point, group = point_of("deep", dtype), symmetry_of("deep").group
    moved = [
        point.objective.at(group.act(point.w, element(group, power, by_layer, seed)))
        for seed in range(1 if dtype == torch.float64 else 2)
    ]
    bound = 1e4 * torch.finfo(dtype).eps
    for label in INVARIANT:
        expected, count = at_balanced(label, dtype), 0
        for there in moved:
            try:
                found = value(label, there, group)
            except ValueError as error:
                assert "move along the orbit" in str(error) or "overflow" in str(error) or (
                    "NaN or infinite" in str(error)
                ), error
                count += 1
                continue
            assert found.value == pytest.approx(expected, rel=bound), (label, there.w.abs().max())
        assert count <= refused


def test_the_remedy_of_a_refusal_is_one():
    point, group = point_of("deep", torch.float32), symmetry_of("deep").group
    there = point.objective.at(group.act(point.w, element(group, 15, False, 0)))
    refused = [label for label in INVARIANT if not _accepts(label, there, group)]
    assert len(refused) >= 5
    back = point.objective.at(qn.canonical(there.w, group))
    for label in refused:
        expected = value(label, point, group).value
        assert value(label, back, group).value == pytest.approx(expected, rel=1e-3)


def _accepts(label, point, group) -> bool:
    try:
        value(label, point, group)
    except ValueError as error:
        assert "orbit" in str(error) or "NaN or infinite" in str(error)
        return False
    return True


def test_squares_are_summed_in_float64_where_scales_are_large():
    """Inputs of 1e18 meet derivatives of 1e-24, whose squares float32 does not have."""
    point, group = point_of("deep", torch.float32), symmetry_of("deep").group
    layers = [name.split(" of ")[-1] for name in group.names]
    decades = dict(zip(dict.fromkeys(layers), (18.0, 24.0, 12.0, 0.0)))
    t = torch.tensor([decades[name] * log(10) for name in layers]).double()
    there = point.objective.at(group.act(point.w, t))
    for label in ("matrix-normalised sharpness", "PAC-Bayes bound"):
        expected = value(label, point, group).value
        assert value(label, there, group).value == pytest.approx(expected, rel=1e-4), label


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_subnormal_entries_give_numbers_or_refusals(dtype):
    point, group = point_of("mlp", dtype), symmetry_of("mlp").group
    w = point.w.clone()
    w[::5] = torch.finfo(dtype).smallest_normal / 8
    point = point.objective.at(w)
    finite = 0
    for label in [*INVARIANT, *EXACT]:
        try:
            found = value(label, point, group)
        except ValueError as error:
            words = "overflow", "singular", "no numbers", "no direction is left"
            assert any(word in str(error) for word in words), error
            continue
        assert isfinite(found.value) and found.value > 0, label
        finite += 1
    assert finite >= 5


def test_what_overflows_is_said():
    point, group = point_of("mlp"), symmetry_of("mlp").group
    large = point.objective.at(group.act(point.w, element(group, 150, True, 0)))
    trace = value("Hessian, trace", large, group)
    assert isfinite(trace.value) and isfinite(trace.error) and trace.value > 1e100
    there = point.objective.at(group.act(point.w, element(group, 150, False, 0)))
    for label in ("relative flatness", "matrix-normalised sharpness", "PAC-Bayes bound"):
        with pytest.raises(ValueError, match=r"overflow.*qn\.canonical\(w, group\)"):
            value(label, there, group)
    larger = point.objective.at(group.act(point.w, element(group, 165, True, 0)))
    ball = qn.sharpness.ball_sharpness(larger, 0.05, restarts=0, max_iterations=2)
    assert ball.value > 1e100  # the gradient's own norm overflows
    operator = qn.DenseOperator(1.5e308 * torch.eye(2).double())
    with pytest.raises(ValueError, match="hutchinson_trace: a product"):
        hutchinson_trace(operator, samples=9)


def test_a_group_without_generators_has_a_balanced_trace():
    point, group = point_of("one-layer"), symmetry_of("one-layer").group
    assert group.dimension == 0
    dense = float(point.hessian.to_dense().trace())
    assert value("balanced trace", point, group).value == pytest.approx(dense, rel=1e-10)
    assert group.gram().to_dense().dtype == float


# -- the same bits ---


digests = {}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twice_the_same_bits(name):
    def kept():
        result = FUNCTIONS[name]()
        digests[name] = fingerprint(result)
        return result

    check_repeatable(kept).require()


@pytest.mark.slow
def test_another_process_finds_the_same_bits():
    names = list(FUNCTIONS) if ALL else QUICK
    other = {"1": "2"}.get(os.environ.get("PYTHONHASHSEED", ""), "1")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("repeated.py"), *names],
        env=os.environ | {"PYTHONHASHSEED": other}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = {name: digests.get(name) or fingerprint(FUNCTIONS[name]()) for name in names}
    assert json.loads(done.stdout) == here


def test_what_is_not_repeated_is_found_out():
    assert not check_repeatable(lambda: torch.rand(2)).holds
    fixed = torch.zeros(2)

    def draws():
        torch.rand(1)
        return fixed

    assert check_repeatable(draws).reason == "the global random states differ before and after"
    assert fingerprint(torch.tensor(0.0)) != fingerprint(torch.tensor(-0.0))
    with pytest.raises(TypeError, match="cannot compare a object"):
        fingerprint(object())


# -- splits of the data ---


@pytest.mark.parametrize("name", NETWORKS)
def test_the_split_of_the_data_changes_nothing(name):
    point = point_of(name, train=False)
    labels = EXACT if name == "mlp" else []
    check_batches(point, symmetry_of(name, False), measures=labels).require()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whatever_the_reduction(reduction):
    network = NETWORKS["mlp"]
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), reduction=reduction)
    objective = qn.Objective(network.build(), loss, network.data(11))
    check_batches(objective.at(objective.layout.flatten(objective.model))).require()


def test_batch_statistics_are_the_exception():
    verdict = check_batches(point_of("batch-norm", train=True))
    assert not verdict.holds and verdict.violation > 1e6


def test_a_loss_that_is_no_sum_over_samples_is_found_out():
    network = NETWORKS["mlp"]
    objective = qn.Objective(network.build(), lambda z, y: z.square().mean().sqrt(), network.data())
    assert not check_batches(objective.at(objective.layout.flatten(objective.model))).holds


# -- the order of parameters ---


class Ordered(nn.Module):
    """One function, its layers registered in an order of one's choice."""

    SHAPES = {"first": (4, 6), "side": (4, 6), "second": (6, 5), "last": (5, 3)}

    def __init__(self, order):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(*self.SHAPES[name]))

    def forward(self, x):
        h = torch.relu(self.first(x)) * self.side(x).abs()
        return self.last(torch.relu(self.second(h)))


def ordered(order, weights):
    model = Ordered(order).double()
    model.load_state_dict(weights)
    network = NETWORKS["mlp"]
    objective = qn.Objective(model, nn.CrossEntropyLoss(), network.data())
    point = objective.at(objective.layout.flatten(model))
    return point, qn.discover(model, network.data()[0])


def test_the_order_of_parameters_changes_nothing():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = Ordered(Ordered.SHAPES).double().state_dict()
    orders = [["first", "side", "second", "last"], ["last", "second", "first", "side"]]
    (a, one), (b, other) = (ordered(order, weights) for order in orders)
    assert not torch.equal(a.w, b.w)
    assert one.group.dimension == other.group.dimension == 6 + 6 + 5
    for label in ("layer-scale trace", *INVARIANT, *EXACT):
        here, there = value(label, a, one.group), value(label, b, other.group)
        rel = 1e-7 if "spectral" in label else 1e-9  # Lanczos begins elsewhere
        assert there.value == pytest.approx(here.value, rel=rel), label
        for name, part in here.layers.items():
            assert there.layers[name].value == pytest.approx(part.value, rel=1e-8, abs=1e-14)
    forms = [p.layout.unflatten(qn.canonical(p.w, s)) for p, s in ((a, one), (b, other))]
    for name in weights:
        torch.testing.assert_close(forms[0][name], forms[1][name], rtol=1e-9, atol=1e-12)


# -- a user's own ---


def test_conformance_has_them():
    model, data = NETWORKS["one-unit"].build(), NETWORKS["one-unit"].data()
    loss = nn.CrossEntropyLoss()
    cases = conformance(model, data[0], data=data, loss=loss)
    own = [case for case in cases if str(case).startswith("numbers: ")]
    assert len(own) == 2
    for case in own:
        case.require()
    model, data = NETWORKS["batch-norm"].build().train(), NETWORKS["batch-norm"].data()
    names = list(map(str, conformance(model, data[0], data=data, loss=loss)))
    assert [n for n in names if n.startswith("numbers: ")] == ["numbers: float32 is near float64"]
