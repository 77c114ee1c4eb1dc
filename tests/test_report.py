"""The report and the invariance matrix: what they say is so, and every claim agrees with a run."""

import json
import sys

import pytest
import torch
from chains import node_wise_group
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_normalised_network
from quotientnet.reparametrisation import layer_scales
from quotientnet.sharpness import (
    MEASURES,
    Measure,
    digits_trials,
    invariance_matrix,
    report,
)
from quotientnet.sharpness.invariance import covers

QUICK = [
    "Hessian, largest eigenvalue", "Hessian, trace", "node-wise spectral norm", "node-wise trace",
]  # fmt: skip


def mlp(bias=True, activation=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(4, 6, bias), activation(), nn.Linear(6, 5, bias), activation(),
            nn.Linear(5, 3, bias),
        ).double()  # fmt: skip


def problem(model=None, count=30, shape=(4,)):
    model = mlp() if model is None else model
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (count,), generator=generator)
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    return objective.at(objective.layout.flatten(model)), qn.discover(model, inputs)


def norm(point, group):
    """A measure of one's own, by hand: the squared norm of the weights."""
    return qn.Estimate(float(point.w.square().sum()), 0.0, True, 0, ("unit scales",))


def product(point, group):
    """Invariant to layer scales without biases: the product of the norms."""
    parts = [p.norm() for p in point.layout.split(point.w)]
    return qn.Estimate(
        float(torch.stack(parts).prod()), 0.0, True, 0, ("layer scales",)
    )


@pytest.fixture(scope="module")
def found():
    return report(*problem(), measures=QUICK)


def test_values_are_those_of_the_measures_at_the_points(found):
    point, symmetry = problem()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        y = point.w
        if number:
            t = symmetry.group.random(spread=1.0, generator=generator)
            y = symmetry.group.act(point.w, t)
        here = point.objective.at(y)
        dense = torch.func.hessian(point.objective)(y)
        top = float(torch.linalg.eigvalsh(dense)[-1])
        assert found["Hessian, largest eigenvalue"].values[number] == pytest.approx(
            top, rel=1e-6
        )
        trace = found["Hessian, trace"]
        assert (
            abs(trace.values[number] - float(dense.trace())) <= 6 * trace.errors[number]
        )
        assert found.losses[number] == pytest.approx(float(here.value), rel=1e-14)


def test_what_moves_and_what_does_not(found):
    verdicts = {row.label: row.invariant for row in found.rows}
    assert list(verdicts) == QUICK and list(verdicts.values()) == [
        False,
        False,
        True,
        True,
    ]
    row = found["Hessian, largest eigenvalue"]
    changes = [abs(v / row.values[0] - 1) for v in row.values]
    assert row.change == pytest.approx(max(changes)) and row.change > 0.1
    assert found["node-wise trace"].change < 1e-8
    assert found.drift < 1e-14 and found.points == ("w", "random 1", "random 2")
    assert all(
        r.gradients == pytest.approx(r.seconds / found.gradient_seconds)
        for r in found.rows
    )


def test_estimates_start_anew_at_every_point():
    seen = {}

    def drawing(point, group, generator):
        seen.setdefault(measure.label, []).append(
            float(torch.rand((), generator=generator))
        )
        return qn.Estimate(1.0, 0.0, True, 0)

    point, symmetry = problem()
    for fresh in (True, False):
        measure = Measure(f"fresh {fresh}", "mine", drawing, "sampled", fresh)
        report(point, symmetry, measures=[measure])
    assert len(set(seen["fresh True"])) == 3 and len(set(seen["fresh False"])) == 1


def test_estimates_agree_within_four_standard_errors_and_not_beyond():
    point, symmetry = problem()
    for gap, verdict in ((3.9, True), (4.1, False)):
        values = iter([1.0, 1.0 + gap * 0.01 * 2**0.5])
        measure = Measure(
            "m",
            "mine",
            lambda p, g, r: qn.Estimate(next(values), 0.01, True, 1),
            "sampled",
        )
        (row,) = report(point, symmetry, points=1, measures=[measure]).rows
        assert row.invariant is verdict
    for kind, change, verdict in (
        ("exact", 0.9e-8, True), ("exact", 1.1e-8, False),
        ("search", 0.9e-6, True), ("search", 1.1e-6, False),
    ):  # fmt: skip
        values = iter([1.0, 1.0 + change])
        measure = Measure(
            "m", "mine", lambda p, g, r: qn.Estimate(next(values), 1, True, 1), kind
        )
        (row,) = report(point, symmetry, points=1, measures=[measure]).rows
        assert row.invariant is verdict


