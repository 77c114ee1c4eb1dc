"""What a row says: approximate symmetries, refusals, failures, zeros; how it is set."""

import json

import pytest
import torch
from test_report import QUICK, mlp, norm, problem
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_normalised_network
from quotientnet.reparametrisation import layer_scales
from quotientnet.sharpness import MEASURES, catalogue, report


@pytest.fixture(scope="module")
def found():
    return report(*problem(), measures=QUICK)


def approximate_problem(eps=1e-5):
    model = make_normalised_network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    digits = load_digits()
    data = digits.train_inputs[:40], digits.train_targets[:40]
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    return point, qn.discover(model, data[0])


def off(claims, size=1e-3):
    """A measure that says one thing and moves by ``size`` at every further point."""
    values = iter([1.0, 1 + size, 1 + size])
    return lambda p, g: qn.Estimate(next(values), 0.0, True, 0, claims)


def test_claims_under_an_approximate_symmetry_are_judged_as_approximate():
    whole = ("unit scales", "filter scales")
    measures = {
        "claims all": off(whole), "claims a part": off(("unit scales",)), "claims none": off(()),
        "moves far": off(whole, 2.1e-2), "on a quotient": off(("NodeWiseQuotient's group",)),
        "stays": off(whole, 0.0),
    }  # fmt: skip
    point, symmetry = approximate_problem()
    found = report(point, symmetry, spread=0.3, measures=measures)
    assert found.approximate
    seen = {row.label: (row.invariant, row.approximate) for row in found}
    moved, near = (False, False), (None, True)
    assert seen == {
        "claims all": near, "claims a part": moved, "claims none": moved, "moves far": moved,
        "on a quotient": near, "stays": (True, False),
    }  # fmt: skip
    text = str(found)
    assert text.count("1e-03 ≈") == 2 and "≈ below 2e-02" in " ".join(text.split())
    assert f"the loss itself moves by {found.drift:.0e}" in " ".join(text.split())
    exact = report(*problem(), measures={"claims all": off(whole)})
    assert not exact.approximate and exact["claims all"].invariant is False
    assert "≈" not in str(exact)


def test_ordinary_batch_normalisation_is_not_called_a_broken_claim():
    labels = ["node-wise spectral norm", "Hessian, largest eigenvalue"]
    point, symmetry = approximate_problem()
    found = report(point, symmetry, spread=0.3, measures=labels)
    assert found[labels[0]].approximate and found[labels[0]].change < 2e-2
    assert found[labels[1]].invariant is False


def test_one_bad_point_leaves_the_rest_of_the_row():
    point, symmetry = problem()

    def sometimes(bad):
        calls = iter(range(3))

        def measure(p, g):
            if next(calls) in bad:
                raise ValueError("the slope is not zero")
            return qn.Estimate(2.0, 0.0, True, 0)

        return measure

    measures = {
        "one": sometimes([1]),
        "other": sometimes([1]),
        "both": sometimes([1, 2]),
    }
    found = report(point, symmetry, measures=measures)
    assert found["one"].values == (2.0, None, 2.0) and found["one"].invariant
    assert found["one"].reason is None
    assert found["one"].refusals == {"random 1": "the slope is not zero"}
    assert found["both"].values == (2.0, None, None) and found["both"].invariant is None
    for text in (str(found), found._repr_html_()):
        assert text.count("[1] at random 1: the slope is not zero") == 1
        assert text.count("[2] at random 1 and random 2: the slope") == 1
        assert text.count("the slope is not zero") == 2
        assert "one [1]" in text and "other [1]" in text and "both [2]" in text
    assert json.loads(found.to_json())["rows"][0]["values"] == [2.0, None, 2.0]
    many = report(point, symmetry, points=4, measures=["Hessian, trace"])
    assert "lowest" in str(many)
    model, symmetry = approximate_problem()
    eps = report(model, symmetry, spread=0.3, measures={"one": sometimes([1])})
    assert "take a smaller spread, or a smaller eps" in " ".join(str(eps).split())


