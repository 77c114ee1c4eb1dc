"""The kept results of the experiments are those of their raw numbers."""

import json
import sys
from math import exp, isnan, log
from pathlib import Path
from statistics import mean

import pytest
from scipy.stats import kendalltau

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples/experiments"))
import label_noise  # noqa: E402
import large_batch  # noqa: E402


def kept(name):
    path = ROOT / f"docs/results/{name}.json"
    assert path.stat().st_size < 200_000
    return json.loads(path.read_text(encoding="utf-8"))


def test_label_noise_follows_from_its_networks():
    facts = kept("label_noise")
    names = label_noise.REFERENCE, "normalised sharpness"
    values = {name: facts["measures"][name] for name in names}
    again = label_noise.correlations(values, facts["networks"])
    rows = {row["measure"]: row for row in facts["correlations"]}
    for row in again:
        same = rows[row["measure"]]
        assert row["kind"] == same["kind"]
        for key in row.keys() - {"measure", "kind"}:
            assert row[key] == pytest.approx(same[key], rel=1e-9, abs=1e-9), key


def test_tau_of_different_seeds_by_counting():
    """All pairs one by one, without a matrix."""
    facts = kept("label_noise")
    networks, row = facts["networks"], facts["correlations"][0]
    values = facts["measures"][row["measure"]]["as_trained"]
    every = list(zip(values, networks["gap"], networks["seed"], networks["share"]))
    for key, chosen in {
        "all_as_trained": lambda a, b: a[2] != b[2],
        "within_as_trained": lambda a, b: a[2] != b[2] and a[3] == b[3],
    }.items():
        pairs = [(a, b) for a in every for b in every if chosen(a, b)]
        order = sum(((a[0] > b[0]) - (a[0] < b[0])) * ((a[1] > b[1]) - (a[1] < b[1]))
                    for a, b in pairs)  # fmt: skip
        apart = [sum(a[k] != b[k] for a, b in pairs) for k in (0, 1)]
        tau = order / (apart[0] * apart[1]) ** 0.5
        assert row[key][0] == pytest.approx(tau, abs=1e-12)
        assert row[key][1] <= tau <= row[key][2]
    shares = sorted(set(networks["share"]))
    for share, tau in zip(shares, row["by_share"]):
        own = [a for a in every if a[3] == share]
        assert tau == kendalltau([a[0] for a in own], [a[1] for a in own]).statistic


def test_large_batch_follows_from_its_runs():
    facts = kept("large_batch")
    small = {}
    for row in facts["table"]:
        if row["batches"] == large_batch.SMALL:
            small[row["moment"], row["network"]] = row
    for row in facts["table"]:
        reference = small[row["moment"], row["network"]]
        assert row["runs"] == reference["runs"] == facts["seeds"]
        pairs = list(
            zip(row["values"]["test_accuracy"], reference["values"]["test_accuracy"])
        )
        change = mean(a - b for a, b in pairs)
        assert row["test_accuracy_difference"][0] == pytest.approx(change, abs=1e-12)
        for name, (ratio, low, high) in row["ratios"].items():
            if ratio is None:
                continue
            pairs = zip(row["values"][name], reference["values"][name])
            expected = exp(mean(log(a / b) for a, b in pairs))
            assert ratio == pytest.approx(expected)
            assert low <= ratio * (1 + 1e-12) and ratio <= high * (1 + 1e-12)


def test_row_of_runs_by_hand():
    """Two seeds, one of which never reached the loss."""

    def run(sharpness, accuracy):
        found = {"epoch": 1, "train_loss": 0.1, "train_accuracy": 1.0}
        lines = {"straight": [1.0, 4.0], "geodesic": [1.0, 1.0]}
        measures = dict.fromkeys(large_batch.MEASURES, sharpness)
        return found | lines | {"test_accuracy": accuracy, "measures": measures}

    runs = {
        ("dense", "small"): [{"equal_loss": run(1.0, 0.9)}, {"equal_loss": run(1.0, 0.5)}],
        ("dense", "large"): [{"equal_loss": run(3.0, 0.8)}, {"equal_loss": None}],
    }  # fmt: skip
    row = large_batch.row("equal_loss", "dense", "large", runs)
    assert row["runs"] == 1 and row["test_accuracy"][0] == 0.8
    assert row["test_accuracy_difference"][0] == pytest.approx(-0.1)
    assert row["ratios"]["training loss"][0] == pytest.approx(3)
    assert isnan(row["ratios"]["training loss"][1])
    runs["dense", "large"][1] = {"equal_loss": run(12.0, 0.8)}
    row = large_batch.row("equal_loss", "dense", "large", runs)
    ratio, low, high = row["ratios"]["normalised sharpness"]
    assert ratio == pytest.approx(6) and high / ratio == pytest.approx(ratio / low)
    assert log(high / ratio) == pytest.approx(12.7062047 * log(2))
    assert row["lines"]["straight"] == pytest.approx([1, 4])
    runs["dense", "large"][1] = {"equal_loss": run(-1.0, 0.8)}
    row = large_batch.row("equal_loss", "dense", "large", runs)
    assert all(map(isnan, row["ratios"]["normalised sharpness"]))