def test_your_own_measures_and_named_elements():
    point, symmetry = problem(mlp(bias=False))
    elements = {"λ": layer_scales(symmetry.group, (5, 4, 1 / 20))}
    own = {"norm": norm, "product": product}
    found = report(point, symmetry, points=0, elements=elements, measures=own)
    a, b, c = (p.norm() ** 2 for p in point.layout.split(point.w))
    expected = float(25 * a + 16 * b + c / 400)
    assert found["norm"].values[1] == pytest.approx(expected, rel=1e-12)
    assert not found["norm"].invariant and found["product"].invariant
    assert "λ" in str(found) and "your own" in str(found)


def test_a_refusal_is_a_row_with_its_reason():
    point, symmetry = problem()

    def refusing(point, group):
        raise ValueError("no <reason> at all, " + "which is said at length " * 8)

    found = report(point, symmetry, measures={"refusing": refusing, "norm": norm})
    row = found["refusing"]
    assert row.invariant is None and row.values == () and "no <reason>" in row.reason
    assert "\n  refusing [1] " in str(found) and "\n[1] no <reason> at all" in str(
        found
    )
    assert "[1] no &lt;reason&gt;" in found._repr_html_()
    assert json.loads(found.to_json())["rows"][0]["reason"] == row.reason


@pytest.mark.parametrize("points", [1, 2, 6])
def test_fits_a_terminal_and_is_aligned(points):
    point, symmetry = problem()

    def far(point, group):
        return qn.Estimate(-1.23456789e-123, 0.0, False, 0)

    measures = {"far": far, "norm": norm} | {
        m.label: m for m in MEASURES if m.label in QUICK
    }
    text = str(report(point, symmetry, points=points, measures=measures))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [
        line
        for line in lines
        if line.startswith("  ") and line[2:].startswith(tuple(measures))
    ]
    assert len(rows) == 6
    places = {max(line.rfind(sign) for sign in "=≠±") for line in rows}
    assert len(places) == 1 and "* short of" in text
    assert ("lowest" in text) == (points > 2)


def test_notebook_and_json(found):
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + 1 + 1 + len(QUICK)
    facts = json.loads(found.to_json())
    assert [r["label"] for r in facts["rows"]] == QUICK and facts["dimension"] == 11
    point, symmetry = problem()
    unbounded = {"far": lambda p, g: qn.Estimate(float("inf"), 0.0, True, 0)}
    endless = report(point, symmetry, measures=unbounded)
    assert json.loads(endless.to_json())["rows"][0]["values"] == [None] * 3
    row = endless["far"]
    assert row.invariant is None and row.change is None and not row.finite
    assert "— !" in str(endless) and "! not finite" in str(endless)
    assert "0e+00" not in str(endless).split("\n\n")[1]