def test_failures_of_a_users_measure_are_not_swallowed():
    point, symmetry = problem()
    for wrong, name in ((3.0, "float"), (None, "NoneType"), (point.w.sum(), "Tensor")):
        with pytest.raises(
            TypeError, match=rf"measures\['m'\] must return an Estimate, got {name}"
        ):
            report(point, symmetry, measures={"m": lambda p, g: wrong})
    unusable = qn.Estimate(point.w.sum(), 0.0, True, 0)
    with pytest.raises(TypeError, match=r"whose value is a Tensor; use float\(...\)"):
        report(point, symmetry, measures={"m": lambda p, g: unusable})
    for kind in (ZeroDivisionError, KeyError, TypeError, RuntimeError):

        def failing(p, g):
            raise kind("deep inside")

        with pytest.raises(
            RuntimeError, match=f"measure 'm' failed at w: {kind.__name__}: .*deep"
        ) as caught:
            report(point, symmetry, measures={"m": failing})
        assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize("values", [(1.0, float("nan"), 1.0), (float("inf"), 1.0, 1.0)])
def test_what_stops_being_finite_has_moved(values):
    values = iter(values)
    own = {"m": lambda p, g: qn.Estimate(next(values), 0.0, True, 0)}
    row = report(*problem(), measures=own)["m"]
    assert row.invariant is False and row.change == float("inf")


def test_zeros_that_are_held_are_counted():
    model = mlp()
    with torch.no_grad():
        model[0].bias.zero_()
        model[2].weight[0, :3] = 0.0
    labels = [
        f"{kind} spectral norm" for kind in ("layer-scale", "node-wise", "balanced")
    ]
    found = report(*problem(model), measures=labels)
    assert [row.note for row in found] == [
        "6 zero entries are held at zero", "9 zero entries are held at zero", None,
    ]  # fmt: skip
    for text in (str(found), found._repr_html_()):
        assert "[1] 6 zero entries" in text and "node-wise spectral norm [2]" in text
    assert report(*problem(), measures=labels)["node-wise spectral norm"].note is None


def test_a_report_is_a_collection_of_rows(found):
    assert len(found) == len(QUICK) and list(found) == list(found.rows)
    assert "Hessian, trace" in found and "trace" not in found


def test_long_labels_and_heads_and_standard_errors(found):
    point, symmetry = problem(mlp(bias=False))
    elements = {"rangamani2019 Table 2": layer_scales(symmetry.group, (5, 4, 1 / 20))}
    long = "a name that its owner has thought about for longer than others"
    own = {long: norm} | {m.label: m for m in MEASURES if m.label in QUICK}
    text = str(report(point, symmetry, points=1, elements=elements, measures=own))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and f"  {long}" in lines
    above, heads = (line for line in lines if line.endswith(("rangamani2019", "cost")))
    assert above.index("rangamani2019") + 13 == heads.index("Table 2") + 7
    rows = [line for line in lines if any(s in line for s in "=≠±") and "e-" in line]
    ends = {line.index(sign) for line in rows for sign in "=≠" if f" {sign} " in line}
    assert len(ends) == 1
    errors = found["Hessian, trace"].errors
    for error in errors:
        assert (
            f"± {error:.1g}" in str(found)
            and f"± {error:.1g}</td>" in found._repr_html_()
        )


def test_the_notebook_has_the_columns_of_the_text(found):
    html = found._repr_html_()
    assert "at w</th>" in html and "cost</th>" in html and "gradients</th>" not in html
    assert 'text-align:right">' in html

    def short(point, group):
        return qn.Estimate(1.0, 0.0, False, 0)

    starred = report(*problem(), points=5, measures={"short": short})
    assert (
        ">short *</td>" in starred._repr_html_() and "lowest" in starred._repr_html_()
    )
    assert "* short of the accuracy" in starred._repr_html_()


def test_where_the_hessian_is_dear_a_row_says_whose_traces_it_has(monkeypatch):
    """Beyond some products without a closed form it is the Gauss-Newton matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    objective = qn.Objective(model, nn.MSELoss(), data)
    point, symmetry = objective.at(objective.layout.flatten(model)), qn.discover(model, data[0])
    labels = [m for m in MEASURES if m.label == "matrix-normalised sharpness"]
    values = {}
    for products in (16, 15):  # of the first layer, before whose outputs nothing is linear
        monkeypatch.setattr(catalogue, "PRODUCTS", products)
        (row,) = report(point, symmetry, measures=labels, spread=0.3)
        values[row.note] = row.values[0]
    said = "of the Gauss-Newton matrix: the Hessian's takes 16 products"
    function = qn.sharpness.matrix_normalised_sharpness
    assert values == {
        None: pytest.approx(function(point).value, rel=1e-12),
        said: pytest.approx(function(point, curvature="gauss-newton").value, rel=1e-12),
    }
    assert values[None] != pytest.approx(values[said], rel=1e-3)