def test_data_frame(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        found.to_frame()
    monkeypatch.delitem(sys.modules, "pandas")
    pandas = pytest.importorskip("pandas")
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 3 * len(QUICK)
    first = frame[(frame.measure == "node-wise trace") & (frame.point == "w")]
    assert first.value.item() == found["node-wise trace"].values[0]


def test_running_statistics_move_along_in_eval_mode():
    model = make_normalised_network().eval()
    digits = load_digits()
    data = digits.train_inputs[:20], digits.train_targets[:20]
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    symmetry = qn.discover(model, data[0])
    point = objective.at(objective.layout.flatten(model))
    found = report(
        point, symmetry, measures=["Hessian, largest eigenvalue", "node-wise trace"]
    )
    assert found.drift < 1e-12 and not found["Hessian, largest eigenvalue"].invariant
    # No tangent vector moves running statistics: the quotient is that of the other scales.
    assert found["node-wise trace"].invariant
    assert found["node-wise trace"].claims == ("unit scales",)


def test_an_approximate_symmetry_is_reported_with_its_size():
    model = make_normalised_network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    digits = load_digits()
    data = digits.train_inputs[:40], digits.train_targets[:40]
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    found = report(
        point, qn.discover(model, data[0]), spread=0.3, measures={"norm": norm}
    )
    assert 1e-9 < found.drift < 0.02 and "The symmetry is approximate" in str(found)


def test_bad_input_is_refused():
    point, symmetry = problem()
    with pytest.raises(
        TypeError, match="point must be a Point, got Tensor; objective.at"
    ):
        report(point.w, symmetry)
    with pytest.raises(TypeError, match="group must be a ScalingGroup"):
        report(point, "group")
    for options, message in (
        ({"points": -1}, "points must be an integer of at least 0"),
        ({"points": 0}, "nothing to compare with"),
        ({"spread": 0.0}, "spread"),
        ({"measures": []}, "measures is empty"),
        (
            {"measures": ["nothing"]},
            "no measure is called 'nothing'; there are 'Hessian",
        ),
        ({"measures": [MEASURES[0], MEASURES[0]]}, "given twice; .*rename it"),
    ):
        with pytest.raises(ValueError, match=message):
            report(point, symmetry, **options)
    for measures in ("Hessian, trace", {"a": 3}, 5, MEASURES[0]):
        with pytest.raises(TypeError, match="measures"):
            report(point, symmetry, measures=measures)
    with pytest.raises(ValueError, match="of kind 'other'"):
        Measure("a", "b", norm, "other")


def test_a_network_without_the_group_is_refused():
    point, _ = problem(mlp(activation=nn.GELU))
    with pytest.raises(
        ValueError, match="report: the loss is not invariant under the group"
    ):
        report(point, node_wise_group(point.layout))
    other, _ = problem(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    )
    with pytest.raises(ValueError, match="report: .*another layout"):
        report(other, problem()[1])


def test_nothing_of_the_users_changes():
    point, symmetry = problem()
    model = point.objective.model
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    report(point, symmetry, measures=QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert torch.equal(state, torch.random.get_rng_state()) and model.training
    assert all(p.grad is None for p in model.parameters())


# -- the matrix ---


@pytest.fixture(scope="module")
def matrix():
    # Volumes and boxes claim nothing, slowly.
    kept = [m for m in MEASURES if not {"volume", "box"} & set(m.label.replace(",", "").split())]
    return invariance_matrix(kept, digits_trials(images=20), elements=1)


@pytest.mark.slow
def test_every_claim_agrees_with_the_computed_matrix(matrix):
    """A measure says that it is invariant only where the run shows it."""
    wrong = [
        (measure, trial, cell.change)
        for measure, row in zip(matrix.measures, matrix.cells)
        for trial, cell in zip(matrix.trials, row)
        if cell.claimed and cell.invariant is False
    ]
    assert wrong == []
    claimed = sum(cell.claimed for row in matrix.cells for cell in row)
    assert claimed >= 15


@pytest.mark.slow
def test_every_cross_is_a_demonstrated_change(matrix):
    changes = [c.change for row in matrix.cells for c in row if c.invariant is False]
    assert len(changes) >= 30 and min(changes) > 1e-5


@pytest.mark.slow
def test_the_matrix_knows_exact_moves_from_approximate_ones(matrix):
    for name, drift in zip(matrix.trials, matrix.drifts):
        if "eps = 1e-05" in name:
            assert 1e-7 < drift < 0.1
            assert all(
                row[matrix.trials.index(name)].symbol in "≈—" for row in matrix.cells
            )
        elif name != "output scale":
            assert drift < 1e-13


def test_a_measure_with_a_false_claim_is_found_out():
    trials = [t for t in digits_trials(images=20) if t.key in ("layer", "row/col")]
    found = invariance_matrix({"norm": norm, "product": product}, trials, elements=1)
    assert found["norm", "rows and columns, without biases"].claimed
    assert not found["norm", "rows and columns, without biases"].invariant
    cell = found["product", "layer scales, without biases"]
    assert cell.claimed and cell.symbol == "✓" and cell.change < 1e-13
    assert found["product", "rows and columns, without biases"].symbol == "✗"
    assert json.loads(found.to_json())["cells"][1][0]["invariant"] is True
    with pytest.raises(ValueError, match="elements must be an integer of at least 1"):
        invariance_matrix(trials=trials, elements=0)


def test_what_claims_cover():
    assert covers(["unit scales"], "layer scales") and not covers(
        ["layer scales"], "unit scales"
    )
    assert covers(["LayerScaleQuotient's group"], "layer scales")
    assert not covers(["LayerScaleQuotient's group"], "filter scales")
    assert covers(["NodeWiseQuotient's group"], "filter scales")
    assert not covers(["BalancedQuotient's group"], "output scale")
    assert not covers([], "layer scales")
